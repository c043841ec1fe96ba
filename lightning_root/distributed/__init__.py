"""How the work on matrices is shared, and how sharded ones are brought together and handed back."""

from lightning_root.distributed.exchange import (
    all_ranks_agree,
    gather,
    is_sharded,
    reshard,
    scatter_like,
)
from lightning_root.distributed.ownership import OwnershipPlan, plan_ownership
from lightning_root.distributed.ownership_cost import (
    COSTS,
    Cost,
    CostForm,
    Shape,
    cheapest_operations,
    standard_operations,
)
from lightning_root.distributed.ownership_matrices import Matrices, Piece, matrices_in
from lightning_root.distributed.ownership_traffic import Placement, bytes_bound
from lightning_root.distributed.replicas import (
    Bucket,
    Matrix,
    Replicas,
    cut_by_size,
    empty_bucket,
    slots,
)
from lightning_root.distributed.shards import (
    Exchange,
    RowShards,
    overlap,
    pieces_of,
    row_shards,
)

__all__ = [
    "COSTS",
    "Bucket",
    "Cost",
    "CostForm",
    "Exchange",
    "Matrices",
    "Matrix",
    "OwnershipPlan",
    "Piece",
    "Placement",
    "Replicas",
    "RowShards",
    "Shape",
    "all_ranks_agree",
    "bytes_bound",
    "cheapest_operations",
    "cut_by_size",
    "empty_bucket",
    "gather",
    "is_sharded",
    "matrices_in",
    "overlap",
    "pieces_of",
    "plan_ownership",
    "reshard",
    "row_shards",
    "scatter_like",
    "slots",
    "standard_operations",
]
