"""The public entry points: a module, or names and shapes, to a `Partition`."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from lightning_root.partition.fused import ViewDecision, find_view
from lightning_root.partition.heads import find_heads, is_head_tied
from lightning_root.partition.names import candidate_globs
from lightning_root.partition.parameters import ModelParameter, Modules, collect_uses, survey_module
from lightning_root.partition.roles import ModelContext, decide_kind
from lightning_root.partition.routes import Partition, Role, Route
from lightning_root.partition.rules import Rule, Rules, check_rules_match, first_match, parse_rules
from lightning_root.partition.views import describe_view


def partition_parameters(module: nn.Module, *, rules: Rules | None = None) -> Partition:
    """Decide which of a module's parameters ROOT orthogonalizes, and which AdamW updates.

    ROOT takes hidden matrices: the weights of Linears, attention, recurrent layers, experts, and
    of convolutions, flattened to (out, in * kernel). AdamW takes what is not one: embeddings (also
    when tied to the head), output heads, patch embeddings, norms, biases, position tables, tokens,
    depthwise convolutions, and stacks that are not experts. Types and ties decide before names;
    each route says why. Frozen parameters are left out, so partition again after unfreezing.

    Several matrices in one parameter (q, k and v; gate and up; groups of a convolution; experts)
    are cut apart by the route's `view` where the module tells how; where not, the table ends with
    the rule that would. Factors of adapters (LoRA) are matrices like any other. The output head is
    the layer with a usual name (`lm_head`, `head`, `classifier`, ...), or else the last Linear, but
    rarely one in a repeated block; with it go those that read the same input, such as actor and
    critic. Where none is found, the table says so.

    Args:
        module: The model, or what wraps it: a LightningModule, `torch.compile`, DDP, Fabric.
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
    return _partition_module(module, rules, frozen=False)


def partition_all(module: nn.Module, *, rules: Rules | None = None) -> Partition:
    """Partition a module as `partition_parameters` does, with its frozen parameters too.

    Trainable parameters get the same routes. A frozen one gets the rule that it would have if
    nothing were frozen, on a marked route; a rule of the user that does not fit it waits.

    Args:
        module: As there; all of it may be frozen.
        rules: As there.

    Returns:
        A route for every parameter.

    Raises:
        TypeError: As there.
        ValueError: As there, but frozen parameters are enough.
    """
    return _partition_module(module, rules, frozen=True)


def _partition_module(module: nn.Module, rules: Rules | None, *, frozen: bool) -> Partition:
    """Check a module and partition its parameters, frozen ones too if asked."""
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"`module` must be a torch.nn.Module, got {type(module).__name__}; "
            "`partition_named` takes (name, tensor) pairs."
        )
    parameters, modules = survey_module(module)
    if not any(frozen or parameter.uses[0].trainable for parameter in parameters):
        state = "only frozen parameters" if parameters else "no parameters"
        needed, unfrozen = ("", "") if frozen else ("trainable ", " and unfrozen")
        raise ValueError(
            f"`module` must have {needed}parameters, but {type(module).__name__} has {state}; "
            f"partition after its layers are built{unfrozen}."
        )
    return _partition(parameters, modules, rules, frozen=frozen)


