"""The part of ROOT about ranks that hold the same parameters, and about checkpoints."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from lightning_root.distributed import Replicas, StateOwners
from lightning_root.optim.checkpoint import (
    align_by_name,
    completed,
    packed,
    places_in,
    restore_precision,
    unpacked,
    with_saved_rules,
)
from lightning_root.optim.ddp import Replicated
from lightning_root.optim.groups import Member, separate_rates_
from lightning_root.optim.local import Local
from lightning_root.optim.state import (
    StateParts,
    assign_parts,
    collected,
    own_parts,
    refuse_sharded,
    to_kept_,
    to_saved,
)
from lightning_root.partition import Route

if TYPE_CHECKING:
    Base = torch.optim.Optimizer
else:
    Base = object  # another subclass of Optimizer would be one to choose on the command line


class SharedState(Base):
    """The ranks of a ROOT, and its state, whole or in parts."""

    _replicas: Replicas | None
    _where: Local
    _routes: dict[torch.Tensor, Route]
    _known_bases: list[list[Any]]

    def _members(self) -> list[Member]:
        """Return the parameters of all groups with their names and rules, as they are now."""
        raise NotImplementedError

    def _keep_rules(self, present: Sequence[Member]) -> None:
        """Update parameters by these rules from now on."""
        raise NotImplementedError

    def share(self, process_group: dist.ProcessGroup | None, *, shard_state: bool = False) -> None:
        """Have ranks that hold the same parameters and gradients orthogonalize a share each.

        As `DistributedDataParallel` leaves them. Which rank takes which matrix is planned from
        names and shapes (`distributed.plan_ownership`); the updates travel in one asynchronous
        collective for 16 MiB, while the next ones are computed and while AdamW works on the rest.
        Sharded parameters (DTensor) are not concerned. `ROOTBinder` calls this where Lightning's
        DDP is used. Hooks see the stacks of their own rank alone.

        Args:
            process_group: The ranks, all of which must call this and step together; None ends it.
            shard_state: Keep a part of the state on each rank, 1/N of the bytes: the momentum of
                the matrices that it orthogonalizes, and an even share of AdamW's averages, for
                which it then does AdamW's work too. Otherwise state is the same on all ranks.
                `ShardedDDPStrategy` sets this. Checkpoints are the same either way; they come from
                `consolidated_state_dict`.

        Raises:
            ValueError: If `shard_state` meets sharded parameters.
            RuntimeError: If the state is in parts for other ranks already.
        """
        replicas = None
        if process_group is not None and process_group.size() > 1:
            if shard_state:
                refuse_sharded(self._members())
            owners = StateOwners(process_group.size()) if shard_state else None
            replicas = Replicas(process_group, owners)
        if self.state:
            self._change_parts(replicas)
        self._replicas = replicas
        self._where = Local() if replicas is None else Replicated(replicas)
        self._known_bases = []

    @property
    def shards_state(self) -> bool:
        """Whether each rank keeps a part of the state; see `share`."""
        return self._replicas is not None and self._replicas.owners is not None

    def state_dict(self) -> dict[str, Any]:
        """The state and the options, in the form that every kind of checkpoint takes.

        Parameters that had no gradient so far have zeros in it, once there is any state.

        Raises:
            RuntimeError: If each rank keeps a part of the state.
        """
        if self.shards_state:
            raise RuntimeError(
                "each rank keeps a part of ROOT's state; call `consolidated_state_dict()`, on all "
                "ranks together, which returns the whole on the first"
            )
        self._members()  # groups may have been edited
        handle = self.register_state_dict_post_hook(_finished, prepend=True)
        try:  # so that the user's hooks have the last word
            return super().state_dict()
        finally:
            handle.remove()

    def consolidated_state_dict(self, device: torch.device | None = None) -> dict[str, Any]:
        """The state dict of a run on one process, whoever keeps the state; all ranks must call it.

        The first rank needs CPU memory for the whole state and for one more of its tensors (or
        128 MiB); the others, and the devices, 80 MiB.

        Args:
            device: On which the ranks can communicate. Default: where the state is.

        Returns:
            As `state_dict`, with the tensors on the CPU. Where each rank keeps a part of the state,
            `state` is empty on all ranks but the first.
        """
        if not self.shards_state:
            return self.state_dict()
        present, kept = self._members(), self._replicas
        assert kept is not None
        local, parts = super().state_dict(), self._assign_state_parts()
        own = to_saved(local["state"], present, in_parts=True)
        state = collected(own, present, parts, kept, device)
        on_host = torch.device("cpu")
        return packed(completed({**local, "state": state}, present, on_host), present)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state by parameter name, whatever the order, and keep it in float32.

        Where each rank keeps a part of the state, it takes that part of the whole.

        Args:
            state_dict: From `state_dict()` or `consolidated_state_dict()` of a ROOT with the same
                parameters, keyed by number or by name.

        Raises:
            ValueError: If names are unknown or missing, or a parameter has changed its rule.
        """
        aligned: dict[str, Any] = {}

        def align(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            loaded = unpacked(given)
            present = with_saved_rules(loaded, self._members())
            aligned.update(align_by_name(loaded, self.param_groups, present))
            self._keep_rules(present)
            if self.shards_state:
                aligned["state"] = self._own_part(aligned)
            return aligned

        def restore(_: torch.optim.Optimizer) -> None:
            groups = aligned["param_groups"]
            separate_rates_(self.param_groups)
            restore_precision(self.state, aligned["state"], groups, self._members())

        handles = [  # after the user's hooks before, and before those after
            self.register_load_state_dict_pre_hook(align),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def places_in(self, saved: Sequence[dict[str, Any]]) -> list[int] | None:
        """Return for each group the first of the saved ones that it takes its options from.

        None where groups are saved as they are, or will be once that state is loaded.
        """
        return places_in(saved, self.param_groups, self._members())

    def __getstate__(self) -> dict[str, Any]:
        if self.shards_state:
            raise RuntimeError(
                "each rank keeps a part of ROOT's state, which cannot be copied without the ranks; "
                "load what `consolidated_state_dict()` returns into another ROOT"
            )
        names = ("_by_shape", "_open", "_rules", "share_updates")
        extra = {name: self.__dict__[name] for name in names}
        # Plain values, which `torch.load` reads without running code.
        extra["_routes"] = {parameter: asdict(route) for parameter, route in self._routes.items()}
        return {**super().__getstate__(), **extra}

    def _assign_state_parts(self) -> dict[str, StateParts]:
        """Return who keeps which part of the state, by name; decide for parameters that are new."""
        if self._replicas is None or self._replicas.owners is None:
            return {}
        return assign_parts(self._replicas.owners, self._members())

    def _own_part(self, whole: dict[str, Any]) -> dict[Any, Any]:
        assert self._replicas is not None
        parts = self._assign_state_parts()
        return own_parts(whole, self._members(), parts, self._replicas.rank)

    def _change_parts(self, replicas: Replicas | None) -> None:
        """Keep the state that there is, for other ranks than so far."""
        before, self._replicas = self._replicas, replicas
        if before is not None and before.owners is not None:
            if replicas is None or replicas.owners is None or replicas.size != before.size:
                self._replicas = before
                raise RuntimeError(
                    f"ROOT's state is in parts for {before.size} ranks already; make another ROOT "
                    "and load what `consolidated_state_dict()` of this one returns"
                )
            replicas.owners = before.owners
        elif self.shards_state:
            whole = super().state_dict()
            present = self._members()
            saved = to_saved(whole["state"], present, in_parts=False)
            cut = self._own_part({**whole, "state": saved})
            parts = {present[i].parameter: own for i, own in cut.items()}
            self.state = defaultdict(dict, parts)
            to_kept_(self.state, present)


def _finished(optimizer: torch.optim.Optimizer, own: dict[str, Any]) -> dict[str, Any]:
    assert isinstance(optimizer, SharedState)
    present = optimizer._members()
    saved = to_saved(own["state"], present, in_parts=False)
    return packed(completed({**own, "state": saved}, present), present)
