"""The public entry points: a module, or names and shapes, to a `Partition`."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from lightning_root.partition import places, table
from lightning_root.partition.cuts import Cut, written
from lightning_root.partition.fused import find_cut
from lightning_root.partition.heads import find_heads
from lightning_root.partition.names import patterns
from lightning_root.partition.places import Entry
from lightning_root.partition.roles import Context, Decision, decide
from lightning_root.partition.routes import Route
from lightning_root.partition.rules import Rule, Rules, apply_rules, check_alive, parse_rules
from lightning_root.partition.views import MatrixView, describe


@dataclass(frozen=True, repr=False)
class Partition:
    """Every parameter with the rule that updates it; `str()` is a table to read.

    Args:
        routes: One route for each parameter, in the order in which the model registered them.
        parameters: The live parameters, parallel to `routes`.
    """

    routes: tuple[Route, ...]
    parameters: tuple[Tensor, ...] = field(compare=False)

    def groups(self) -> list[dict[str, Any]]:
        """Return parameter groups for an optimizer: "root", then "adamw", also when they are empty.

        Each is `{"name": role, "role": role, "params": [(name, parameter), ...]}`.
        """
        return [
            {"name": role, "role": role, "params": list(self._named(role))}
            for role in ("root", "adamw")
        ]

    def _named(self, role: str) -> Iterator[tuple[str, Tensor]]:
        for route, parameter in zip(self.routes, self.parameters, strict=True):
            if route.role == role:
                yield route.name, parameter

    def __str__(self) -> str:
        """Return the readable table: parameter, shape, rule, reason, and totals."""
        return table.render(self.routes)

    def __repr__(self) -> str:
        """Return how many parameters go where."""
        count = Counter(route.role for route in self.routes)
        return f"Partition(root={count['root']}, adamw={count['adamw']})"


def partition_parameters(module: nn.Module, *, rules: Rules | None = None) -> Partition:
    """Decide which of a module's parameters ROOT orthogonalizes, and which AdamW updates.

    ROOT takes hidden matrices: the weights of Linears, attention, recurrent layers, experts, and
    of convolutions, flattened to (out, in * kernel). AdamW takes what is not one: embeddings
    (also when tied to the head), output heads, patch embeddings, norms, biases, position tables
    and tokens, depthwise convolutions, and stacks of three and more dimensions that are not
    experts. Types and ties decide before names; each route says why. Frozen parameters are left
    out, so partition again after unfreezing. No tensor's data is read.

    Several matrices in one parameter (q, k and v; gate and up; groups of a convolution; experts)
    are cut apart by the route's `view` where the module tells how. Where it does not, they stay
    together, the reason says so, and the table ends with the rule that would cut them. The factors
    of adapters (LoRA) are matrices like any other; a rule gives them to AdamW.

    The output head is the layer with a usual name (`lm_head`, `head`, `classifier`, ...), or else
    the last Linear, but never one in a repeated block.

    Args:
        module: The model, or what wraps it: a LightningModule, `torch.compile`, `fully_shard`.
        rules: Decisions of yours, which come first: globs on whole parameter names with "root",
            "adamw", or a cut for ROOT as plain data, such as `{"rows": [256, 64, 64]}` (sizes),
            `{"columns": 12}` (equal blocks), `{"stack": 1}` (the first dimension counts matrices),
            `{"rows": 1}` (whole), `{"transposed": True}` (stored as (in, out)). "root" leaves the
            cut to what the module tells. First match wins; a tied parameter answers to all names.

    Returns:
        The routes, ready to print, and the parameter groups.

    Raises:
        TypeError: When `module` is not a module or `rules` are not pairs.
        ValueError: When a rule matches nothing, names an unknown role, sends a vector to "root" or
            does not fit the shape that it cuts; when a parameter is not initialized; when there is
            nothing to train.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(
        ...     nn.Embedding(256, 32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)
        ... )
        >>> partition = partition_parameters(model)
        >>> print(partition)
        parameter  shape      rule   reason
        ---------  ---------  -----  -------------------------
        0.weight   (256, 32)  AdamW  embedding
        1.weight   (64, 32)   ROOT   Linear weight
        1.bias     (64,)      AdamW  bias or gain: 1 dimension
        3.weight   (10, 64)   AdamW  output head: last Linear
        3.bias     (10,)      AdamW  bias or gain: 1 dimension
        <BLANKLINE>
        ROOT:  1 matrix, 2.0 k parameters (18.7 %), work 92.5 %
        AdamW: 4 tensors, 8.9 k parameters (81.3 %), work 7.5 %
        >>> partition_parameters(model, rules={"3.weight": "root"})
        Partition(root=2, adamw=3)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"`module` must be a torch.nn.Module, got {type(module).__name__}; "
            "`partition_named` takes (name, tensor) pairs."
        )
    entries, modules = places.survey_module(module)
    if not any(entry.trainable for entry in entries):
        state = "only frozen parameters" if entries else "no parameters"
        raise ValueError(
            f"`module` must have trainable parameters, but {type(module).__name__} has {state}; "
            "partition after its layers are built and unfrozen."
        )
    return _partition(entries, modules, rules)


