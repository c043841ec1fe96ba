"""Muon or SOAP with AdamW as one optimizer, to compare ROOT with under the same harness.

torch's own Muon, and the SOAP of `pytorch-optimizer`, which the project does not need otherwise:

    pip install pytorch-optimizer
"""

import weakref
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.optimizer import Optimizer, ParamsT

from lightning_root import partition_parameters
from lightning_root.optim.binding import module_behind
from lightning_root.partition import Partition, partition_named


class _WithAdamW(Optimizer):
    """A rule for the hidden matrices and `torch.optim.AdamW` for the rest.

    Args:
        params: As `MuonWithAdamW` takes it.
        name: Of the group of hidden matrices.
        rule: Makes the optimizer of that group.
        takes: Whether the rule takes a hidden parameter of that many dimensions.
        adamw: Options of the other one.
    """

    def __init__(
        self,
        params: ParamsT,
        name: str,
        rule: Callable[[list[dict[str, Any]]], Optimizer],
        takes: Callable[[int], bool],
        adamw: dict[str, Any],
    ) -> None:
        module = module_behind(params)
        partition = (
            partition_named(_pairs(params)) if module is None else partition_parameters(module)
        )
        self._module = weakref.ref(module) if module is not None else None
        matrices, rest = _split(partition, takes)
        first = rule([{"params": matrices, "name": name}])
        second = torch.optim.AdamW([{"params": rest, "name": "adamw"}], **adamw)
        self._parts: tuple[Optimizer, Optimizer] = (first, second)
        # Every group has every key, as learning rate monitors want it; each rule reads its own.
        super().__init__(
            [*first.param_groups, *second.param_groups], {**first.defaults, **second.defaults}
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
                f"the module's parameters have been replaced since `{type(self).__name__}` was "
                "built, as sharding does; it is for one device and for DDP, use "
                "`lightning_root.ROOT` there"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parts": self._parts, "_module": None}


class MuonWithAdamW(_WithAdamW):
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
        super().__init__(
            params,
            "muon",
            lambda groups: torch.optim.Muon(
                groups,
                lr=lr,
                weight_decay=weight_decay,
                momentum=momentum,
                nesterov=nesterov,
                ns_steps=ns_steps,
                adjust_lr_fn=adjust_lr_fn,
            ),
            lambda dimensions: dimensions == 2,
            {
                "lr": lr if adamw_lr is None else adamw_lr,
                "weight_decay": weight_decay,
                "betas": betas,
                "eps": eps,
            },
        )


class SOAPWithAdamW(_WithAdamW):
    """SOAP for the hidden matrices and `torch.optim.AdamW` for the rest, as SOAP is used.

    The split is ROOT's, each parameter whole, also where query, key and value are fused in it;
    convolutions are SOAP's, with an eigenbasis for each dimension. SOAP is that of
    `pytorch-optimizer`, which takes no step at the first gradient. For one device and for DDP;
    sharded parameters are refused.

    Args:
        params: As `MuonWithAdamW` takes it.
        lr: Learning rate of both rules, or of the matrices where `adamw_lr` is given.
        adamw_lr: Learning rate of the rest; None takes `lr`.
        weight_decay: Decoupled decay of all parameters.
        soap_betas: SOAP's averages: of gradients, and of their squares in the eigenbasis.
        shampoo_beta: SOAP's average of the covariances; None takes the second of `soap_betas`.
        precondition_frequency: Steps between new eigenbases.
        max_precondition_dim: A longer side of a matrix has no eigenbasis.
        betas: AdamW's averaging coefficients.
        eps: Term in the denominator of both.

    Raises:
        ModuleNotFoundError: If `pytorch-optimizer` is not installed.
        TypeError: If `params` is something from which names cannot be told.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 3e-3,
        adamw_lr: float | None = None,
        weight_decay: float = 0.1,
        soap_betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float | None = None,
        precondition_frequency: int = 10,
        max_precondition_dim: int = 10_000,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        try:
            from pytorch_optimizer import SOAP
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "`SOAPWithAdamW` needs the SOAP of another project; `pip install pytorch-optimizer`"
            ) from error
        super().__init__(
            params,
            "soap",
            lambda groups: SOAP(
                groups,
                lr=lr,
                weight_decay=weight_decay,
                betas=soap_betas,
                shampoo_beta=shampoo_beta,
                precondition_frequency=precondition_frequency,
                max_precondition_dim=max_precondition_dim,
                eps=eps,
            ),
            lambda dimensions: True,
            {
                "lr": lr if adamw_lr is None else adamw_lr,
                "weight_decay": weight_decay,
                "betas": betas,
                "eps": eps,
            },
        )


def _pairs(params: ParamsT) -> list[tuple[str, torch.Tensor]]:
    pairs: list[Any] = list(params)
    for entry in pairs:
        if not isinstance(entry, tuple):
            raise TypeError(
                "`params` must be `module.parameters()`, untouched, or (name, tensor) pairs such "
                f"as `module.named_parameters()`, got {type(entry).__name__}"
            )
    return pairs


def _split(
    partition: Partition, takes: Callable[[int], bool]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The hidden parameters that a rule takes, and everything else."""
    matrices: list[torch.Tensor] = []
    rest: list[torch.Tensor] = []
    for route, parameter in zip(partition.routes, partition.parameters, strict=True):
        hidden = route.role == "root" and takes(parameter.ndim)
        (matrices if hidden else rest).append(parameter)
    return matrices, rest
