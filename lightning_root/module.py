"""ROOT in a LightningModule: the factory and the mixin."""

import copy
from collections.abc import Callable, Mapping
from functools import partial, update_wrapper, wraps
from types import MappingProxyType, MethodType, SimpleNamespace
from typing import Any, Final

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from lightning_root import takeover
from lightning_root.binder import ROOTBinder, frozen_by_callback, run_length
from lightning_root.optim import ROOT, WarmupDecayLR
from lightning_root.optim.schedule import ScheduleName, end_with_run

_SCHEDULE_OPTIONS: Final = ("schedule", "warmup_steps", "max_steps", "min_lr_ratio")


def configure_optimizers(
    module: LightningModule,
    *,
    lr: float = 1e-3,
    warmup_steps: int | None = None,
    max_steps: int | None = None,
    schedule: ScheduleName | None = "cosine",
    min_lr_ratio: float = 0.1,
    **root_options: Any,
) -> dict[str, Any]:
    """Return what a LightningModule's `configure_optimizers` does: ROOT, with a schedule per step.

    Args:
        module: The module to train; its parameters are split by `partition_parameters`.
        lr: Full learning rate of both rules. With the default scale AdamW's values carry over.
        warmup_steps: Linear warm-up; default 2000, at most a tenth of the run.
        max_steps: Optimizer steps until the decay ends; default: the Trainer's.
        schedule: "cosine", "linear", "constant" (warm-up only), or None for a fixed rate.
        min_lr_ratio: Final learning rate as a share of `lr`.
        **root_options: Further options of `ROOT`, such as `weight_decay` or `outlier_quantile`.

    Raises:
        ValueError: If an option is out of range, or `max_steps` is neither given nor known to the
            Trainer.

    Example:
        >>> import lightning as L
        >>> import torch
        >>> from lightning_root import configure_optimizers
        >>> class Net(L.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        ...
        ...     def configure_optimizers(self):
        ...         return configure_optimizers(self, lr=2e-3, max_steps=1000)
        >>> sorted(Net().configure_optimizers())
        ['lr_scheduler', 'optimizer']
    """
    optimizer = ROOT([], lr=lr, **root_options)
    optimizer.bind(module, frozen=not frozen_by_callback(module))
    return _scheduled(
        optimizer,
        module,
        warmup_steps=warmup_steps,
        max_steps=max_steps,
        schedule=schedule,
        min_lr_ratio=min_lr_ratio,
    )


def _scheduled(
    optimizer: ROOT,
    module: LightningModule,
    *,
    max_steps: int | None = None,
    schedule: ScheduleName | None = "cosine",
    **options: Any,
) -> dict[str, Any]:
    """Return an optimizer with a schedule of the run's length."""
    if schedule is None:
        return {"optimizer": optimizer}
    scheduler = WarmupDecayLR(optimizer, max_steps=max_steps, schedule=schedule, **options)
    if max_steps is None:
        end_with_run(scheduler, partial(run_length, module))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 1},
    }


