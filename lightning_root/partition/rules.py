"""The user's rules: globs on names, first match wins, a rule that matches nothing is an error.

A rule gives a role, "root" or "adamw", or says how to cut a parameter into matrices: a `MatrixView`
or a mapping with its fields, where numbers stand for equal blocks, and perhaps `role`. A mapping
may have `lr_scale` and `weight_decay` too, or these alone. A single name stands for the rules of a
family whose modules do not tell.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

from lightning_root.partition.parameters import ModelParameter, ParameterUse
from lightning_root.partition.routes import Role
from lightning_root.partition.views import MatrixView

RuleValue = Role | Mapping[str, Any] | MatrixView
Rules = Mapping[str, RuleValue] | Sequence[tuple[str, RuleValue]] | str
"""Globs on parameter names with what each gives, first match wins; or the name of a family."""

# Few families need rules: types, uses and names decide for GPT-2, Llama, BERT, T5, ViT, Swin,
# ConvNeXt, Mixtral, Mamba, Whisper, CLIP and the rest of the architectures that the tests build.
# Here are those that keep hidden matrices in raw 3-D parameters.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    # Attention weights of shape (width, heads, head size): into the heads, and `o` out of them.
    "xlnet": {"*.rel_attn.[qkvr]": {"transposed": True}, "*.rel_attn.o": "root"},
    "funnel": {"*.attention.r_kernel": {"transposed": True}},
}

_VIEW_KEYS = ("rows", "columns", "stack", "transposed")

Blocks = int | tuple[int, ...] | None  # number of equal blocks, sizes, or one block


class Rule(NamedTuple):
    """A glob on whole names, the role of what it matches, and the user's view of it, if any."""

    pattern: str
    role: Role | None  # None leaves it
    spec: Mapping[str, Any] | None = None  # fields of a view, with numbers of equal blocks
    lr_scale: float | None = None  # factor on the learning rate of its group
    weight_decay: float | None = None  # in the place of its group's

    def matches(self, use: ParameterUse) -> bool:
        """Tell whether the pattern covers the name of a parameter in one use."""
        return fnmatchcase(use.name, self.pattern)

    def resolve_view(self, use: ParameterUse) -> MatrixView | None:
        """Return the user's view of a parameter, None when it is taken whole; refuse a misfit."""
        assert self.spec is not None
        stack = self.spec.get("stack", 0)
        try:
            MatrixView(stack=stack).check(use.shape)
            extents = {"rows": use.shape[stack], "columns": math.prod(use.shape[stack + 1 :])}
            sizes = {n: _resolve_sizes(n, self.spec.get(n), extents[n]) for n in extents}
            view = MatrixView(**{**self.spec, **sizes})
            view.check(use.shape)
        except ValueError as error:
            raise ValueError(
                f"`rules` must fit what they match, but {self.pattern!r} cannot cut "
                f"{use.name!r} of shape {use.shape}: {error}"
            ) from None
        return None if view == MatrixView() else view


def parse_rules(rules: Rules | None) -> tuple[Rule, ...]:
    """Check the user's rules, raising TypeError or ValueError, and bring them into one form."""
    if isinstance(rules, str):
        if rules not in PRESETS:
            raise ValueError(
                "`rules` must be globs with their rules or the name of a preset "
                f"{sorted(PRESETS)}, got {rules!r}; most families need none, "
                "`print(partition_parameters(model))` shows it"
            )
        rules = PRESETS[rules]
    pairs: object = rules.items() if isinstance(rules, Mapping) else rules or ()
    if not isinstance(pairs, Iterable):
        raise _malformed(pairs)
    return tuple(_parse_rule(pair) for pair in pairs)


def check_rules_match(rules: Sequence[Rule], parameters: Sequence[ModelParameter]) -> None:
    """Raise ValueError if a rule matches nothing, naming the nearest parameters."""
    # Frozen parameters count, so that one set of rules serves before and after unfreezing.
    uses = [use for parameter in parameters for use in parameter.uses]
    for rule in rules:
        if any(map(rule.matches, uses)):
            continue
        known, bare = [use.name for use in uses], rule.pattern.replace("*", "")
        nearest = get_close_matches(bare, known, n=3, cutoff=0.0)
        raise ValueError(
            f"`rules` must each match a parameter, but {rule.pattern!r} matches none; the nearest "
            f"names are {', '.join(map(repr, nearest))} (a pattern must cover the whole name)."
        )


