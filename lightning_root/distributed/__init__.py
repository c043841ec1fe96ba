"""How sharded matrices are brought together and handed back."""

from lightning_root.distributed.exchange import (
    all_ranks_agree,
    gather,
    is_sharded,
    reshard,
    scatter_like,
)

__all__ = ["all_ranks_agree", "gather", "is_sharded", "reshard", "scatter_like"]
