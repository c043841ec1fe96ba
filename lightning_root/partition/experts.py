"""Find stacks of experts: one parameter of shape (experts, rows, columns), a matrix for each."""

import re

from lightning_root.partition.cuts import WHOLE, Cut, Doubt, doubtful, equal, told
from lightning_root.partition.places import Place
from lightning_root.partition.views import MatrixView

_COUNT = (
    *("num_experts", "num_local_experts", "n_experts", "n_routed_experts", "moe_num_experts"),
    "num_moe_experts",
)
_INNER = ("ffn_hidden_size", "intermediate_size", "intermediate_dim", "expert_dim")
_OUTER = ("hidden_size", "hidden_dim", "d_model", "embed_dim", "dim")
_IN_AND_OUT = (("in_features", "out_features"), ("input_size", "output_size"))

_PATH = re.compile(r"expert|(?<![a-z])moe(?![a-z])")
_CLASS = re.compile(r"Expert|M[oO]E(?![a-z])|Moe(?![a-z])")
_BIAS = re.compile(r"(?<![a-z])bias(es)?(?![a-z])")
_UP = re.compile(r"gate|up|w1|w3|wi|v1")
_DOWN = re.compile(r"down|w2|wo")

# Gate and up take turns there, column by column: no cut into blocks separates them.
_INTERLEAVED = frozenset({"GptOssExperts"})

Matrix = tuple[int, int]


def is_stack(place: Place) -> bool:
    """Tell whether a parameter with three dimensions is certainly a stack of experts' matrices.

    Its module, or the path to it, must be called after experts or count as many as there are; a
    module that counts another number rules it out. Names without a module are not certain.
    """
    if place.module is None or len(place.shape) != 3 or min(place.shape) < 2 or is_bias(place):
        return False
    own = (getattr(place.module, name, None) for name in _COUNT)
    if counted := [count for count in own if type(count) is int]:
        return place.shape[0] in counted
    return _is_named(place) or told(place.module, _COUNT) == place.shape[0]


def is_bias(place: Place) -> bool:
    """Tell whether a parameter is a stack of biases, a row for each expert."""
    return _BIAS.search(place.leaf.lower()) is not None


def find_cut(place: Place) -> Cut:
    """Find the matrices in a parameter of a custom module: a stack, or experts below each other."""
    if is_stack(place):
        return _stack(place)
    count, inner = told(place.module, _COUNT), told(place.module, _INNER)
    if len(place.shape) != 2 or count is None or inner is None or not _is_named(place):
        return WHOLE
    below = count > 1 and place.shape[0] == count * inner  # DBRX
    return Cut(view=MatrixView(rows=equal(count, place.shape[0]))) if below else WHOLE


def _is_named(place: Place) -> bool:
    """Tell whether the path or the class of the owner speaks of experts."""
    return bool(_PATH.search(place.path.lower()) or _CLASS.search(place.owner))


def _stack(place: Place) -> Cut:
    """Cut a stack, and in it gate and up, when the down projections beside it take half as much."""
    matrix = (place.shape[1], place.shape[2])
    beside = [
        (p.shape[1], p.shape[2])
        for p in (place.module.parameters(recurse=False) if place.module is not None else ())
        if p.ndim == 3 and p.shape[0] == place.shape[0]
    ]
    fused = next((t for other in beside if (t := _gating(matrix, other)) is not None), None)
    down = next((t for other in beside if (t := _gating(other, matrix)) is not None), None)
    transposed = _stated_transposed(place, matrix, fused if down is None else down)
    if fused != transposed and "gate_up" not in place.leaf:
        return Cut(view=MatrixView(stack=1, transposed=transposed))
    if place.owner in _INTERLEAVED or getattr(place.module, "is_concatenated", True) is False:
        return Cut(
            view=MatrixView(stack=1, transposed=transposed),
            note="; gate and up interleaved, which no cut separates",
        )
    if fused != transposed:
        return doubtful(Doubt("gate and up in one", 2), stack=1, transposed=transposed)
    if transposed:
        return Cut(view=MatrixView(stack=1, columns=equal(2, matrix[1]), transposed=True))
    return Cut(view=MatrixView(stack=1, rows=equal(2, matrix[0])))


def _gating(up: Matrix, down: Matrix) -> bool | None:
    """Tell whether two matrices can be gate and up in one, and the down projection.

    Returns:
        Whether they are stored as (in, out), None when the sizes do not fit.
    """
    if (up[0], up[1]) == (2 * down[1], down[0]):
        return False
    return True if (up[1], up[0]) == (2 * down[0], down[1]) else None


def _stated_transposed(place: Place, matrix: Matrix, paired: bool | None) -> bool:
    """Tell whether experts are stored as (in, out), as far as the module tells; else they are not.

    In this order: transformers' flag, sizes of input and output, the pair of gate-and-up and down,
    the width of the model together with a name that says where the matrix leads.
    """
    module, rows, columns = place.module, *matrix
    stated = getattr(module, "is_transposed", None)
    if isinstance(stated, bool):
        return stated
    if rows != columns:
        sizes = [tuple(told(module, (name,)) for name in pair) for pair in _IN_AND_OUT]
        if any(size in sizes for size in (matrix, matrix[::-1])):
            return matrix in sizes
    if paired is not None:
        return paired
    width, leaf = told(module, _OUTER), place.leaf.lower()
    if (rows == width) != (columns == width):
        up, down = _UP.search(leaf), _DOWN.search(leaf)
        return bool(rows == width and up and not down) or bool(columns == width and down)
    return False
