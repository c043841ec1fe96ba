"""The user's rules: globs on names, first match wins, a rule that matches nothing is an error."""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from lightning_root.partition.places import Entry
from lightning_root.partition.routes import Role

Rules = Mapping[str, Role] | Sequence[tuple[str, Role]]


class Rule(NamedTuple):
    """A glob on whole names and the role that it gives."""

    pattern: str
    role: Role


def parse_rules(rules: Rules | None) -> tuple[Rule, ...]:
    """Check the user's rules and bring them into one form.

    Raises:
        TypeError: When `rules` is not a mapping or a sequence of pairs.
        ValueError: When a role is unknown.
    """
    pairs: object = rules.items() if isinstance(rules, Mapping) else rules or ()
    if not isinstance(pairs, Iterable):
        raise _malformed(pairs)
    return tuple(_parse(pair) for pair in pairs)


def _parse(pair: object) -> Rule:
    """Check one rule."""
    match pair:
        case (str() as pattern, "root" | "adamw" as role):
            return Rule(pattern, role)
        case (str() as pattern, role):
            raise ValueError(
                f"`rules` must give the role 'root' or 'adamw', got {role!r} for {pattern!r}."
            )
    raise _malformed(pair)


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
