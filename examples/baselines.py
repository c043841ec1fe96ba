"""torch's own Muon and AdamW as one optimizer, to compare ROOT with under the same harness."""

import weakref
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, ParamsT

from lightning_root import partition_parameters
from lightning_root.optim.binding import module_behind
from lightning_root.partition import Partition, partition_named


class MuonWithAdamW(Optimizer):
    """`torch.optim.Muon` for the hidden matrices and `torch.optim.AdamW` for the rest.

    The split is ROOT's (`partition_parameters`), so that the comparison is of the rules alone, with
    two differences that torch's Muon makes: it takes a parameter as one matrix, also where query,
    key and value are fused in it, and 2-D parameters only, so that hidden parameters of more
    dimensions, such as convolutions, are AdamW's. For one device and for DDP; sharded parameters
    are refused.

    Args:
        params: `module.parameters()`, as LightningCLI passes it, `module.named_parameters()`, or
            (name, tensor) pairs.
        lr: Learning rate of both rules, or of the matrices where `adamw_lr` is given.
        adamw_lr: Learning rate of the rest; None takes `lr`, which the default scale allows.
        weight_decay: Decoupled decay of all parameters.
        momentum: Muon's momentum.
        nesterov: Whether Muon looks one step ahead.
        ns_steps: Newton-Schulz steps, with Muon's fixed triple.
        adjust_lr_fn: Scale of a matrix's update: "match_rms_adamw" is 0.2 sqrt(max(m, n)),
            "original" is sqrt(max(1, m / n)).
        betas: AdamW's averaging coefficients.
        eps: AdamW's term in the denominator.

    Raises:
        TypeError: If `params` is something from which names cannot be told.
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> from examples.baselines import MuonWithAdamW
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 2))
        >>> optimizer = MuonWithAdamW(model.parameters(), lr=1e-2)
        >>> [(group["name"], len(group["params"])) for group in optimizer.param_groups]
        [('muon', 1), ('adamw', 3)]
        >>> model(torch.ones(4, 8)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        adamw_lr: float | None = None,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        module = module_behind(params)
        partition = (
            partition_named(_pairs(params)) if module is None else partition_parameters(module)
        )
        self._module = weakref.ref(module) if module is not None else None
        both: dict[str, Any] = {"weight_decay": weight_decay}
        muon = torch.optim.Muon(
            [_group("muon", partition)],
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
            **both,
        )
        rate = lr if adamw_lr is None else adamw_lr
        adamw = torch.optim.AdamW(
            [_group("adamw", partition)], lr=rate, betas=betas, eps=eps, **both
        )
        self._parts: tuple[Optimizer, Optimizer] = (muon, adamw)
        # Every group has every key, as learning rate monitors want it; each rule reads its own.
        super().__init__(
            [*muon.param_groups, *adamw.param_groups], {**muon.defaults, **adamw.defaults}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Let both optimizers update their group.

        Args:
            closure: Evaluates the model again and returns the loss.

        Raises:
            RuntimeError: If the module's parameters have been replaced since, as FSDP2 does.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_live()
        for part, group in zip(self._parts, self.param_groups, strict=True):
            # Loading a state makes new groups and a new state.
            part.param_groups, part.state = [group], self.state
            part.step()
        return loss

    def _check_live(self) -> None:
        module: nn.Module | None = self._module() if self._module is not None else None
        if module is None:
            return
        live = {id(parameter) for parameter in module.parameters()}
        if any(id(p) not in live for group in self.param_groups for p in group["params"]):
            raise RuntimeError(
                "the module's parameters have been replaced since `MuonWithAdamW` was built, as "
                "sharding does; it is for one device and for DDP, use `lightning_root.ROOT` there"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parts": self._parts, "_module": None}


def _pairs(params: ParamsT) -> list[tuple[str, torch.Tensor]]:
    pairs: list[Any] = list(params)
    for entry in pairs:
        if not isinstance(entry, tuple):
            raise TypeError(
                "`params` must be `module.parameters()`, untouched, or (name, tensor) pairs such "
                f"as `module.named_parameters()`, got {type(entry).__name__}"
            )
    return pairs


def _group(name: Literal["muon", "adamw"], partition: Partition) -> dict[str, Any]:
    """Pick the parameters of one rule: 2-D hidden matrices, or everything else."""
    chosen = [
        parameter
        for route, parameter in zip(partition.routes, partition.parameters, strict=True)
        if (route.role == "root" and parameter.ndim == 2) == (name == "muon")
    ]
    return {"params": chosen, "name": name}