class ROOTMixin:
    """Add this to a LightningModule's bases and it trains with ROOT.

        class Net(ROOTMixin, LightningModule): ...

    An optimizer that the class configures itself is replaced, and a message says what was kept:
    group by group the parameters, learning rate, weight decay, betas, eps and `maximize`, and the
    scheduler as it is, or none. Rates of Adam and its kin keep their meaning, because updates have
    the same size. Several optimizers are left as they are, with a warning, and so is a ROOT.
    `--optimizer` on the command line goes before all of these. For `lightning.pytorch` and
    `pytorch_lightning` alike.

    Raises:
        TypeError: At the class, if the mixin comes after its LightningModule.
        ValueError: When the optimizer is configured, if its learning rates mean nothing to ROOT
            (SGD's) and `root_options` have no `lr`, or if its scheduler cannot be handed over.

    Attributes:
        root_options: Options of the factory `configure_optimizers`, to be set in the class or on
            the instance, for example {"lr": 2e-3, "warmup_steps": 100, "outlier_quantile": 0.95}.
            Over an optimizer of the class they replace its defaults; a group that has its own
            value keeps it, and `lr` scales the rates of all groups alike. The schedule is ours
            only if one of the factory's options for it is there.
        clip_adamw_only: Have the Trainer's `gradient_clip_val` concern AdamW's part alone, whose
            gradients the matrices' large norms then do not shrink.
    """

    root_options: Mapping[str, Any] = MappingProxyType({})
    clip_adamw_only: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = [base.__name__ for base in cls.__mro__]  # of two packages, which both have one
        if "LightningModule" in names[: cls.__mro__.index(ROOTMixin)]:
            raise TypeError(
                "`ROOTMixin` must come before the LightningModule among the bases of "
                f"`{cls.__name__}`, or it is never asked for its optimizer; write "
                f"`class {cls.__name__}(ROOTMixin, ...)`"
            )
        own = cls.__dict__.get("configure_optimizers")
        if own is not None:

            @wraps(own)
            def configure(self: Any) -> Any:
                return _outermost(self, own)

            cls.configure_optimizers = configure  # type: ignore[method-assign]

    def __getstate__(self) -> dict[str, Any]:
        """Keep the `configure_optimizers` that LightningCLI has put in the place of the class's."""
        # Pickled by its name, as methods are, it would be the class's own again in every process
        # that `ddp_spawn` starts, and the options of `--optimizer` would be lost.
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        method = state.get("configure_optimizers")
        if isinstance(method, MethodType) and isinstance(method.__func__, partial):
            state["configure_optimizers"] = _PicklableMethod(method)
        return state

    def configure_optimizers(self) -> Any:
        """Return ROOT with warm-up and cosine decay, as `root_options` say."""
        inherited = getattr(super(), "configure_optimizers", None)
        if inherited is None or inherited.__qualname__ == "LightningModule.configure_optimizers":
            return configure_optimizers(self, **self.root_options)  # type: ignore[arg-type]
        return _outermost(self, lambda _: inherited())

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says: all gradients, or those of AdamW's part."""
        if self.clip_adamw_only:
            root = getattr(optimizer, "_optimizer", optimizer)  # within LightningOptimizer
            pairs = zip(root.partition.routes, root.partition.parameters, strict=True)
            params = [parameter for route, parameter in pairs if route.role == "adamw"]
            optimizer = SimpleNamespace(param_groups=[{"params": params}])
        super().configure_gradient_clipping(  # type: ignore[misc]
            optimizer, gradient_clip_val, gradient_clip_algorithm
        )

    def configure_callbacks(self) -> list[Any]:
        """Return the callbacks of the other bases, and the one that binds."""
        inherited = super().configure_callbacks()  # type: ignore[misc]
        others = inherited if isinstance(inherited, list | tuple) else [inherited]
        return [*others, ROOTBinder()]


class _PicklableMethod:
    """A method made of a partial function, pickled as that and its object, not by its name."""

    def __init__(self, method: MethodType) -> None:
        self.method = method

    def __reduce__(self) -> tuple[Any, ...]:
        function: Any = self.method.__func__
        return _make_method, (function.func, function.args, function.keywords, self.method.__self__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.method, memo)


def _make_method(
    function: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any], owner: object
) -> MethodType:
    """Make a method as LightningCLI does; Lightning looks for the wrapped function."""
    return MethodType(update_wrapper(partial(function, *given, **named), function), owner)


def _outermost(module: Any, configure: Callable[[Any], Any]) -> Any:
    """Configure, and put ROOT into the result unless a subclass's method is still at work on it."""
    if module.__dict__.get("_root_is_configuring"):
        return configure(module)
    module.__dict__["_root_is_configuring"] = True
    try:
        configured = configure(module)
    finally:
        del module.__dict__["_root_is_configuring"]
    return _replaced_by_root(module, configured)


def _replaced_by_root(module: Any, configured: Any) -> Any:
    """Return what `configure_optimizers` did if that has a ROOT, else with a ROOT in its place."""
    found = list({id(each): each for each in takeover.optimizers_in(configured)}.values())
    if any(isinstance(optimizer, ROOT) for optimizer in found):
        return configured
    where = f"{type(module).__name__}.configure_optimizers"
    if not found:
        rank_zero_warn(f"ROOTMixin has nothing to replace: `{where}` returned no optimizer")
        return configured
    if len(found) != 1:
        rank_zero_warn(
            f"ROOTMixin leaves the {len(found)} optimizers of `{type(module).__name__}` as they "
            "are: one ROOT cannot stand for several. Return a `ROOT(part.parameters())` for each "
            "part of the model there"
        )
        return configured
    old, options = found[0], dict(module.root_options)
    ours = {key: options.pop(key) for key in _SCHEDULE_OPTIONS if key in options}
    root = takeover.in_place_of(old, options)
    root.bind(module)
    schedulers = [] if ours else takeover.schedulers_in(configured)
    rank_zero_warn(takeover.account(old, root, schedulers, where, advise="lr" not in options))
    if not ours:
        return takeover.replaced(configured, old, root)
    for group in root.param_groups:  # the user's schedule may have begun already
        group["lr"] = group.pop("initial_lr", group["lr"])
    return _scheduled(root, module, **ours)
