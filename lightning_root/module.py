"""ROOT in a LightningModule: the factory and the mixin."""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial, update_wrapper, wraps
from types import MappingProxyType, MethodType, SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn

from lightning_root.binder import ROOTBinder, run_length
from lightning_root.optim import ROOT, WarmupDecayLR
from lightning_root.optim.schedule import ScheduleName


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
    optimizer.bind(module)
    if schedule is None:
        return {"optimizer": optimizer}
    scheduler = WarmupDecayLR(
        optimizer,
        warmup_steps=warmup_steps,
        max_steps=max_steps,
        schedule=schedule,
        min_lr_ratio=min_lr_ratio,
    )
    if max_steps is None:
        scheduler.resolve(run_length(module))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 1},
    }


class ROOTMixin:
    """Add this to a LightningModule's bases and it trains with ROOT.

        class Net(ROOTMixin, LightningModule): ...

    An optimizer that the class configures itself is replaced, with a message; AdamW's or Adam's
    learning rate is kept, because ROOT's updates have the same size. Several optimizers are left as
    they are, with a warning, and so is a ROOT. `--optimizer` on the command line goes before all of
    these. For `lightning.pytorch` and `pytorch_lightning` alike.

    Raises:
        TypeError: At the class, if the mixin comes after its LightningModule.

    Attributes:
        root_options: Options of the factory `configure_optimizers`, to be set in the class or on
            the instance, for example {"lr": 2e-3, "warmup_steps": 100, "outlier_quantile": 0.95}.
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
                return _replaced_by_root(self, own(self))

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
        return _replaced_by_root(self, inherited())

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says: all gradients, or those of AdamW's part."""
        if self.clip_adamw_only:
            groups = [group for group in optimizer.param_groups if group.get("role") != "root"]
            optimizer = SimpleNamespace(param_groups=groups)
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


def _replaced_by_root(module: Any, configured: Any) -> Any:
    """Return what `configure_optimizers` did if that has a ROOT, else a ROOT in its place."""
    replaced = list(_optimizers(configured))
    if any(isinstance(optimizer, ROOT) for optimizer in replaced):
        return configured
    if len(replaced) > 1:
        rank_zero_warn(
            f"ROOTMixin leaves the {len(replaced)} optimizers of `{type(module).__name__}` as they "
            "are: one ROOT cannot stand for several. Return a `ROOT(part.parameters())` for each "
            "part of the model there"
        )
        return configured
    options = dict(module.root_options)
    if len(replaced) == 1 and isinstance(replaced[0], torch.optim.Adam | torch.optim.AdamW):
        options.setdefault("lr", replaced[0].defaults["lr"])
    result = configure_optimizers(module, **options)
    names = ", ".join(type(optimizer).__name__ for optimizer in replaced) or "nothing"
    rank_zero_warn(
        f"ROOTMixin trains with ROOT (lr={result['optimizer'].defaults['lr']}, with its own "
        f"schedule) in place of what `{type(module).__name__}.configure_optimizers` returned "
        f"({names}). Set `root_options` to change its options, or return a ROOT there"
    )
    return result


def _optimizers(configured: Any) -> Iterator[torch.optim.Optimizer]:
    """Yield the optimizers in whatever `configure_optimizers` may return."""
    if isinstance(configured, torch.optim.Optimizer):
        yield configured
    elif isinstance(configured, Mapping):
        yield from _optimizers(configured.get("optimizer"))
    elif isinstance(configured, list | tuple):
        for part in configured:
            yield from _optimizers(part)