def first_match(rules: Sequence[Rule], parameter: ModelParameter) -> Rule | None:
    """Return the first rule that matches one of a parameter's names; refuse one that misfits."""
    if not (parameter.tensor.is_floating_point() or parameter.tensor.is_complex()):
        return None  # whole numbers, such as quantized weights, never have a gradient
    for rule in rules:
        for use in filter(rule.matches, parameter.uses):
            if rule.role == "root" and (len(use.shape) < 2 or use.dtype.is_complex):
                numbers = "real " if use.dtype.is_complex else ""
                raise ValueError(
                    f"`rules` may send only {numbers}matrices to 'root', but {rule.pattern!r} "
                    f"matches {use.name!r} of shape {use.shape} and {use.dtype}; narrow the "
                    f"pattern, or put ({use.name!r}, 'adamw') before it."
                )
            return rule
    return None


def _parse_rule(pair: object) -> Rule:
    """Check one rule."""
    match pair:
        case (str() as pattern, "root" | "adamw" as role):
            return Rule(pattern, role)
        case (str() as pattern, MatrixView() as view):
            return Rule(pattern, "root", asdict(view))
        case (str() as pattern, Mapping() as cut):
            return _parse_cut(pattern, cut)
        case (str() as pattern, role):
            raise ValueError(
                f"`rules` must give the role 'root' or 'adamw', or a cut such as {{'rows': 3}}, "
                f"got {role!r} for {pattern!r}."
            )
    raise _malformed(pair)


def _parse_cut(pattern: str, cut: Mapping[Any, Any]) -> Rule:
    """Check a rule that says how to cut."""
    view = dict(cut)
    rates = [_parse_rate(pattern, key, view.pop(key, None)) for key in ("lr_scale", "weight_decay")]
    if not view and rates != [None, None]:
        return Rule(pattern, None, None, *rates)
    role = view.pop("role", "root")
    if role not in ("root", "adamw"):
        got = f"got {role!r} for {pattern!r}"
        raise ValueError(f"`rules` must give the role 'root' or 'adamw', {got}.")
    if role == "adamw" and view:
        raise ValueError(
            f"`rules` may cut only what goes to 'root', but {pattern!r} gives the role 'adamw' "
            f"and {', '.join(map(repr, view))}; leave one of them out."
        )
    try:
        return Rule(pattern, role, _parse_view(view) if view else None, *rates)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`rules` for {pattern!r}: {error}") from None


def _parse_rate(pattern: str, key: str, value: object) -> float | None:
    """Check a rate of a rule."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
        raise ValueError(
            f"`rules` must give a finite number >= 0 as `{key}`, got {value!r} for {pattern!r}."
        )
    return float(value)


def _parse_view(data: Mapping[Any, Any]) -> dict[str, Any]:
    """Check the plain data of a view."""
    if unknown := [key for key in data if key not in _VIEW_KEYS]:
        keys = ", ".join(map(repr, _VIEW_KEYS))
        rates = "'lr_scale', 'weight_decay'"
        raise ValueError(f"a cut has the keys 'role', {keys}, {rates}, got {unknown[0]!r}.")
    blocks = {name: _parse_blocks(name, data.get(name)) for name in ("rows", "columns")}
    MatrixView(**{key: data[key] for key in ("stack", "transposed") if key in data})  # checks them
    return {**data, **blocks}


def _parse_blocks(name: str, value: object) -> Blocks:
    """Check a number of equal blocks or a list of sizes."""
    match value:
        case None:
            return None
        case bool():
            pass
        case int() if value > 0:
            return value
        case int():
            raise ValueError(f"`{name}` must be at least 1 block, got {value}.")
        case Sequence() if not isinstance(value, str):
            MatrixView(rows=tuple(value)) if name == "rows" else MatrixView(columns=tuple(value))
            return tuple(value)
    raise TypeError(f"`{name}` must be a number of equal blocks or a list of sizes, got {value!r}.")


def _resolve_sizes(name: str, blocks: Blocks, extent: int) -> tuple[int, ...] | None:
    """Turn a number of equal blocks into sizes."""
    if not isinstance(blocks, int):
        return blocks
    if extent % blocks:
        raise ValueError(
            f"`{name}` must divide the {extent} {name} into equal blocks, got {blocks}; "
            "list the sizes of unequal ones."
        )
    return (extent // blocks,) * blocks if blocks > 1 else None


def _malformed(got: object) -> TypeError:
    """Return the error about something that is no rule."""
    return TypeError(
        "`rules` must be a mapping or a list of pairs (pattern, role), such as "
        f"[('blocks.*.weight', 'root')], got {got!r}."
    )
