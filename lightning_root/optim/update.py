"""ROOT's rule for matrices, as a function of a list of parameters.

(arXiv:2511.20626, Algorithm 2, with the Nesterov look-ahead of the authors' script as an option.)
State is kept and arithmetic done in float32 or better; a parameter is rounded once.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_root.distributed import (
    Replicas,
    gather,
    is_sharded,
    local_part,
    row_shards,
    scatter_like,
)
from lightning_root.functional import update_scale
from lightning_root.kernels import run_in_order
from lightning_root.optim.batches import (
    Block,
    Stack,
    StackHook,
    batches,
    update_batch_,
    work,
)
from lightning_root.optim.elementwise import decay_and_descend_
from lightning_root.optim.float8 import is_float8
from lightning_root.optim.items import Item, portions, state_dtype
from lightning_root.optim.momentum import fresh_momentum, look_ahead
from lightning_root.optim.parts import own_gradient_and_momenta, own_part
from lightning_root.optim.sharding import ShardedUpdates, own_matrices
from lightning_root.optim.sharing import share_updates_
from lightning_root.partition import MatrixView

WHOLE_ELEMENTS: Final = 1 << 25
"""Of parameters that are sharded or copied, so many elements have a whole update at a time."""

AHEAD_ELEMENTS: Final = 1 << 20
"""Of parameters whose momentum is kept in 8 bits, so many have a whole N for each CPU thread."""


def root_update_(
    items: Sequence[Item],
    group: Mapping[str, Any],
    hooks: Sequence[StackHook] = (),
    replicas: Replicas | None = None,
    shards: dict[dist.ProcessGroup, Replicas] | None = None,
) -> Callable[[], None]:
    """One ROOT step of matrices, in place.

    M <- mu M + G; N <- G + mu M (Nesterov) or M; B <- clamp(N, -eps, eps); U <- orthogonalize(B);
    W <- (1 - lr wd) W - lr scale U.

    Args:
        items: Parameters of two or more dimensions, and how each is cut into matrices.
        group: The options of their parameter group.
        hooks: Called with every stack of matrices once it is orthogonalized on this rank.
        replicas: Ranks that hold the same unsharded parameters and share the work.
        shards: The plans of ranks that hold rows of parameters, kept from step to step.

    Returns:
        To be called before the parameters are used: waits for what other ranks have computed.
    """
    keepers = _keepers(replicas)
    for item in items:
        if "momentum_buffer" not in item.state:
            like = item.parameter if keepers is None else own_part(item, keepers)
            item.state.update(fresh_momentum(like, group))
    by_rows: dict[Any, list[Item]] = defaultdict(list)
    direct: list[Item] = []
    copied: list[Item] = []
    sharded, stacks = [], []
    for item in items:
        if not is_sharded(item.parameter):
            (direct if _is_direct(item) else copied).append(item)
        elif (cut := row_shards(item.parameter, item.gradient)) is None:
            sharded.append(item)
        elif item.view.stack == 0:
            by_rows[cut.group, state_dtype(item.parameter), item.parameter.device].append(item)
        elif _is_direct(own := own_matrices(item, cut)):
            stacks.append(own)
        else:
            sharded.append(item)
    shards = {} if shards is None else shards
    here = partial(_update_here, group=group, hooks=hooks)
    now, portioned = _at_once(direct)
    finish = [_update_all(list(_blocks(now, group, replicas)), group, hooks, replicas)]
    for portion in portioned:
        _update_all(list(_blocks(portion, group, replicas)), group, hooks, replicas)()
    now, portioned = _at_once([item for item in stacks if item.parameter.numel()])
    for portion in [now, *portioned]:
        here(list(_blocks(portion, group, None)))
    for (ranks, _, _), alike in by_rows.items():
        planned = shards.setdefault(ranks, Replicas(ranks))
        finish.append(ShardedUpdates(alike, group, planned, here).finish)
    for portion in portions(sharded, WHOLE_ELEMENTS):
        _update_whole_(portion, group, hooks, None)
    for portion in portions(copied, WHOLE_ELEMENTS):
        _update_whole_(portion, group, hooks, replicas)
    return partial(_all, finish)


def _all(halves: Sequence[Callable[[], None]]) -> None:
    for half in halves:
        half()


def _is_direct(item: Item) -> bool:
    """Whether matrices that are not sharded can be updated where they lie, each for itself."""
    return item.view.is_view(item.parameter) and item.view.is_view(item.gradient)


def _at_once(items: Sequence[Item]) -> tuple[list[Item], list[list[Item]]]:
    """What is updated all at a time, and the portions of what has a whole N until it is updated."""
    compressed = [item for item in items if is_float8(item.state["momentum_buffer"])]
    if not compressed:
        return list(items), []
    others = [item for item in items if not is_float8(item.state["momentum_buffer"])]
    on_cpu = compressed[0].parameter.device.type == "cpu"
    elements = AHEAD_ELEMENTS * torch.get_num_threads() if on_cpu else WHOLE_ELEMENTS
    return others, portions(compressed, elements)


def _keepers(replicas: Replicas | None) -> Replicas | None:
    """The ranks, where each has the momentum of its own matrices alone."""
    return replicas if replicas is not None and replicas.owners is not None else None


def _blocks(
    items: Sequence[Item], group: Mapping[str, Any], replicas: Replicas | None
) -> Iterator[Block]:
    """The matrices of parameters that can be updated where they lie."""
    for item in items:
        gradient, momenta = _given(item, group, replicas)
        yield from _cut(item, gradient, momenta, item.parameter, True, group)


def _given(
    item: Item, group: Mapping[str, Any], replicas: Replicas | None
) -> tuple[Tensor | None, Sequence[Tensor]]:
    """G, and M of each matrix; None, and N of each where M is kept in 8 bits."""
    buffer, keepers = item.state["momentum_buffer"], _keepers(replicas)
    if keepers is not None:
        return own_gradient_and_momenta(item, keepers, group)
    if is_float8(buffer):
        return None, _matrices(item.view, look_ahead(item, group))
    return item.gradient, _matrices(item.view, buffer)


def _cut(
    item: Item,
    gradient: Tensor | None,
    momenta: Sequence[Tensor],
    target: Tensor,
    direct: bool,
    group: Mapping[str, Any],
) -> Iterator[Block]:
    gradients = _matrices(item.view, gradient) if gradient is not None else None
    targets = _matrices(item.view, target)
    for number, (matrix, place) in enumerate(zip(momenta, targets, strict=True)):
        rows, columns = matrix.shape[::-1] if item.view.transposed else matrix.shape
        scale = update_scale(rows, columns, group["adjust_lr_fn"])
        part = gradients[number] if gradients is not None else None
        name = (item.name, item.first + number)
        yield Block(name, part, matrix, place, direct, scale, item.finite)


def _matrices(view: MatrixView, tensor: Tensor) -> Sequence[Tensor]:
    plain = tensor.ndim == 2 and view.rows is None and view.columns is None
    return (tensor,) if plain else view.cut(tensor)


def _update_all(
    blocks: Sequence[Block],
    group: Mapping[str, Any],
    hooks: Sequence[StackHook],
    replicas: Replicas | None,
) -> Callable[[], None]:
    """Update every block here, or those that this rank owns; the rest when called again."""
    here = partial(_update_here, group=group, hooks=hooks)
    if replicas is not None and blocks:
        return share_updates_(blocks, group, replicas, here)
    here(blocks)
    return _nothing


def _nothing() -> None:
    """What is left to do where nothing is."""


def _update_here(
    blocks: Sequence[Block], group: Mapping[str, Any], hooks: Sequence[StackHook]
) -> None:
    """Update blocks, on several threads where the matrices are on a CPU."""
    found = batches(blocks)
    jobs: list[Callable[[], Stack | None]] = [
        partial(update_batch_, batch, group, bool(hooks)) for batch in found
    ]
    workers = _workers(found)
    for stack in run_in_order(jobs, workers, ahead=workers if hooks else None):
        for hook in hooks:
            assert stack is not None
            hook(stack)


def _update_whole_(
    items: Sequence[Item],
    group: Mapping[str, Any],
    hooks: Sequence[StackHook],
    replicas: Replicas | None,
) -> None:
    """Parameters that are gathered from shards, or copied: all their matrices, then each once."""
    blocks: list[list[Block]] = []
    updates = []
    for item in items:
        dtype = state_dtype(item.parameter)
        updates.append(torch.empty(item.parameter.shape, dtype=dtype, device=item.gradient.device))
        if _keepers(replicas) is not None:
            gradient, momenta = _given(item, group, replicas)
        else:
            gradient, momenta = None, _matrices(item.view, gather(look_ahead(item, group)))
        blocks.append(list(_cut(item, gradient, momenta, updates[-1], False, group)))
    _update_all(list(chain.from_iterable(blocks)), group, hooks, replicas)()
    for item, update, cut in zip(items, updates, blocks, strict=True):
        scale = _common_scale_(cut)
        _apply_(item, scatter_like(update, item.parameter), scale, group)


def _common_scale_(blocks: Sequence[Block]) -> float:
    """The scale of all matrices of a parameter; where they differ, put into the updates before."""
    if len({block.scale for block in blocks}) == 1:
        return blocks[0].scale
    for block in blocks:
        block.target.mul_(block.scale)
    return 1.0


def _apply_(item: Item, update: Tensor, scale: float, group: Mapping[str, Any]) -> None:
    """W <- (1 - lr wd) W - lr scale U."""
    flags = None if item.finite is None else [item.finite]
    decay_and_descend_([local_part(item.parameter)], [local_part(update)], scale, group, flags)


def _workers(found: Sequence[Sequence[Block]]) -> int:
    """How many threads share the work: all, unless one piece is most of it or it is elsewhere."""
    threads = torch.get_num_threads()
    on_cpu = all(batch[0].momentum.device.type == "cpu" for batch in found)
    if threads == 1 or len(found) < 2 or not on_cpu:
        return 1
    amounts = [work(batch) for batch in found]
    balanced = max(amounts) <= 2.0 * sum(amounts) / threads
    return min(threads, len(found)) if balanced else 1
