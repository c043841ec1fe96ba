"""The vocabulary of a partition: two roles, and a route for each parameter."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["root", "adamw"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Where one parameter goes, and why.

    Args:
        name: Fully qualified name, without the components that wrappers put in (`torch.compile`,
            activation checkpointing, FSDP).
        shape: Shape of the whole parameter, also where it is sharded.
        role: "root" for a hidden matrix, "adamw" for everything else.
        reason: Why, in a few words; for people, not to be parsed.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    reason: str
