"""The user's rules: globs on names, first match wins, a rule that matches nothing is an error.

A rule gives a role, "root" or "adamw", or says how to cut a parameter into matrices: a mapping with
`rows` and `columns` (sizes of blocks, or a number of equal blocks), `stack` (leading dimensions
that count matrices), `transposed` and `role` ("root" unless it is given), or a `MatrixView`. A
single name stands for the rules of a family, see `presets`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from lightning_root.partition.places import Entry, Place
from lightning_root.partition.presets import preset
from lightning_root.partition.routes import Role
from lightning_root.partition.spec import CutSpec
from lightning_root.partition.views import MatrixView

RuleValue = Role | Mapping[str, Any] | MatrixView
Rules = Mapping[str, RuleValue] | Sequence[tuple[str, RuleValue]] | str
"""Globs on parameter names with what each gives, first match wins; or the name of a family."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A glob on whole names, the role that it gives, and how to cut what it matches.

    Args:
        pattern: The glob.
        role: The role of what matches.
        cut: The user's cut; None leaves it to what the module tells.
    """

    pattern: str
    role: Role
    cut: CutSpec | None = None

    def view(self, place: Place) -> MatrixView | None:
        """Return the user's cut of a parameter, None when it is taken whole.

        Raises:
            ValueError: When the cut does not fit the parameter's shape.
        """
        assert self.cut is not None
        try:
            return self.cut.resolve(place.shape)
        except ValueError as error:
            raise ValueError(
                f"`rules` must fit what they match, but {self.pattern!r} cannot cut "
                f"{place.name!r} of shape {place.shape}: {error}"
            ) from None


def parse_rules(rules: Rules | None) -> tuple[Rule, ...]:
    """Check the user's rules and bring them into one form.

    Raises:
        TypeError: When `rules` is not a mapping or a sequence of pairs, or a size no integer.
        ValueError: When a preset, a role or the key of a cut is unknown, or a size is not positive.
    """
    if isinstance(rules, str):
        rules = preset(rules)
    pairs: object = rules.items() if isinstance(rules, Mapping) else rules or ()
    if not isinstance(pairs, Iterable):
        raise _malformed(pairs)
    return tuple(_parse(pair) for pair in pairs)


def _parse(pair: object) -> Rule:
    """Check one rule."""
    match pair:
        case (str() as pattern, "root" | "adamw" as role):
            return Rule(pattern=pattern, role=role)
        case (str() as pattern, MatrixView() as view):
            return Rule(pattern=pattern, role="root", cut=CutSpec.of_view(view))
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
    sizes = {key: value for key, value in cut.items() if key != "role"}
    match cut.get("role", "root"):
        case "root" | "adamw" as role:
            pass
        case other:
            raise ValueError(
                f"`rules` must give the role 'root' or 'adamw', got {other!r} for {pattern!r}."
            )
    if role == "adamw" and sizes:
        raise ValueError(
            f"`rules` may cut only what goes to 'root', but {pattern!r} gives the role 'adamw' "
            f"and {', '.join(map(repr, sizes))}; leave one of them out."
        )
    try:
        return Rule(pattern=pattern, role=role, cut=CutSpec.parse(sizes) if sizes else None)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`rules` for {pattern!r}: {error}") from None


def _malformed(got: object) -> TypeError:
    """Return the error about something that is no rule."""
    return TypeError(
        "`rules` must be a mapping or a list of pairs (pattern, role), such as "
        f"[('blocks.*.weight', 'root')], got {got!r}."
    )


def check_alive(rules: Sequence[Rule], entries: Iterable[Entry]) -> None:
    """Refuse rules that match no parameter: a typo must not pass for a decision.

    A match counts also when the parameter is frozen or an earlier rule has taken it, so that one
    set of rules serves before and after unfreezing.

    Raises:
        ValueError: When a rule matches nothing; names the nearest parameters.
    """
    known = [place.name for entry in entries for place in entry.places]
    for rule in rules:
        if any(fnmatchcase(name, rule.pattern) for name in known):
            continue
        bare = rule.pattern.replace("*", "")
        nearest = get_close_matches(bare, known, n=3, cutoff=0.0)
        raise ValueError(
            f"`rules` must each match a parameter, but {rule.pattern!r} matches none; the nearest "
            f"names are {', '.join(map(repr, nearest))} (a pattern must cover the whole name)."
        )


def apply_rules(rules: Sequence[Rule], entry: Entry) -> Rule | None:
    """Return the first rule that matches one of a parameter's names.

    Raises:
        ValueError: When it sends something to "root" that is not a matrix.
    """
    for rule in rules:
        for place in entry.places:
            if not fnmatchcase(place.name, rule.pattern):
                continue
            if rule.role == "root" and len(place.shape) < 2:
                raise ValueError(
                    f"`rules` may send only matrices to 'root', but {rule.pattern!r} matches "
                    f"{place.name!r} of shape {place.shape}; narrow the pattern, or put "
                    f"({place.name!r}, 'adamw') before it."
                )
            return rule
    return None
