"""Rules for the options of a parameter group, with one style of message."""

import math
import re
from collections.abc import Collection, Mapping, Sequence, Set
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeGuard, cast, get_args

import torch
from torch import Tensor

from lightning_root.coefficients import COEFFICIENT_NAMES, lookup
from lightning_root.coefficients.lookup import OTHERWISE, schedules_from_file
from lightning_root.functional.outliers import QUANTILE_MODES
from lightning_root.functional.scaling import ADJUST_LR_NAMES
from lightning_root.kernels import FORMS, KERNEL_OPTIONS
from lightning_root.partition import Kind

OrthogonalizationDtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float64"]

MomentumDtype: TypeAlias = Literal["auto", "bfloat16", "float8"]
"""float32 (float64 for float64 parameters), half the bytes of it, or a quarter."""

Normalize: TypeAlias = Literal["none", "neuron"]
"""Whether updates of matrices are normalized neuron by neuron; see `stages.normalize`."""

WeightDecayMode: TypeAlias = Literal["decoupled", "cautious"]
"""Whether all entries decay, or those that the update moves towards zero."""

Precondition: TypeAlias = Literal["none", "covariance", "soap", "auto"]
"""Way to precondition the momentum before it is orthogonalized; see `stages.precondition`."""

PreconditionSides: TypeAlias = Literal["smaller", "both", "auto"]
"""Which sides of a matrix are preconditioned."""

PreconditionSource: TypeAlias = Literal["gradient", "momentum"]
"""Tensor of which the covariances are."""

ShareDtype: TypeAlias = Literal["auto", "bfloat16"]
"""float32 (float64 for float64 parameters), or half the bytes."""

_RATES: Final = {
    "lr_scales": None,
    "weight_decays": None,
    "weight_decay_mode": "decoupled",
    "gradient_clip_entries": None,
}

PRECONDITION_OPTIONS: Final = {
    "precondition": "none",
    "precondition_sides": "auto",
    "precondition_source": "gradient",
    "precondition_every": 10,
    "precondition_statistics_every": None,
    "precondition_beta": 0.95,
    "precondition_exponent": None,
    "precondition_damping": 1e-6,
    "precondition_max_dim": 4096,
}
"""Of `stages.precondition`, and what they are where nobody has chosen."""

PLANNED_OPTIONS: Final = (
    *("coefficients", "ns_steps", "adjust_lr_fn", "ns_dtype", "ns_form", "kernels", "normalize"),
    *("outlier_quantile", "outlier_quantile_mode", "momentum_dtype", "share_dtype", "capturable"),
    *_RATES,
    *PRECONDITION_OPTIONS,
)
"""Plans rest on these, which are looked at once; the others are read in every step."""

READ_OPTIONS: Final = (
    *("lr", "weight_decay", "momentum", "nesterov", "betas", "eps"),
    *("maximize", "foreach", "fused"),
)
"""Steps read these; when one changes its type, as by hand, options are checked anew."""

ADDED_OPTIONS: Final = {"normalize": "none", **_RATES, **PRECONDITION_OPTIONS}
"""Younger than the oldest checkpoints that load, and what they are where they are off. A saved
state leaves them out then (those of preconditioning where that is off): distributed checkpoints
load nothing that a file does not have."""

_CHOICES: Final[Mapping[str, Sequence[object]]] = {
    "adjust_lr_fn": (*ADJUST_LR_NAMES, None),
    "ns_dtype": get_args(OrthogonalizationDtype),
    "ns_form": ("auto", *FORMS),
    "outlier_quantile_mode": QUANTILE_MODES,
    "kernels": KERNEL_OPTIONS,
    "momentum_dtype": get_args(MomentumDtype),
    "normalize": get_args(Normalize),
    "share_dtype": get_args(ShareDtype),
    "weight_decay_mode": get_args(WeightDecayMode),
    "precondition": get_args(Precondition),
    "precondition_sides": get_args(PreconditionSides),
    "precondition_source": get_args(PreconditionSource),
}

MAX_STEPS: Final = 100
"""Of the iteration. Nothing is gained beyond a tenth of it, and a slip of the hand would hang."""


