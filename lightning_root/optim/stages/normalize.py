"""Neuron-wise normalization of the update (`normalize="neuron"`), after orthogonalization.

    v <- 0.95 v + 0.05 mean(U^2)  over the shorter side: one number per neuron, a row or a column
                                  along the longer side
    U <- U / sqrt(v),             then rescaled to the Frobenius norm that U had

Neurons whose updates were small catch up with the others. State: v, max(m, n) numbers per matrix.
Cost: two passes over U. Source: NorMuon (Z. Li et al., arXiv:2510.05491); the longer side is
modded-nanogpt's choice. No bias correction is needed: a factor common to all of v cancels.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from lightning_root.optim.blocks import Group, StateSpec, state_dtype

KEY: Final = "neuron_exp_avg_sq"
BETA: Final = 0.95


def is_on(group: Group) -> bool:
    """Return whether the updates of a group's matrices are normalized."""
    return bool(group["normalize"] == "neuron")


STATE: Final = (
    StateSpec(KEY, "matrices", lambda p, _: state_dtype(p), "root", is_on, lambda m, _: max(m)),
)


def normalize_twin(update: Tensor, second_moment: Tensor) -> tuple[Tensor, Tensor]:  # (m, n)
    """Return U normalized and v after the step, as the formula has it."""
    shorter = 1 if update.shape[0] >= update.shape[1] else 0
    second_moment = BETA * second_moment + (1 - BETA) * update.square().mean(shorter)
    normalized = update / second_moment.sqrt().unsqueeze(shorter)
    return normalized * (update.norm() / normalized.norm()), second_moment


def normalize(
    update: Tensor,  # (k, m, n)
    state: Sequence[Mapping[str, Tensor]],  # of each of the k: v under KEY
    by_rows: bool,
    finite: Sequence[Tensor | None],
) -> Tensor:  # (k, m, n), in the dtype of v
    """Advance v of each matrix and return its normalized update; U stays as it is."""
    moments = [of_block[KEY] for of_block in state]
    wide = update.to(moments[0].dtype)
    shorter = 2 if by_rows else 1
    mean_squares = wide.square().mean(shorter)
    for moment, mean_square, flag in zip(moments, mean_squares, finite, strict=True):
        new = mean_square if flag is None else torch.where(flag, mean_square, moment)
        moment.lerp_(new, 1.0 - BETA)
    inverse = torch.stack(moments).rsqrt_()
    inverse.masked_fill_(inverse.isinf(), 0.0)  # a neuron that was never updated
    before = mean_squares.sum(1)
    after = (mean_squares * inverse * inverse).sum(1)  # 1 / v would overflow for tiny v
    inverse *= (before / after.masked_fill(after == 0, 1.0)).sqrt_()[:, None]
    return wide * inverse.unsqueeze(shorter)
