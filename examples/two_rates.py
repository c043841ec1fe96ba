"""ROOT with a learning rate for the matrices and another one for the rest, as some papers give."""

from typing import Any

from torch.optim.optimizer import ParamsT

from lightning_root import ROOT
from lightning_root.optim.binding import module_behind


class TwoRateROOT(ROOT):
    """ROOT with a group for each rule, which start with rates of their own and are scaled alike.

    With `adjust_lr_fn="match_rms_adamw"` one rate serves both rules and this class is not needed.

    Args:
        params: A module's `parameters()`, or an empty list, to be filled by `bind(module)`.
        lr: Learning rate of the hidden matrices.
        adamw_lr: Learning rate of everything else.
        **options: Those of `ROOT`.

    Raises:
        ValueError: If `adamw_lr` is negative, or as `ROOT` does.

    Example:
        >>> import torch
        >>> from examples.two_rates import TwoRateROOT
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 2))
        >>> optimizer = TwoRateROOT(model.parameters(), lr=0.02, adamw_lr=0.001)
        >>> [(group["role"], group["lr"]) for group in optimizer.param_groups]
        [('root', 0.02), ('adamw', 0.001)]
    """

    def __init__(
        self, params: ParamsT, lr: float = 0.02, adamw_lr: float = 0.001, **options: Any
    ) -> None:
        if not adamw_lr >= 0:
            raise ValueError(f"`adamw_lr` must be >= 0, got {adamw_lr}; 0.001 is usual")
        rates = {"root": lr, "adamw": adamw_lr}
        empty = [{"params": [], "role": role, "lr": rate} for role, rate in rates.items()]
        super().__init__(empty, lr=lr, **options)
        if (module := module_behind(params)) is not None:
            self.bind(module)