_SCALARS: Final = tuple({*READ_OPTIONS, *PLANNED_OPTIONS} - {"lr", "betas"})
"""Options that are one value each, but for `lr`, which may stay a tensor."""


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError for a wrong option of a group; make the others plain."""
    # Numbers and lists of other libraries become Python's: state dicts load with `weights_only`.
    group = cast("dict[str, Any]", options)
    group |= {name: plain_value(group[name]) for name in _SCALARS}
    if not isinstance(group["lr"], Tensor):
        group["lr"] = plain_value(group["lr"])
    if is_list(group["betas"]):
        betas = map(plain_value, group["betas"])
        group["betas"] = tuple(float(beta) if type(beta) is int else beta for beta in betas)
    _check_lr(options["lr"])
    _check_number("weight_decay", options["weight_decay"], "decoupled decay; 0.1 is the default")
    _check_number("momentum", options["momentum"], "0.95 is the paper's value", below=1.0)
    _check_number("eps", options["eps"], "1e-8 is the default")
    _check_betas(options["betas"])
    _check_quantile(options["outlier_quantile"])
    for name, choices in _CHOICES.items():
        if options[name] not in choices:
            raise ValueError(f"`{name}` must be one of {list(choices)}, got {options[name]!r}")
    for name in ("lr_scales", "weight_decays"):
        group[name] = _checked_by_kind(name, options[name])
    if (entries := options["gradient_clip_entries"]) is not None:
        _check_number("gradient_clip_entries", entries, "4 is usual, None switches it off")
        if entries == 0.0:
            raise ValueError("`gradient_clip_entries` must be greater than 0, got 0; 4 is usual")
    _check_preconditioning(options)
    _check_coefficients(options["coefficients"], options["ns_steps"])
    for name in ("nesterov", "maximize", "capturable"):
        if not isinstance(options[name], bool):
            raise TypeError(f"`{name}` must be True or False, got {options[name]!r}")
    for name in ("foreach", "fused"):
        if not isinstance(options[name], bool | None):
            raise TypeError(f"`{name}` must be True, False or None, got {options[name]!r}")
    if options["foreach"] and options["fused"]:
        raise ValueError("`foreach` and `fused` exclude each other; leave one of them None")
    if options["foreach"] and isinstance(options["lr"], Tensor) and not options["capturable"]:
        raise ValueError(
            "`foreach=True` needs a number as `lr`, got a tensor; leave `foreach` None, or pass "
            "`lr.item()`"
        )
    if options["capturable"] and (options["foreach"] or options["fused"] is False):
        raise ValueError(
            "`capturable=True` needs torch's fused AdamW; leave `foreach` and `fused` None"
        )


def plain_coefficients(coefficients: object, steps: object) -> Any:
    """Return what a group keeps: a name, or tuples of floats, in a dict where shapes differ."""
    # A JSON file is read here, once, so that a state dict does not depend on it.
    if isinstance(coefficients, Path) or (
        isinstance(coefficients, str) and coefficients.endswith(".json")
    ):
        try:
            by_shape = schedules_from_file(coefficients, checked_steps(steps))
        except ValueError as error:
            raise ValueError(f"`coefficients`: {error}") from None
        return plain_coefficients(by_shape, steps)
    if isinstance(coefficients, Mapping):
        return {key: plain_coefficients(value, steps) for key, value in coefficients.items()}
    if not is_list(coefficients):
        return plain_value(coefficients)
    return tuple(
        tuple(map(_plain_number, row)) if is_list(row) else _plain_number(row)
        for row in coefficients
    )


def is_list(value: object) -> TypeGuard[Collection[Any]]:
    """Return whether a value has a length and an order: a list, or what stands for one."""
    # OmegaConf's lists are sequences and no lists; arrays and tensors are neither.
    unordered = isinstance(value, str | bytes | Mapping | Set)
    return isinstance(value, Collection) and not unordered and getattr(value, "shape", True) != ()


def plain_value(value: Any) -> Any:
    """Return a number or text of NumPy, or a tensor of one element, as Python's."""
    if getattr(value, "size", None) == 1 or (isinstance(value, Tensor) and value.numel() == 1):
        value = value.item()
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _plain_number(value: object) -> float:
    plain = plain_value(value)
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        raise TypeError(f"`coefficients` must be triples (a, b, c) of numbers, got {value!r} there")
    return float(plain)


def checked_steps(steps: object) -> int:
    """Return `ns_steps`, or raise ValueError unless it is a whole number in its range."""
    steps = plain_value(steps)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"`ns_steps` must be a whole number >= 1, got {steps!r}; 5 is the default")
    if steps > MAX_STEPS:
        raise ValueError(f"`ns_steps` must be at most {MAX_STEPS}, got {steps}; 5 is the default")
    return steps


def iteration_dtype(name: OrthogonalizationDtype, direction: Tensor) -> torch.dtype:
    """Return the dtype of the iteration: bfloat16 for "auto" where devices are made for it."""
    # Those are CUDA devices, and NPUs from Ascend 910B on; elsewhere it is float32, and float64 for
    # float64 parameters. CPUs without bfloat16 instructions are five times slower in it.
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}[
            name
        ]
    if direction.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if _made_for_bfloat16(direction.device) else torch.float32


def _made_for_bfloat16(device: torch.device) -> bool:
    if device.type == "npu":
        return bool(torch.get_device_module(device).is_bf16_supported())
    return device.type == "cuda"


def _check_lr(lr: object) -> None:
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(
                f"`lr` must have one element when it is a tensor, got {tuple(lr.shape)}"
            )
        if not lr.is_floating_point():
            raise TypeError(
                f"`lr` must be a floating point tensor when it is one, got {lr.dtype}; schedulers "
                "would round it"
            )
        lr = lr.item() if lr.device.type == "cpu" else 0.0  # elsewhere its value stays where it is
    _check_number("lr", lr, "1e-3 is the default")


def _check_number(name: str, value: object, hint: str, below: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"`{name}` must be a number, got {value!r}; {hint}")
    if not 0.0 <= value < below:
        rule = "finite and >= 0" if below == math.inf else f"in [0, {below:g})"
        raise ValueError(f"`{name}` must be {rule}, got {value}; {hint}")


