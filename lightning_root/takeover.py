"""ROOT in the place of an optimizer that a user's own `configure_optimizers` has made.

What the user said is kept, group by group: learning rate, weight decay, betas, eps, `maximize`,
which parameters, and the scheduler as it is.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lightning_root.optim import ROOT

KEPT: Final = ("weight_decay", "betas", "eps", "maximize")
"""Options of groups that mean the same to ROOT."""

_HOOKS: Final = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
_WITHOUT_EFFECT: Final = (
    *("foreach", "fused", "capturable", "differentiable"),
    "decoupled_weight_decay",
)
"""Options of torch's that say how to compute a step, or what ROOT does anyway."""


def optimizers_in(configured: Any) -> Iterator[torch.optim.Optimizer]:
    """Yield the optimizers in whatever `configure_optimizers` may return."""
    if isinstance(configured, torch.optim.Optimizer):
        yield configured
    elif isinstance(configured, Mapping):
        yield from optimizers_in(configured.get("optimizer"))
    elif isinstance(configured, list | tuple):
        for part in configured:
            yield from optimizers_in(part)


def in_place_of(old: torch.optim.Optimizer, options: Mapping[str, Any]) -> ROOT:
    """Return a ROOT with the groups of another optimizer; `options` replace its defaults.

    An option goes to all groups that have the old optimizer's default; a learning rate scales
    those of all groups alike.

    Raises:
        ValueError: If the learning rates mean nothing to ROOT and `options` have no `lr`.
    """
    if "lr" not in options and not has_adams_rates(old):
        raise ValueError(
            f"ROOTMixin cannot keep the learning rate {old.defaults.get('lr')} of "
            f"{type(old).__name__}: ROOT's updates have the size of AdamW's. Set "
            'root_options = {"lr": 1e-3}, to which the rates of all groups are scaled, or return '
            "a ROOT from `configure_optimizers`"
        )
    factor = _factor(old, options.get("lr", old.defaults["lr"]))
    defaults = {key: old.defaults[key] for key in KEPT if key in old.defaults} | dict(options)
    given = [_group_of(group, old.defaults, defaults, factor) for group in old.param_groups]
    root = ROOT(given, **{"lr": old.defaults["lr"], **defaults})
    for name in _HOOKS:
        getattr(root, name).update(getattr(old, name, {}))
    return root


def _factor(old: torch.optim.Optimizer, rate: Any) -> float:
    """Return the factor on all rates that makes this of the old optimizer's own."""
    before, after = float(old.defaults["lr"]), float(rate)
    return 1.0 if before == after or before == 0.0 else after / before


