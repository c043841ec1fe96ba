"""Scale of an orthogonalized update, as a function of the matrix's shape."""

import math
from typing import Literal, TypeAlias, get_args

AdjustLR: TypeAlias = Literal["match_rms_adamw", "original", "spectral_unclamped"]
"""Names of the scale rules, as in `torch.optim.Muon`."""

ADJUST_LR_NAMES: tuple[str, ...] = get_args(AdjustLR)


def update_scale(rows: int, columns: int, adjust_lr_fn: AdjustLR | None) -> float:
    """Factor on the learning rate for an orthogonalized (rows, columns) update.

    An orthogonal m x n matrix has root mean square 1 / sqrt(max(m, n)).

    Args:
        rows: m, the output dimension; for a convolution the output channels.
        columns: n, the input dimension; for a convolution in_channels * kernel elements.
        adjust_lr_fn: `"match_rms_adamw"`: 0.2 sqrt(max(m, n)), which gives every update the root
            mean square 0.2 that AdamW's updates have, so that AdamW's learning rates carry over
            (arXiv:2502.16982; the paper's choice). `"original"` or `None`: sqrt(max(1, m / n))
            (K. Jordan et al., 2024). `"spectral_unclamped"`: sqrt(m / n), under which inputs of a
            root mean square of 1 change outputs by lr (J. Bernstein, 2025).

    Raises:
        ValueError: If `adjust_lr_fn` is another name.

    Example:
        >>> from lightning_root.functional import update_scale
        >>> update_scale(100, 400, "match_rms_adamw")
        4.0
        >>> update_scale(400, 100, "original")
        2.0
    """
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    if adjust_lr_fn is None or adjust_lr_fn == "original":
        return math.sqrt(max(1.0, rows / columns))
    if adjust_lr_fn == "spectral_unclamped":
        return math.sqrt(rows / columns)
    raise ValueError(
        f"`adjust_lr_fn` must be one of {list(ADJUST_LR_NAMES)} or None, got {adjust_lr_fn!r}"
    )
