"""All ranks use the same coefficients, to the last digit."""

from collections.abc import Mapping

import torch.distributed as dist

from lightning_root.coefficients import lookup
from lightning_root.coefficients.lookup import needs_fit
from lightning_root.coefficients.store import adopt, fits_in_use
from lightning_root.optim.groups import Groups, members
from lightning_root.optim.guard import WHOLE
from lightning_root.partition import MatrixView


def settle_coefficients(groups: Groups, views: Mapping[str, MatrixView]) -> None:
    """Make the fits that the groups need, and take over those of the lowest rank that has them.

    Fits on different machines, or from different caches, may differ in the last digits. Shapes
    decide whether ranks talk at all, so that either all of them do or none.
    """
    needed = [
        (shape, group["coefficients"], group["ns_steps"])
        for group, name, parameter in members(groups)
        if group["role"] == "root"
        for shape in set(views.get(name, WHOLE).matrices(parameter.shape))
        if min(shape) > 0 and needs_fit(shape, group["coefficients"], group["ns_steps"])
    ]
    if not needed:
        return
    for shape, coefficients, steps in needed:
        lookup(shape, coefficients, steps)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        from_ranks = [None] * dist.get_world_size()
        dist.all_gather_object(from_ranks, fits_in_use())
        for fits in reversed(from_ranks):
            adopt(fits or {})
