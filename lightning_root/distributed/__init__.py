"""Sharing of the work on matrices among ranks, and the collectives that it takes."""

from lightning_root.distributed.collectives import gather, reshard
from lightning_root.distributed.ownership import (
    COSTS,
    Cost,
    CostForm,
    Matrices,
    OwnershipPlan,
    Piece,
    Placement,
    Shape,
    bytes_bound,
    cheapest_operations,
    matrices_in,
    plan_ownership,
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