def partition_named(
    named: Iterable[tuple[str, Tensor]], *, rules: Rules | None = None
) -> Partition:
    """Partition (name, tensor) pairs without a module: names and shapes decide.

    Prefer `partition_parameters`: from here an embedding with an unusual name looks like any other
    matrix. Every tensor is routed, frozen or not, because the caller chose it. Tensors without
    names may be called "parameter.0", "parameter.1"; then only shapes decide.

    Args:
        named: Pairs as from `module.named_parameters()`.
        rules: As in `partition_parameters`.

    Returns:
        The routes and parameter groups, in the given order.

    Raises:
        TypeError: When `named` does not hold (name, tensor) pairs, or `rules` are not pairs.
        ValueError: When `named` is empty, when two tensors have one name, or for a bad rule.

    Example:
        >>> import torch
        >>> names = ["wte.weight", "blocks.0.mlp.up.weight", "lm_head.weight"]
        >>> partition = partition_named([(name, torch.zeros(8, 4)) for name in names])
        >>> [route.role for route in partition.routes]
        ['adamw', 'root', 'adamw']
    """
    pairs = [_checked_pair(pair) for pair in named]
    entries = places.survey_named(pairs)
    if not entries:
        raise ValueError("`named` must hold at least one (name, tensor) pair, got none.")
    count = Counter(entry.name for entry in entries)
    if twice := [name for name, times in count.items() if times > 1]:
        raise ValueError(
            f"`named` must give each tensor a name of its own, got {twice[0]!r} twice."
        )
    return _partition(entries, None, rules)


def _partition(
    entries: Sequence[Entry], modules: Mapping[str, nn.Module] | None, rules: Rules | None
) -> Partition:
    """Route every trainable parameter: the user's rules first, then what the parameter is."""
    parsed = parse_rules(rules)
    check_alive(parsed, entries)
    convolutions = (e.places[0].path for e in entries if e.places[0].kind == "convolution")
    context = Context(
        heads=find_heads(entries, modules), first_convolution=next(convolutions, None)
    )
    trained = [entry for entry in entries if entry.trainable]
    decided = [_decide(entry, parsed, context, modules) for entry in trained]
    hints = {e.name: written(d.hint) for e, (d, _) in zip(trained, decided, strict=True) if d.hint}
    names = [entry.name for entry in trained]
    return Partition(
        routes=tuple(
            Route(
                name=entry.name,
                shape=entry.shape,
                role=decision.role,
                reason=decision.reason,
                view=view,
                suggestion=_suggestion(entry.name, hints, names),
            )
            for entry, (decision, view) in zip(trained, decided, strict=True)
        ),
        parameters=tuple(entry.parameter for entry in trained),
    )


def _decide(
    entry: Entry,
    rules: Sequence[Rule],
    context: Context,
    modules: Mapping[str, nn.Module] | None,
) -> tuple[Decision, MatrixView | None]:
    """Ask the user's rules, then the parameter itself; the reason tells also about the cut."""
    place, rule = entry.places[0], apply_rules(rules, entry)
    if rule is None:
        decision = decide(entry, context)
    else:
        decision = Decision(rule.role, f"rule {rule.pattern!r}")
    if decision.role == "adamw":
        return decision, None
    if rule is not None and rule.cut is not None:
        cut = Cut(view=rule.view(place))
    else:
        cut = find_cut(place, modules)
    blocks = describe(cut.view, entry.shape) if cut.view is not None else ""
    reason = f"{decision.reason}, {blocks}" if blocks else decision.reason
    if rule is None and cut.note:
        return Decision("root", reason + cut.note, cut.hint), cut.view
    return Decision("root", reason, decision.hint), cut.view


def _suggestion(name: str, hints: Mapping[str, str], all_names: Sequence[str]) -> str | None:
    """Write the rule that a hint proposes, with a pattern that covers nothing else."""
    if name not in hints:
        return None
    pattern = next(
        pattern
        for pattern in [*patterns(name), name]
        if all(hints.get(n) == hints[name] for n in all_names if fnmatchcase(n, pattern))
    )
    return f'"{pattern}": {hints[name]}'


def _checked_pair(pair: object) -> tuple[str, Tensor]:
    """Return a (name, tensor) pair, or say what is wrong with it."""
    match pair:
        case (str() as name, Tensor() as tensor):
            return name, tensor
    raise TypeError(
        f"`named` must hold (name, tensor) pairs, got {type(pair).__name__}; pass "
        "`module.named_parameters()`, or better the module to `partition_parameters`."
    )
