"""Muon twice: as a careful person writes it for the machine at hand, and as most people do.

K. Jordan et al. (2024) with the scale 0.2 sqrt(max(m, n)) (arXiv:2502.16982). What makes it fair is
what makes it fast without changing what is computed: float32 products on a CPU, `addmm` with the
sums fused in, scratch memory that is used again, momentum and weight update by lists, and stacks of
equal matrices where they help. `PlainMuon` has the same products and sums, and nothing else of it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from examples.benchmarks.speed.operations import matrix_size

TRIPLE = (3.4445, -4.7750, 2.0315)
STEPS = 5
STACKED = {"cpu": 1 << 17, "cuda": 1 << 22}
"""Matrices of fewer elements are stacked; larger ones gain nothing from it."""
CACHED = 1 << 16
"""Elements of a stack on one thread: 256 KiB, which stay in its cache from product to product."""


def fused_newton_schulz(
    x: Tensor, triples: Sequence[Sequence[float]], dtype: torch.dtype | None = None
) -> Tensor:
    """The standard form, X <- a X + (b A + c A A) X with A = X X', by three fused products.

    Args:
        x: Shape (m, n) or (k, m, n), m <= n; not modified.
        triples: (a, b, c) of every step.
        dtype: Of the products; default: that of `x`.
    """
    multiply, add = (torch.mm, torch.addmm) if x.ndim == 2 else (torch.bmm, torch.baddbmm)
    x = (x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype or x.dtype)
    gram = x.new_empty(*x.shape[:-1], x.shape[-2])
    polynomial, following = torch.empty_like(gram), torch.empty_like(x)
    for a, b, c in triples:
        multiply(x, x.mT, out=gram)
        add(gram, gram, gram, beta=b, alpha=c, out=polynomial)
        add(x, polynomial, x, beta=a, out=following)
        x, following = following, x
    return x


class FairMuon(torch.optim.Optimizer):
    """Muon for matrices, with Nesterov momentum and decoupled weight decay.

    Args:
        params: Parameters of two or more dimensions; all but the first are columns.
        lr: Learning rate.
        weight_decay: Decoupled, as a factor 1 - lr * weight_decay.
        momentum: Of the moving average of gradients, float32.
        dtype: Of the products; None is float32 on a CPU and bfloat16 on an accelerator.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "dtype": dtype}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameters in _stacks([p for p in group["params"] if p.grad is not None]):
                directions = self._momentum_(parameters, group["momentum"])
                updates = _orthogonalize(directions, group["dtype"])
                _apply_(list(parameters), updates, group)

    def _momentum_(self, parameters: list[nn.Parameter], momentum: float) -> list[Tensor]:
        """Advance the average of the gradients and look ahead; matrices as they lie."""
        for parameter in parameters:
            if not self.state[parameter]:
                buffer = torch.zeros_like(parameter, dtype=torch.float32)
                self.state[parameter]["momentum_buffer"] = buffer
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradients = [p.grad.float() for p in parameters if p.grad is not None]
        torch._foreach_lerp_(buffers, gradients, 1.0 - momentum)
        return list(torch._foreach_lerp(gradients, buffers, momentum))


def _stacks(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters whose matrices have one size, as many as are worth a stack."""
    sizes: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        sizes[matrix_size(parameter.shape)].append(parameter)
    for (m, n), members in sizes.items():
        device = members[0].device.type
        at_once = len(members) if m * n < STACKED[device] else 1
        if device == "cpu" and torch.get_num_threads() == 1:
            at_once = min(at_once, max(1, CACHED // (m * n)))
        for start in range(0, len(members), at_once):
            yield members[start : start + at_once]


def _orthogonalize(directions: Sequence[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    """Orthogonalize matrices of one size; results are shaped like `directions`."""
    flat = [direction.flatten(1) for direction in directions]
    tall = [len(matrix) > matrix.shape[1] for matrix in flat]
    wide = [matrix.mT if turn else matrix for matrix, turn in zip(flat, tall, strict=True)]
    stack = wide[0] if len(wide) == 1 else torch.stack(wide)
    result = fused_newton_schulz(stack, (TRIPLE,) * STEPS, dtype or _usual_dtype(stack))
    updates = [result] if len(wide) == 1 else result.unbind()
    back = [update.mT if turn else update for update, turn in zip(updates, tall, strict=True)]
    return [u.reshape(d.shape) for u, d in zip(back, directions, strict=True)]


def _apply_(parameters: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
    """W <- (1 - lr weight_decay) W - lr 0.2 sqrt(max(m, n)) U."""
    scale = 0.2 * math.sqrt(max(matrix_size(parameters[0].shape)))
    torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
    torch._foreach_add_(parameters, updates, alpha=-group["lr"] * scale)


class PlainMuon(FairMuon):
    """The same rule as a plain loop: one matrix after the other, the standard form by `addmm`."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter, dtype=torch.float32)
                gradient, buffer = parameter.grad.float(), state["momentum_buffer"]
                buffer.lerp_(gradient, 1.0 - group["momentum"])
                direction = gradient.lerp(buffer, group["momentum"]).flatten(1)
                scale = 0.2 * math.sqrt(max(matrix_size(parameter.shape)))
                update = _plain_newton_schulz(direction, group["dtype"]).view(parameter.shape)
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * scale)


def _plain_newton_schulz(matrix: Tensor, dtype: torch.dtype | None) -> Tensor:  # (rows, columns)
    """Five steps in the standard form, every result in fresh memory."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = (x / (x.norm() + 1e-7)).to(dtype or _usual_dtype(x))
    a, b, c = TRIPLE
    for _ in range(STEPS):
        gram = x @ x.mT
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).reshape(matrix.shape)


def _usual_dtype(matrix: Tensor) -> torch.dtype:
    return torch.float32 if matrix.device.type == "cpu" else torch.bfloat16
