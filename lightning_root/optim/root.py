"""class ROOT: both update rules in one `torch.optim.Optimizer`."""

import logging
import warnings
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT
from torch.utils.hooks import RemovableHandle

from lightning_root.coefficients import CoefficientName
from lightning_root.coefficients.shapes import Shape
from lightning_root.distributed import reshard
from lightning_root.functional import AdjustLR, Quantile, QuantileMode
from lightning_root.kernels import FormOption, KernelOption
from lightning_root.optim import agreement, groups, options, readiness
from lightning_root.optim.binding import (
    check_params,
    group_params,
    joined,
    module_behind,
    modules_behind,
)
from lightning_root.optim.blocks import GroupPlan, basis_of, bind_parameter, plan_group
from lightning_root.optim.ddp import Replicated
from lightning_root.optim.fsdp import Sharded
from lightning_root.optim.gradients import SkipCounts, release_gradients, take_gradients
from lightning_root.optim.local import Finish, Local, nothing, run_all
from lightning_root.optim.shared_state import SharedState
from lightning_root.optim.stages import clip_gradient, precondition
from lightning_root.optim.stages.adamw import adamw_update_
from lightning_root.optim.state import (
    StateParts,
    add_fresh_,
    drop_matrices_,
    drop_unfit_,
    follow_dtype_,
    specs_of,
)
from lightning_root.optim.step import StackHook
from lightning_root.partition import Partition, Route, Rules, partition_all, partition_named
from lightning_root.partition.parameters import canonical_parameters

_log = logging.getLogger(__name__)


