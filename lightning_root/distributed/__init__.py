"""How the work on matrices is shared, and how sharded ones are brought together and handed back."""

from lightning_root.distributed.exchange import (
    all_ranks_agree,
    gather,
    is_sharded,
    local_part,
    placed_like,
    reshard,
    scatter_like,
    shard_like,
)
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
from lightning_root.distributed.replicas import (
    Bucket,
    Matrix,
    Replicas,
    cost_on,
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
from lightning_root.distributed.state_owners import Kind, Parts, StateOwners
from lightning_root.distributed.streams import Receive, Stream, send_streams

__all__ = [
    "COSTS",
    "Bucket",
    "Cost",
    "CostForm",
    "Exchange",
    "Kind",
    "Matrices",
    "Matrix",
    "OwnershipPlan",
    "Parts",
    "Piece",
    "Placement",
    "Receive",
    "Replicas",
    "RowShards",
    "Shape",
    "StateOwners",
    "Stream",
    "all_ranks_agree",
    "bytes_bound",
    "cheapest_operations",
    "cost_on",
    "cut_by_size",
    "empty_bucket",
    "gather",
    "is_sharded",
    "local_part",
    "matrices_in",
    "overlap",
    "pieces_of",
    "placed_like",
    "plan_ownership",
    "reshard",
    "row_shards",
    "scatter_like",
    "send_streams",
    "shard_like",
    "slots",
    "standard_operations",
]
