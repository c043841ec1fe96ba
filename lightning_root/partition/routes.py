"""The vocabulary of a partition: two roles, and a route for each parameter."""

from dataclasses import dataclass
from typing import Literal

from lightning_root.partition.views import MatrixView

Role = Literal["root", "adamw"]
"""Who updates a parameter: the orthogonalized update, or AdamW."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """Where one parameter goes, and why.

    Args:
        name: Fully qualified name, without the components that wrappers put in (`torch.compile`,
            activation checkpointing, FSDP).
        shape: Shape of the whole parameter, also where it is sharded.
        role: "root" for hidden matrices, "adamw" for everything else.
        reason: Why, in a few words; for people, not to be parsed.
        view: How the parameter is cut into matrices. None takes it whole, flattened to
            (shape[0], rest).
        suggestion: A rule that would change a decision that is not certain, to be pasted into
            `rules`, such as `"*.bank": {"stack": 1}`; None when there is no doubt.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    reason: str
    view: MatrixView | None = None
    suggestion: str | None = None

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Shapes of the matrices that are orthogonalized one by one; none for AdamW."""
        return (self.view or MatrixView()).matrices(self.shape) if self.role == "root" else []