def partition_named(
    named: Iterable[tuple[str, Tensor]], *, rules: Rules | None = None
) -> Partition:
    """Partition (name, tensor) pairs without a module: names and shapes decide.

    Prefer `partition_parameters`: here an embedding with an unusual name looks like any matrix.
    Every tensor is routed, frozen or not. Those without names may be called "parameter.0", ...

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
    parameters = collect_uses(pairs, None)
    if not parameters:
        raise ValueError("`named` must hold at least one (name, tensor) pair, got none.")
    count = Counter(parameter.name for parameter in parameters)
    if twice := [name for name, times in count.items() if times > 1]:
        raise ValueError(
            f"`named` must give each tensor a name of its own, got {twice[0]!r} twice."
        )
    return _partition(parameters, None, rules, frozen=True)


def _partition(
    parameters: Sequence[ModelParameter], modules: Modules, rules: Rules | None, *, frozen: bool
) -> Partition:
    """Route the trainable parameters or all: the user's rules first, then what each one is."""
    parsed = parse_rules(rules)
    check_rules_match(parsed, parameters)
    convolutions = (p.uses[0].path for p in parameters if p.uses[0].kind == "convolution")
    context = ModelContext(find_heads(parameters, modules), next(convolutions, None))
    thawed = context
    if frozen:  # what is frozen is decided as if nothing were
        uses = [tuple(replace(use, trainable=True) for use in p.uses) for p in parameters]
        free = [ModelParameter(p.tensor, u) for p, u in zip(parameters, uses, strict=True)]
        thawed = ModelContext(find_heads(free, modules), context.first_convolution)
    chosen = [p for p in parameters if frozen or p.uses[0].trainable]
    routes = [
        _decide(p, parsed, context if p.uses[0].trainable else thawed, modules) for p in chosen
    ]
    note = "" if context.heads or is_head_tied(parameters) else _note_on_head(routes)
    suggested = {route.name: route.suggestion for route in routes}
    ruled = (replace(r, suggestion=_suggested_rule(r.name, suggested)) for r in routes)
    dicts = (nn.ModuleDict, nn.ParameterDict)
    keyed = frozenset(path for path, m in (modules or {}).items() if isinstance(m, dicts))
    return Partition(tuple(ruled), tuple(p.tensor for p in chosen), note, keyed)


def _note_on_head(routes: Sequence[Route]) -> str:
    """Say that no output head was found, unless a rule has settled it, and how to name one."""
    hidden = [route for route in routes if route.kind == "hidden"]
    if not hidden or any(route.role == "adamw" for route in hidden):
        return ""
    name = hidden[-1].name
    layer = name.removesuffix(".weight")
    return f'no output head found; if `{layer}` is one: rules={{"{name}": "adamw"}}'


def _decide(
    parameter: ModelParameter, rules: Sequence[Rule], context: ModelContext, modules: Modules
) -> Route:
    """Ask the user's rules, then the parameter itself; the reason tells also about the view."""
    use = parameter.uses[0]
    kind, reason, suggestion = decide_kind(parameter, context)
    role: Role = "root" if kind == "hidden" else "adamw"
    found, rule, cut = ViewDecision(), None, None
    try:
        if (rule := first_match(rules, parameter)) is not None:
            cut = ViewDecision(rule.resolve_view(use)) if rule.spec is not None else None
    except ValueError:
        if use.trainable:
            raise
        rule = None  # it may never be unfrozen
    ruled = rule is not None and rule.role is not None
    if rule is not None and rule.role is not None:
        role, reason, suggestion = rule.role, f"rule {rule.pattern!r}", None
    if role == "root":
        found = cut or find_view(use, modules)
        blocks = describe_view(found.view, use.shape) if found.view is not None else ""
        reason = f"{reason}, {blocks}" if blocks else reason
        if not ruled and found.note:
            reason, suggestion = reason + found.note, found.suggestion
    return Route(
        name=parameter.name,
        shape=use.shape,
        role=role,
        kind=kind,
        reason=reason,
        view=found.view,
        suggestion=json.dumps(suggestion) if suggestion else None,
        frozen=not use.trainable,
        lr_scale=rule.lr_scale if rule is not None else None,
        weight_decay=rule.weight_decay if rule is not None else None,
    )


def _suggested_rule(name: str, suggested: Mapping[str, str | None]) -> str | None:
    """Write the rule suggested for a parameter, with a glob that covers nothing else."""
    value, glob = suggested[name], name
    for glob in candidate_globs(name) if value is not None else ():  # the last is the name itself
        if all(other == value for n, other in suggested.items() if fnmatchcase(n, glob)):
            break
    return None if value is None else f'"{glob}": {value}'


def _checked_pair(pair: object) -> tuple[str, Tensor]:
    """Return a (name, tensor) pair, or raise TypeError."""
    match pair:
        case (str() as name, Tensor() as tensor):
            return name, tensor
    raise TypeError(
        f"`named` must hold (name, tensor) pairs, got {type(pair).__name__}; pass "
        "`module.named_parameters()`, or better the module to `partition_parameters`."
    )
