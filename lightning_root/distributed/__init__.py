"""Sharing of the work on matrices among ranks, and the collectives that it takes."""

from lightning_root.distributed.collectives import gather, reshard
from lightning_root.distributed.ownership import (
    Matrices,
    OwnershipPlan,
    Piece,
    matrices_in,
    plan_ownership,
)
from lightning_root.distributed.ownership_cost import (
    COSTS,
    Cost,
    CostForm,
    Placement,
    Shape,
    bytes_bound,
    cheapest_operations,
    standard_operations,
)
from lightning_root.distributed.replicas import Replicas
from lightning_root.distributed.state_owners import StateOwners

__all__ = [
    "COSTS",
    "Cost",
    "CostForm",
    "Matrices",
    "OwnershipPlan",
    "Piece",
    "Placement",
    "Replicas",
    "Shape",
    "StateOwners",
    "bytes_bound",
    "cheapest_operations",
    "gather",
    "matrices_in",
    "plan_ownership",
    "reshard",
    "standard_operations",
]