class ROOT(SharedState, torch.optim.Optimizer):
    r"""Robust orthogonalized momentum for hidden matrices, AdamW for the rest, in one optimizer.

    For a hidden matrix W of shape (m, n) with gradient G (arXiv:2511.20626, Algorithm 2):

    .. code-block:: text

        M <- momentum M + G                        N <- G + momentum M (Nesterov) or M
        B <- clamp(N, -q, q),                      q the `outlier_quantile` of |N|
        U <- Newton-Schulz(B / ||B||), `ns_steps`  W <- (1 - lr weight_decay) W - lr scale U

    Embeddings, output heads, norms, biases and position tables get AdamW with the same `lr` and
    `weight_decay`. Which parameter gets which rule is decided from the module by
    `partition_parameters`; see the table that `str(optimizer.partition)` prints.

    Args:
        params: As in torch.optim: `module.parameters()` or `module.named_parameters()`, also
            filtered; tensors, (name, tensor) pairs; dicts with `params` and options of their own,
            and perhaps a `role` of "root" or "adamw" (or that as their `name`) for all in it; or an
            empty list, to be filled by `bind(module)`. Number, order, names and options of groups
            stay as they are given.
        lr: Learning rate of both rules, a float or a one-element tensor.
        weight_decay: Decoupled decay, applied as a factor 1 - lr * weight_decay.
        momentum: mu of the matrices' heavy-ball momentum, in [0, 1).
        nesterov: Look one step ahead, as the authors' script does; the paper's Algorithm 2 does
            not.
        coefficients: Of the orthogonalization: "adaptive" (a triple for every step and for every
            kind of shape, fitted for this project), "paper" (one triple per shape), "published"
            (the authors' script), "muon", "polar_express", "cans", "quintic", a JSON file of
            schedules, one triple (a, b, c), one triple per step, or a mapping from shapes; see
            `lookup`.
        outlier_quantile: p in (0, 1]: entries of the momentum beyond their own p-quantile are
            clipped to it. "auto" chooses p for each matrix and step from the tail of the momentum:
            1, which clips nothing, where there is none, down to 0.8; see
            `functional.automatic_quantile`. None switches the threshold off.
        ns_steps: T, the number of Newton-Schulz steps.
        adjust_lr_fn: Scale of a matrix's update: "match_rms_adamw" is 0.2 sqrt(max(m, n)), so that
            AdamW's learning rates carry over; "original" is sqrt(max(1, m / n)),
            "spectral_unclamped" sqrt(m / n).
        betas: AdamW's averaging coefficients.
        eps: AdamW's term in the denominator.
        maximize: Ascend instead of descend.
        foreach: torch's AdamW implementation by lists; None lets torch decide.
        fused: torch's fused AdamW kernel; None lets torch decide.
        ns_dtype: Arithmetic of the orthogonalization: "auto" is bfloat16 on CUDA devices and on
            NPUs that have it, and float32 elsewhere (float64 for float64 parameters).
        ns_form: How the iteration is evaluated, which changes its speed and its rounding:
            "standard" on the matrix, "gram" on its Gram matrix, "eigh" on the eigenvalues of that;
            "auto" takes the cheapest by operation counts and rates of the machine, measured once;
            "polar" gives the exact polar factor instead, whatever the coefficients.
        outlier_quantile_mode: "exact", "sampled" (from 65536 entries of each matrix: the share
            that is clipped has a standard deviation of 0.0012 at p = 0.9), or "auto": exact on
            CPUs, where it is cheap, sampled elsewhere.
        kernels: Where Triton's kernels for CUDA devices are used: "auto" where they were measured
            to be faster than torch's operations, once per GPU; "torch" nowhere; "triton"
            everywhere.
        capturable: Take steps that a CUDA graph can hold: the host waits for nothing on the device.
            AdamW is torch's fused one, learning rates that change must be tensors, and parameters
            that were left alone are counted on the device: reading `skipped` waits for it, and
            nothing warns. Take one step before the capture. Not for sharded parameters or shared
            updates.
        momentum_dtype: In which the matrices' momentum is kept: "auto" is float32 (float64 for
            float64 parameters); "bfloat16" is half the bytes, "float8" a quarter (e3m4 with an
            exponent for 128 entries; saved as bfloat16, which holds it exactly). Both are rounded
            stochastically, so that small gradients add up. A step computes in float32 either way.
        normalize: "neuron" divides each row or column of a matrix's update, whichever are along its
            longer side, by the root of a running mean of its squares (0.95 of it is kept in each
            step) and rescales the whole to the norm it had (NorMuon, arXiv:2510.05491). State:
            max(m, n) numbers in float32. "none" leaves updates as they are. Under FSDP2 a state
            that was saved with it loads into an optimizer that has it.
        lr_scales: Factors on the learning rate by kind of parameter: "hidden", "embedding", "head",
            "vector" (biases and gains) and "table" (positions and the like), such as
            {"embedding": 3.0, "head": 0.3}; 1 where none is given. Groups and schedules stay as
            they are. A rule may have one for the parameters that it matches.
        weight_decays: Decay by kind, in the place of `weight_decay`, such as {"vector": 0.0}.
        weight_decay_mode: "cautious" decays only the entries that the update moves towards zero
            (arXiv:2510.12402), "decoupled" all.
        gradient_clip_entries: Hold each entry of a matrix's gradient within so many times what its
            row and column lead to expect, before the momentum: |G_ij| <= c sqrt(r_i c_j / mean r)
            with running means (0.95) of the rows' and columns' mean squares. 4 is usual where
            gradients have outliers; on clean ones it costs a little. Not for sharded parameters.
        precondition: Multiply the clipped momentum by inverse roots of the covariances of gradients
            before it is orthogonalized: "covariance" from the left and the right, P_l B P_r with P
            a power of a running mean of G G' (and of G' G), "soap" in their eigenbases, where B is
            divided by the root of a second moment; "auto" is the one that costs least for what it
            gives: "covariance" of the smaller side, from every fifth gradient.
            "none" leaves it as it is. Gradients are clipped as momentum is. Costs, and what is
            kept: see `optim.stages.precondition`.
        precondition_sides: "smaller" preconditions the smaller side of a matrix alone, "both" both;
            "auto" takes both up to an aspect ratio of 2 with "covariance", else the smaller one.
        precondition_source: What covariances are of: "gradient", or "momentum", for which gradients
            do not travel to the owner of a matrix under FSDP2. On a small GPT "momentum" lost 0.01
            nats with both sides and 0.05 with one.
        precondition_every: Steps from one root, or basis, to the next; they use the last one.
        precondition_statistics_every: Steps from one gradient that the covariances take in to the
            next: j makes that part of the stage, and what travels for it between ranks, j times
            cheaper. None is 5 for "auto" and 1 otherwise.
        precondition_beta: b in [0, 1), what a step keeps of the covariances.
        precondition_exponent: Power of the covariances; None is 1/4 for two sides and 1/2 for one.
            "soap" does not use it.
        precondition_damping: Relative to the largest eigenvalue, at least 1e-7.
        precondition_max_dim: Sides beyond it are not preconditioned.
        rules: Globs on parameter names that override the split, first match wins. The value is
            "adamw", "root", or how a matrix rule cuts the parameter: {"*.qkv.weight": {"rows": 3}}
            for three equal row blocks, {"rows": [256, 64, 64]} for unequal ones, "columns"
            likewise, {"stack": 1} for a stack of matrices; see `MatrixView`. With it, or alone,
            {"lr_scale": 0.5} and {"weight_decay": 0.0} for what matches. A name stands for the
            rules of a family that needs them: "xlnet", "funnel".
        share_updates: Where Lightning's DDP replicates the model, each rank orthogonalizes a share
            of the matrices and the updates are exchanged; False has every rank do all. See `share`.
        share_dtype: In which updates travel between ranks: "auto" is float32, in which they are
            what they are on one process; "bfloat16" is half the bytes under DDP (three quarters
            under FSDP2, whose rows of momentum stay float32) and rounds each update to 0.4 %.

    A parameter that holds several matrices (fused q, k and v, gates, experts, the groups of a
    convolution) is updated as those matrices are, each with its own threshold and scale, where the
    module or a rule tells how it is cut. The rule belongs to the parameter, whatever group it is
    in; frozen parameters have theirs from the start, and train once they are not frozen.

    Momentum (`state[p]["momentum_buffer"]`) and AdamW's averages are kept in float32, or in
    float64 for float64 parameters, unless `momentum_dtype` says otherwise. A parameter whose
    gradient has a NaN or an infinity is left alone for that step, with its state, counted in
    `skipped` and reported once.

    Raises:
        ValueError: If an option is out of range, a coefficient set is unknown or unbounded, or a
            "root" parameter is not a matrix.
        TypeError: If an option or a parameter is of the wrong kind.

    Example:
        >>> import torch
        >>> from lightning_root import ROOT
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)
        ... )
        >>> optimizer = ROOT(model.parameters(), lr=1e-2)
        >>> [(route.name, route.role) for route in optimizer.partition.routes]
        [('0.weight', 'root'), ('0.bias', 'adamw'), ('2.weight', 'adamw'), ('2.bias', 'adamw')]
        >>> model(torch.ones(4, 8)).sum().backward()
        >>> optimizer.step()
    """

    share_updates: bool
    _module: weakref.ref[nn.Module] | None
    _scope: weakref.ref[nn.Module] | None  # the module that its first group stands for
    _open: tuple[int, ...] = ()  # places of the groups that are filled from it
    _foreign: set[Tensor]  # parameters that are not, and never were, the module's
    _state_parts: dict[str, StateParts]
    _known_plans: list[GroupPlan]
    _known_bases: list[list[Any]]  # of the groups that these were made for
    _by_shape = False  # whether tensors without names were split by that
    _is_made = True  # but while the constructor adds groups

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        coefficients: CoefficientName
        | str
        | tuple[float, float, float]
        | Sequence[tuple[float, float, float]]
        | Mapping[str, Any] = "adaptive",
        outlier_quantile: Quantile | None = 0.9,
        ns_steps: int = 5,
        adjust_lr_fn: AdjustLR | None = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        ns_dtype: options.OrthogonalizationDtype = "auto",
        ns_form: FormOption = "auto",
        outlier_quantile_mode: QuantileMode = "auto",
        kernels: KernelOption = "auto",
        capturable: bool = False,
        momentum_dtype: options.MomentumDtype = "auto",
        normalize: options.Normalize = "none",
        lr_scales: Mapping[str, float] | None = None,
        weight_decays: Mapping[str, float] | None = None,
        weight_decay_mode: options.WeightDecayMode = "decoupled",
        gradient_clip_entries: float | None = None,
        precondition: options.Precondition = "none",
        precondition_sides: options.PreconditionSides = "auto",
        precondition_source: options.PreconditionSource = "gradient",
        precondition_every: int = 10,
        precondition_statistics_every: int | None = None,
        precondition_beta: float = 0.95,
        precondition_exponent: float | None = None,
        precondition_damping: float = 1e-6,
        precondition_max_dim: int = 4096,
        rules: Mapping[str, Literal["root", "adamw"] | dict[str, Any]] | str | None = None,
        share_updates: bool = True,
        share_dtype: options.ShareDtype = "auto",
    ) -> None:
        of_groups = dict(locals())  # all arguments but those of the whole optimizer
        for name in ("self", "params", "rules", "share_updates", "__class__"):
            of_groups.pop(name, None)
        coefficients = options.plain_coefficients(coefficients, ns_steps)
        defaults = {**of_groups, "coefficients": coefficients}
        options.check_options(defaults)
        check_params(params)
        if not isinstance(share_updates, bool):
            raise TypeError(f"`share_updates` must be True or False, got {share_updates!r}")
        self.share_updates = share_updates
        self._rules: Rules | None = rules
        self._routes: dict[Tensor, Route] = {}
        self._reset_runtime()
        scope, sources = module_behind(params), modules_behind(params)
        given: list[Any] = [] if scope is not None else list(params)
        self._is_made = False
        super().__init__(given or [{"params": []}], defaults)
        self._is_made = True
        self._open = tuple(n for n, g in enumerate(self.param_groups) if not g["params"])
        if scope is not None:
            self._scope = weakref.ref(scope)
        if len(sources) == 1:
            self._module = weakref.ref(sources[0])
            if any(True for _ in sources[0].parameters()):
                self.bind(sources[0])
        else:
            self._route_new(joined(sources) if sources else None, rules)

    @property
    def module(self) -> nn.Module | None:
        """The module whose parameters these are, where it is known and alive."""
        return self._module() if self._module is not None else None

    @property
    def partition(self) -> Partition | None:
        """The rule of every parameter, with its reason; None before there are any."""
        return self._partition

    @property
    def skipped(self) -> Counter[str]:
        """Number of steps that left a parameter alone, its gradient not finite, by its name."""
        return self._skipped + self._skip_counts.read()

    def bind(
        self, module: nn.Module, *, rules: Rules | None = None, frozen: bool = True
    ) -> Partition:
        """Give every parameter its name in `module` and the rule that fits it there, in place.

        Groups stay as they are, so schedulers built before stay valid, and so does the state of
        parameters that stay. An optimizer that was made from `parameters()` of a module, or empty,
        has all parameters of that module in its first group from now on; one that was given tensors
        or groups keeps to these. Groups that were made empty, each with a `role`, share the
        module's parameters by that. Parameters that were replaced (by FSDP2, for example) are
        looked up by name. A `role` of a group goes before what is found.

        Args:
            module: The model, after everything that creates or replaces parameters.
            rules: As in the constructor, which they replace.
            frozen: Whether parameters that are frozen now are taken into the first group as well,
                to be trained once they are not. False leaves them to whoever unfreezes them and
                adds a group, such as Lightning's `BackboneFinetuning`.

        Returns:
            The split, with a reason for each parameter; its `str` is a table.

        Raises:
            ValueError: If the module has no parameter, a rule is wrong, or a replaced parameter
                cannot be found again.
            RuntimeError: If its parameters have been flattened by FSDP1 or ZeRO.
        """
        reshard(module)
        readiness.refuse_flattened(self.param_groups, self._routes, module)
        present = self._members()
        fills = bool(self._open) and (self._scope is not None or not present)
        scope = self._scope() if self._scope is not None else None
        if scope is None or not any(scope is each for each in module.modules()):
            scope = module
        # A part has outputs of its own, and its rules are about its own names.
        whole = scope is module or not fills or rules is not None
        rules = self._rules if rules is None else rules
        partition = partition_all(module, rules=rules if whole else None)
        routes = dict(zip(partition.parameters, partition.routes, strict=True))
        if not whole:
            part = partition_all(scope, rules=rules)
            for parameter, route in zip(part.parameters, part.routes, strict=True):
                routes[parameter] = replace(route, name=routes[parameter].name)
        foreign = {m.parameter for m in present if m.parameter in self._foreign} - routes.keys()
        if routes.keys() <= self._routes.keys():  # nothing was replaced
            foreign = self._routes.keys() - routes.keys()
        contents = [
            []
            if fills and number in self._open
            else groups.replacements([m for m in present if m.group is group], foreign, module)
            for number, group in enumerate(self.param_groups)
        ]
        if fills:
            self._scope = weakref.ref(scope)
            own = {id(parameter) for parameter in scope.parameters()}
            own -= {id(parameter) for params in contents for parameter in params}
            held = {
                parameter: route
                for parameter, route in routes.items()
                if id(parameter) in own and (frozen or not route.frozen or parameter in self.state)
            }
            roles = [groups.role_of(self.param_groups[number]) for number in self._open]
            for number, role in zip(self._open, roles, strict=True):
                other = set(roles) - {role}  # what has a group of its own
                contents[number] = [
                    parameter
                    for parameter, route in held.items()
                    if route.role == role or (role is None and route.role not in other)
                ]
        new = [{**g, "params": p} for g, p in zip(self.param_groups, contents, strict=True)]
        self._take(routes, new, partition)
        for group, params in zip(self.param_groups, contents, strict=True):
            group["params"] = params
        self._rules, self._module = rules, weakref.ref(module)
        self._foreign = foreign & self._routes.keys()
        self._by_shape = self._checked = False
        self._members()
        assert self._partition is not None
        return self._partition

    def unbound(self) -> list[str]:
        """Names of the module's trainable parameters that no group has: made since `bind`.

        Empty where the module is not known, and for an optimizer that was given tensors or groups
        and so is not meant for the whole module.
        """
        module, scope = self.module, self._scope() if self._scope is not None else None
        if module is None or scope is None or all(p in self._routes for p in scope.parameters()):
            return []
        # By name: after a validation, FSDP2's parameters are other objects until the next step.
        bound = {member.name for member in self._members()}
        own = {id(parameter) for parameter in scope.parameters()}
        live = [(name, p) for name, p in canonical_parameters(module) if id(p) in own]
        return [name for name, p in live if p.requires_grad and name not in bound]

    def lost(self) -> list[str]:
        """Names of parameters that the module no longer has: adapters merged since `bind`.

        Empty where `unbound` is empty for want of a module.
        """
        module = self.module
        if module is None or self._scope is None:
            return []
        own = {id(parameter) for parameter in module.parameters()}
        if all(id(parameter) in own for parameter in self._routes):
            return []
        live = {name for name, _ in canonical_parameters(module)}
        held = [m for m in self._members() if m.parameter not in self._foreign]
        return [member.name for member in held if member.name not in live]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @_disable_dynamo  # within a compiled function the step runs as it is
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: Evaluates the model again and returns the loss.

        Raises:
            RuntimeError: If no parameters are bound, or the bound ones are no longer the model's.
            TypeError: If a gradient is sparse; nothing has been updated then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            readiness.check_capturing(self.param_groups, self._checked)
        plans = self._plans()
        for plan in plans:
            plan.hooks = tuple(self._stack_hooks.values())
        try:
            skipped = take_gradients(plans, self.state.__getitem__, self._skip_counts)
            finish = [self._start(plan) for plan in plans if plan.live]
            for end_of_group in finish:
                end_of_group()
        finally:
            release_gradients(plans)
        self._report(skipped)
        return loss

    def _plans(self) -> list[GroupPlan]:
        """Return what stays from step to step, settled anew where groups have changed."""
        bases = [basis_of(group) for group in self.param_groups]
        if self._checked and bases == self._known_bases:
            return self._known_plans
        for group in self.param_groups:  # a schedule may have set any rate
            options.check_options({**group, "lr": 0.0} if type(group["lr"]) is float else group)
        present = self._members()
        readiness.check_fused(present)
        if not self._checked:
            readiness.refuse_flattened(self.param_groups, self._routes)
            readiness.check_bound(present, self.module, self._foreign)
            readiness.check_clip(present)
            readiness.check_capturable(self.param_groups, self._replicas is not None)
            self._tell_split()
            agreement.sync_coefficients_across_ranks(present)
            agreement.sync_rates_across_ranks(present)
            agreement.sync_kernels_across_ranks(present)
            self._checked = True
        self._state_parts = self._assign_state_parts()
        self._rank = self._replicas.rank if self._replicas is not None else 0
        self._known_plans = []
        for group in self.param_groups:
            for role in groups.ROLES:
                own = [m for m in present if m.group is group and m.role == role]
                for member in own:
                    kept = self.state.get(member.parameter, {})
                    follow_dtype_(kept, member)
                    drop_unfit_(kept, member, self._state_parts.get(member.name), self._rank)
                bound = [bind_parameter(m.name, m.parameter, m.view, group, m.rates) for m in own]
                if bound:
                    plan = plan_group(group, role, bound, specs_of(role, group))
                    self._known_plans.append(plan)
        self._known_bases = [basis_of(group) for group in self.param_groups]
        return self._known_plans

    def _start(self, plan: GroupPlan) -> Finish:
        """Begin the step of a group wherever it is computed; what is returned ends it."""
        for bound in plan.live:
            if not plan.keys <= bound.state.keys():
                parts = self._state_parts.get(bound.name)
                add_fresh_(bound, plan.specs, plan.group, parts, self._rank)
        if clip_gradient.KEY in plan.keys:
            clip_gradient.clip_gradients(plan.live, plan.group, partial(self._where.states, plan))
        if precondition.AGE in plan.keys:
            precondition.count_steps(plan.live, plan.group)
        if plan.role == "adamw":
            if self._state_parts:
                assert isinstance(self._where, Replicated)
                return self._where.start_adamw(plan)
            adamw_update_(plan.live, plan.group)
            return nothing
        sharded = [bound for bound in plan.live if bound.is_sharded]
        if not sharded:
            return self._where.start(plan, plan.live)
        whole = [bound for bound in plan.live if not bound.is_sharded]
        finish = [self._where.start(plan, whole), Sharded().start(plan, sharded)]
        return partial(run_all, finish)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; each of its parameters has the rule that fits it, or that of its `role`.

        Args:
            param_group: `params` (tensors or (name, tensor) pairs), options that differ from the
                defaults, and perhaps a `role` of "root" or "adamw" for all of them.

        Raises:
            ValueError: If an option is out of range, or a parameter of a "root" group is not a
                matrix.
            TypeError: If the parameters have no order, or are not what a rule can update.
        """
        params = group_params(param_group)
        waiting = self._waiting(params)
        known = [
            name
            for group in self.param_groups
            for name, parameter in zip(group["param_names"], group["params"], strict=False)
            if parameter not in waiting
        ]
        named = groups.name_params(params, known, self.module)
        group = {**self.defaults, **param_group}
        role = groups.role_of(group)
        group["coefficients"] = options.plain_coefficients(group["coefficients"], group["ns_steps"])
        options.check_options(group)
        for name, parameter in named:
            groups.check_parameter(name, parameter, role)
        group |= {"params": named, "param_names": [name for name, _ in named]}
        before = [(each, each["params"]) for each in self.param_groups]
        for each, held in before:
            each["params"] = [parameter for parameter in held if parameter not in waiting]
        try:
            super().add_param_group(group)
            groups.separate_rates_(self.param_groups)
            self._checked = False
            if self._is_made:
                self._members()
        except Exception:
            self.param_groups[len(before) :] = []
            for each, params in before:
                each["params"] = params
            raise

    def _waiting(self, params: Sequence[Any]) -> set[Tensor]:
        """Return which of these the first group has held, frozen, for want of another group."""
        if self._scope is None:
            return set()
        tensors = [entry[1] if isinstance(entry, tuple) else entry for entry in params]
        held = {p for p, route in self._routes.items() if route.frozen and not self.state.get(p)}
        return {tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor in held}

    def register_stack_hook(self, hook: StackHook) -> RemovableHandle:
        """Have `hook` called within `step` with every stack of equal matrices.

        It sees momentum, clipped momentum and update before they are freed, which is what
        diagnostics need; see `optim.Stack`. Without hooks nothing is kept for them.

        Args:
            hook: Takes a `Stack`, whose tensors it must not modify.

        Returns:
            A handle; its `remove()` ends the calls.

        Example:
            >>> import torch
            >>> from lightning_root import ROOT
            >>> layer = torch.nn.Linear(8, 4, bias=False)
            >>> hidden = {"params": [("hidden.weight", layer.weight)], "role": "root"}
            >>> optimizer = ROOT([hidden])
            >>> seen = []
            >>> handle = optimizer.register_stack_hook(lambda stack: seen.append(stack.names))
            >>> layer(torch.ones(1, 8)).sum().backward()
            >>> optimizer.step()
            >>> seen
            [(('hidden.weight', 0),)]
            >>> handle.remove()
        """
        handle = RemovableHandle(self._stack_hooks)
        self._stack_hooks[handle.id] = hook
        return handle

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch's, which no group had before
        for group in self.param_groups:  # of a state that was saved when there were fewer options
            for option, value in self.defaults.items():
                group.setdefault(option, value)
        if "_skipped" not in self.__dict__:  # a copy or an unpickled object, not a loaded state
            self._reset_runtime()
            kept = self.__dict__.get("_routes", {})
            self._routes = {parameter: Route.of(plain) for parameter, plain in kept.items()}
            if kept:
                self._take({}, self.param_groups, None)
            self._members()  # of an older version's object the rules are found anew

    def _reset_runtime(self) -> None:
        self._partition: Partition | None = None
        self._skipped: Counter[str] = Counter()
        self._skip_counts = SkipCounts()
        self._module = None
        self._scope = None
        self._foreign = set()
        self._checked = self._told = False
        self._replicas = None
        self._where = Local()
        self._state_parts = {}
        self._known_plans, self._known_bases = [], []
        self._stack_hooks: OrderedDict[int, StackHook] = OrderedDict()

    def _members(self) -> list[groups.Member]:
        """Return the parameters of all groups with names and rules, which follow edited groups."""
        listed = [parameter for group in self.param_groups for parameter in group["params"]]
        if not all(parameter in self._routes for parameter in listed):
            readiness.refuse_flattened(self.param_groups, self._routes)
            self._route_new(None, None)
        elif len(listed) != len(self._routes):
            self._take({}, self.param_groups, self._partition)
        for group in self.param_groups:
            group["param_names"] = [self._routes[p].name for p in group["params"]]
        return groups.members(self.param_groups, self._routes)

    def _route_new(self, parts: nn.Module | None, rules: Rules | None) -> None:
        """Find the rules of parameters that have none: in a module, else by name and shape."""
        names = groups.names_in(self.param_groups, self._routes, self.module)
        module, found, partition = parts or self.module, {}, self._partition
        if module is not None and any(True for _ in module.parameters()):
            whole = partition_all(module, rules=self._rules)
            found = dict(zip(whole.parameters, whole.routes, strict=True))
            if parts is not None:  # whose names are not those of the model that they belong to
                found = {p: replace(r, name=names[p]) for p, r in found.items() if p in names}
        rest = [p for p in names if p not in self._routes and p not in found]
        if rest:
            by_name = partition_named([(names[p], p) for p in rest], rules=rules)
            found |= zip(rest, by_name.routes, strict=True)
            ruled = {p for g in self.param_groups if groups.role_of(g) for p in g["params"]}
            undecided = [p for p in rest if p.ndim > 1 and p not in ruled]
            self._by_shape |= any(groups.is_number(names[p]) for p in undecided)
            self._foreign |= set(rest) if module is not None else set()
        self._take({**found, **self._routes}, self.param_groups, partition)

    def _take(
        self,
        routes: Mapping[Tensor, Route],
        contents: groups.Groups,
        partition: Partition | None,
    ) -> None:
        """Take rules over, all or none; state that no longer fits its parameter is forgotten."""
        saved = {p: r for p, r in self._routes.items() if r.reason == groups.SAVED}
        new = groups.routed(contents, {**self._routes, **routes, **saved})
        readiness.check_fused(groups.members(contents, new))
        for parameter in [key for key in self.state if isinstance(key, Tensor)]:
            before, after = self._routes.get(parameter), new.get(parameter)
            if after is None or (before is not None and before.role != after.role):
                del self.state[parameter]
            elif before is not None and before.view != after.view:
                drop_matrices_(self.state[parameter])
        self._routes = new
        parts = tuple(new.values()), tuple(new)
        self._partition = (
            replace(partition, routes=parts[0], parameters=parts[1])
            if partition is not None
            else Partition(*parts)
        )
        groups.warn_of_published(groups.members(contents, new))

    def _keep_rules(self, present: Sequence[groups.Member]) -> None:
        """Update parameters by these rules from now on, which a loaded state had."""
        changed = [m for m in present if m.route is not self._routes[m.parameter]]
        if changed:
            self._take({m.parameter: m.route for m in changed}, self.param_groups, self._partition)
            self._known_bases = []
            warnings.warn(
                f"{len(changed)} parameters go on under the rule that they were saved with (first: "
                f"{changed[0].name!r} under `{changed[0].role}`): without names, or by an older "
                "version, they were split otherwise. To change it, pass `rules`, and start without "
                "the optimizer's state",
                stacklevel=6,
            )

    def _tell_split(self) -> None:
        """Say once how parameters were split, where nobody has shown it."""
        if self._by_shape:
            warnings.warn(
                "ROOT got tensors without names and split them by shape: an embedding or an output "
                "head looks like any other matrix and is orthogonalized. Pass "
                "`model.parameters()` itself or `model.named_parameters()`, call "
                "`ROOT.bind(model)`, use `ROOTMixin`, or add the `lightning_root.ROOTBinder` "
                "callback",
                stacklevel=7,
            )
        elif not self._told and self._partition is not None:
            _log.info("%s", self._partition.summary())
        self._told = True

    def shapes_to_fit(self) -> set[Shape]:
        """Return for which shapes the first step fits coefficients, or finds them in the cache."""
        return {shape for shape, _, _ in agreement.fits_needed(self._members())}

    def table(self) -> str:
        """Return the split as a readable table; the first step does not log its sums then."""
        self._told = True
        alike: dict[str, list[str]] = {}
        for name, (lr, decay) in self.rates().items():
            alike.setdefault(f"learning rate {float(lr):g}, weight decay {decay:g}", []).append(
                name
            )
        rates = [
            (", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more")
            + f": {of_all}"
            for of_all, names in alike.items()
        ]
        return "\n".join([str(self.partition), *rates])

    def rates(self) -> dict[str, tuple[float | Tensor, float]]:
        """Learning rate and decay in effect where they are not the group's, as they are now.

        By kind, or by name where a rule gives them; with several groups `kind/number`.
        """
        found: dict[str, tuple[float | Tensor, float]] = {}
        for member in self._members():
            if member.rates is not None:
                by_rule = (member.route.lr_scale, member.route.weight_decay) != (None, None)
                key = member.name if by_rule else member.route.kind
                number = next(i for i, g in enumerate(self.param_groups) if g is member.group)
                several = len(self.param_groups) > 1 and not by_rule
                own = member.rates.of(member.group)
                found[f"{key}/{number}" if several else key] = own["lr"], own["weight_decay"]
        return found

    def _report(self, skipped: Sequence[str]) -> None:
        new = [name for name in skipped if name not in self._skipped]
        self._skipped.update(skipped)
        if new:
            warnings.warn(
                f"ROOT left {len(new)} parameters alone because their gradient is not finite "
                f"or overflows in float32 (first: {new[:3]}); weights and state are untouched. "
                "Said once per parameter; `optimizer.skipped` counts",
                stacklevel=7,
            )