def _checked_by_kind(name: str, values: object) -> dict[str, float] | None:
    """Return numbers by kind of parameter, None for none; raise for anything else."""
    if values is None:
        return None
    kinds = list(get_args(Kind))
    if not isinstance(values, Mapping):
        raise TypeError(f"`{name}` must map kinds {kinds} to numbers, got {values!r}")
    for kind, value in values.items():
        if kind not in kinds:
            raise ValueError(
                f"`{name}` must have kinds of parameters as keys, {kinds}, got {kind!r}; for names "
                "use `rules`"
            )
        _check_number(
            name, plain_value(value), "1 changes nothing" if name[0] == "l" else "0 is none"
        )
    return {kind: float(plain_value(value)) for kind, value in values.items()} or None


def _check_preconditioning(options: Mapping[str, Any]) -> None:
    whole_numbers = ("precondition_every", "precondition_statistics_every", "precondition_max_dim")
    for name in whole_numbers:
        value, default = options[name], PRECONDITION_OPTIONS[name]
        if value is None and default is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"`{name}` must be a whole number >= 1, got {value!r}; {default} is the default"
            )
    _check_number("precondition_beta", options["precondition_beta"], "0.95 is the default", 1.0)
    damping, exponent = options["precondition_damping"], options["precondition_exponent"]
    _check_number("precondition_damping", damping, "1e-6 is the default", 1.0)
    if damping < 1e-7:
        raise ValueError(
            f"`precondition_damping` must be at least 1e-7, got {damping}: below it float32 cannot "
            "tell eigenvalues from rounding; 1e-6 is the default"
        )
    if exponent is not None:
        hint = "None is the default, 1/4 for two sides and 1/2 for one"
        _check_number("precondition_exponent", exponent, hint)
        if not 0.0 < exponent <= 1.0:
            raise ValueError(f"`precondition_exponent` must be in (0, 1], got {exponent}; {hint}")
    if options["precondition"] != "none" and options["capturable"]:
        raise ValueError(
            "`precondition` needs the host to count steps, and `capturable=True` keeps it out; "
            'leave one of them off: `precondition="none"` or `capturable=False`'
        )


def _check_betas(betas: object) -> None:
    if not isinstance(betas, tuple) or len(betas) != 2:
        raise TypeError(f"`betas` must be two numbers, got {betas!r}; (0.9, 0.95) is the default")
    for beta in betas:
        _check_number("betas", beta, "(0.9, 0.95) is the default", below=1.0)


def _check_quantile(quantile: object) -> None:
    if quantile is None or quantile == "auto":
        return
    hint = (
        '0.9 is the paper\'s value, "auto" clips where there are outliers, None switches the '
        "threshold off"
    )
    if isinstance(quantile, bool) or not isinstance(quantile, int | float):
        raise TypeError(
            f'`outlier_quantile` must be a number, "auto" or None, got {quantile!r}; {hint}'
        )
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"`outlier_quantile` must be in (0, 1], got {quantile}; {hint}")


def _check_coefficients(coefficients: object, steps: object) -> None:
    checked_steps(steps)
    if not isinstance(coefficients, str | Sequence | Mapping):
        raise TypeError(
            f"`coefficients` must be one of {list(COEFFICIENT_NAMES)}, a JSON file, a triple "
            f"(a, b, c), one triple per step, or a mapping from shapes, got {coefficients!r}"
        )
    if isinstance(coefficients, Mapping):
        for key, schedule in coefficients.items():
            if key == OTHERWISE:
                _check_coefficients(schedule, steps)
            else:
                shape = _shape(key)
                _check_schedule(schedule, steps, f" for {key}")
                lookup(shape, coefficients, steps)  # type: ignore[arg-type]  # it checks bounds
    elif isinstance(coefficients, str):
        lookup((64, 64), coefficients, steps)  # type: ignore[arg-type]  # it checks the name
    else:
        _check_schedule(coefficients, steps, "")
        lookup((64, 64), coefficients, steps)  # type: ignore[arg-type]  # it checks bounds


def _check_schedule(schedule: object, steps: object, where: str) -> None:
    if not isinstance(schedule, tuple | list):
        raise TypeError(
            f"`coefficients` must be one triple (a, b, c) or one per step{where}, got {schedule!r}"
        )
    several = bool(schedule) and isinstance(schedule[0], tuple | list)
    if several and len(schedule) != steps:
        raise ValueError(
            f"`coefficients` holds {len(schedule)} triples, one per step, but `ns_steps` is "
            f"{steps}; set it to {len(schedule)}"
        )


def _shape(key: object) -> tuple[int, int]:
    """Return the shape that a key of a coefficient mapping stands for."""
    match = re.fullmatch(r"(\d+)x(\d+)", key) if isinstance(key, str) else None
    if match is None or int(match[1]) > int(match[2]):
        raise ValueError(
            '`coefficients` must have as keys "otherwise" or shapes like "768x3072", '
            f"smaller size first, got {key!r}"
        )
    return int(match[1]), int(match[2])
