"""One step on several ranks that hold the same matrices: each orthogonalizes its own for all."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_root.distributed import Bucket, Matrix, Replicas, empty_bucket, slots
from lightning_root.distributed import replicas as plans
from lightning_root.optim.batches import Block, advance_all_
from lightning_root.optim.elementwise import decay_and_descend_
from lightning_root.optim.items import shared_dtype

Update: TypeAlias = Callable[[Sequence[Block]], None]


class SharedUpdates:
    """The updates of blocks that every rank has: computed where they are owned, applied everywhere.

    Momentum advances on all ranks that have it. When this object is made the own updates have been
    computed and all are under way; `finish` waits for them, so what comes between costs no time of
    its own.

    Args:
        blocks: Of one dtype and device, the same on every rank, in the same order.
        group: The options of their parameter group.
        replicas: The ranks.
        update: Computes the updates of blocks into their targets, which are not direct.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        group: Mapping[str, Any],
        replicas: Replicas,
        update: Update,
    ) -> None:
        self._blocks, self._group = blocks, group
        self._shapes = [(block.momentum.shape[0], block.momentum.shape[1]) for block in blocks]
        matrices = [
            Matrix(*block.name, *shape) for block, shape in zip(blocks, self._shapes, strict=True)
        ]
        self._under_way: list[tuple[Bucket, Tensor, Tensor, dist.Work]] = []
        for bucket in replicas.buckets(
            matrices, group["ns_steps"], blocks[0].momentum.device, plans.BUCKET_ELEMENTS
        ):
            like = blocks[0].momentum
            whole = empty_bucket(bucket, shared_dtype(like, group), like.device)
            part = torch.zeros_like(whole[0])
            own = bucket.members[replicas.rank]
            places = slots(part, [self._shapes[i] for i in own])
            pairs = zip(own, places, strict=True)
            update([replace(blocks[i], target=place, direct=False) for i, place in pairs])
            # The sent part is kept until it has been sent.
            self._under_way.append((bucket, whole, part, replicas.gather(part, whole)))
            for rank, others in enumerate(bucket.members):
                if rank != replicas.rank and replicas.owners is None:
                    advance_all_([blocks[i] for i in others], group)

    def finish(self) -> None:
        """Apply all updates, in the order of their buckets."""
        for bucket, whole, _, work in self._under_way:
            work.wait()
            for members, part in zip(bucket.members, whole, strict=True):
                updates = slots(part, [self._shapes[i] for i in members])
                self._apply_([self._blocks[i] for i in members], updates)
        self._under_way.clear()

    def _apply_(self, blocks: Sequence[Block], updates: Sequence[Tensor]) -> None:
        alike: dict[tuple[float, torch.dtype], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for block, update in zip(blocks, updates, strict=True):
            if block.direct:
                alike[block.scale, block.target.dtype].append((block.target, update))
            else:
                block.target.copy_(update)
        for (scale, _), pairs in alike.items():
            targets, values = [t for t, _ in pairs], [u for _, u in pairs]
            decay_and_descend_(targets, values, scale, self._group)


def share_updates_(
    blocks: Sequence[Block], group: Mapping[str, Any], replicas: Replicas, update: Update
) -> Callable[[], None]:
    """Begin a step of blocks of any dtypes and devices; what is returned ends it.

    Args:
        blocks: As for `SharedUpdates`.
        group: The options of their parameter group.
        replicas: The ranks.
        update: As for `SharedUpdates`.
    """
    kinds: dict[tuple[torch.dtype, torch.device], list[Block]] = defaultdict(list)
    for block in blocks:
        kinds[block.momentum.dtype, block.momentum.device].append(block)
    shared = [SharedUpdates(alike, group, replicas, update) for alike in kinds.values()]

    def finish() -> None:
        for part in shared:
            part.finish()

    return finish