def has_adams_rates(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether learning rates of an optimizer carry over: it is one of Adam's family."""
    names = [cls.__name__.lower() for cls in type(optimizer).__mro__]
    return any("adam" in name for name in names)


def _group_of(
    group: Mapping[str, Any],
    before: Mapping[str, Any],
    defaults: Mapping[str, Any],
    factor: float,
) -> dict[str, Any]:
    """Return a group for ROOT: what it has beyond options (a schedule's, a name) stays too."""
    kept = {key: value for key, value in group.items() if key not in before and key != "params"}
    kept.pop("param_names", None)
    for key in KEPT:
        if key in group:
            kept[key] = defaults[key] if group[key] == before[key] else group[key]
    for key in ("lr", "initial_lr", "max_lr", "min_lr"):
        if key in group:
            kept[key] = group[key] if factor == 1.0 else group[key] * factor
    return {"params": list(group["params"]), **kept}


def replaced(configured: Any, old: torch.optim.Optimizer, root: ROOT) -> Any:
    """Return what `configure_optimizers` returned with `root` in the place of `old`.

    Raises:
        ValueError: If a scheduler cannot be handed over.
    """
    if configured is old:
        return root
    if isinstance(configured, Mapping):
        return {key: replaced(value, old, root) for key, value in configured.items()}
    if isinstance(configured, list | tuple):
        return type(configured)([replaced(part, old, root) for part in configured])
    if hasattr(configured, "step") and not _hand_over(configured, old, root, set()):
        raise ValueError(
            f"ROOTMixin cannot hand the scheduler {type(configured).__name__} over to ROOT, "
            "because it does not hold its optimizer; return a ROOT with a scheduler for it from "
            "`configure_optimizers`"
        )
    return configured


def schedulers_in(configured: Any) -> list[str]:
    """Return the class names of the schedulers in what `configure_optimizers` returned."""
    if isinstance(configured, Mapping):
        return [name for value in configured.values() for name in schedulers_in(value)]
    if isinstance(configured, list | tuple):
        return [name for part in configured for name in schedulers_in(part)]
    is_scheduler = hasattr(configured, "step") and hasattr(configured, "state_dict")
    own = is_scheduler and not isinstance(configured, torch.optim.Optimizer)
    return [type(configured).__name__] if own else []


def _hand_over(holder: Any, old: torch.optim.Optimizer, root: ROOT, seen: set[int]) -> bool:
    """Give a scheduler, and those in it, another optimizer; tell whether it had the old one."""
    if id(holder) in seen or not hasattr(holder, "__dict__"):
        return False
    seen.add(id(holder))
    found = False
    for name, value in list(vars(holder).items()):
        if value is old:
            setattr(holder, name, root)
            found = True
        for inner in value if isinstance(value, list | tuple) else [value]:
            if isinstance(inner, LRScheduler) or hasattr(inner, "optimizer"):
                found |= _hand_over(inner, old, root, seen)
    if found and isinstance(holder, LRScheduler):
        _count_steps(root)
        factor = _factor(old, root.defaults["lr"])
        for name in ("base_lrs", "max_lrs"):
            if factor != 1.0 and hasattr(holder, name):
                setattr(holder, name, [rate * factor for rate in getattr(holder, name)])
    return found


def _count_steps(root: ROOT) -> None:
    """Let schedulers see that ROOT steps, as they do with an optimizer that they were made for."""
    if hasattr(root.step, "_wrapped_by_lr_sched"):
        return
    before = [{key: group.get(key) for key in ("lr", "initial_lr")} for group in root.param_groups]
    LambdaLR(root, lambda _: 1.0)  # torch's own way, for which there is no function
    for group, values in zip(root.param_groups, before, strict=True):
        group.update({key: value for key, value in values.items() if value is not None})


def account(
    old: torch.optim.Optimizer, root: ROOT, schedulers: list[str], where: str, *, advise: bool
) -> str:
    """Return the message about what was kept, what changed and what to do otherwise."""
    kept = [
        f"lr={_distinct(g.get('max_lr', g.get('initial_lr', g['lr'])) for g in root.param_groups)}"
    ]
    for key in KEPT:
        if key in old.defaults and any(group[key] for group in root.param_groups):
            kept.append(f"{key}={_distinct(group[key] for group in root.param_groups)}")
    others = old.defaults.keys() - {"lr", *KEPT, *_WITHOUT_EFFECT}
    changed = [f"{key}={old.defaults[key]}" for key in sorted(others) if old.defaults[key]]
    decoupled = "AdamW" in type(old).__name__ or old.defaults.get("decoupled_weight_decay")
    if any(group.get("weight_decay") for group in old.param_groups) and not decoupled:
        changed.append("weight_decay as a part of the gradient (it is decoupled now)")
    groups = len(root.param_groups)
    rate = float(root.defaults["lr"])
    text = [
        f"ROOTMixin trains with ROOT in place of {type(old).__name__} from `{where}`. Kept: "
        f"{sum(len(group['params']) for group in root.param_groups)} parameters in {groups} "
        f"group{'s' if groups > 1 else ''}, {', '.join([*kept, *(schedulers or ['no schedule'])])}."
    ]
    if changed:
        text.append(f"Not kept: {', '.join(changed)}.")
    if advise:
        text.append(
            "On small models and in short runs ROOT's best learning rate was 2 to 4 times AdamW's: "
            f'try root_options = {{"lr": {2 * rate:g}}} or {{"lr": {4 * rate:g}}}, which scales '
            "all groups."
        )
    text.append("To decide more, return a ROOT there")
    return " ".join(text)


def _distinct(values: Iterable[Any]) -> str:
    """Write values without repeats; learning rates may be tensors."""
    plain = (f"{float(v):g}" if isinstance(v, float | torch.Tensor) else str(v) for v in values)
    return ", ".join(dict.fromkeys(plain))
