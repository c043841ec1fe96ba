"""ROOT with a learning rate for the matrices and another one for the rest, as some papers give."""

from typing import Any

from torch.optim.optimizer import ParamsT

from lightning_root import ROOT


class TwoRateROOT(ROOT):
    """ROOT whose two groups start with learning rates of their own; schedules scale both alike.

    With `adjust_lr_fn="match_rms_adamw"` one rate serves both rules and this class is not needed.

    Args:
        params: As in `ROOT`, but no groups made by hand: those carry their own `lr`.
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
        >>> [(group["name"], group["lr"]) for group in optimizer.param_groups]
        [('root', 0.02), ('adamw', 0.001)]
    """

    def __init__(
        self, params: ParamsT, lr: float = 0.02, adamw_lr: float = 0.001, **options: Any
    ) -> None:
        if not adamw_lr >= 0:
            raise ValueError(f"`adamw_lr` must be >= 0, got {adamw_lr}; 0.001 is usual")
        super().__init__(params, lr=lr, **options)
        for group in self.param_groups:
            if group["role"] == "adamw":
                group["lr"] = adamw_lr
