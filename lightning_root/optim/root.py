"""class ROOT: both update rules in one `torch.optim.Optimizer`."""

import warnings
import weakref
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT
from torch.utils.hooks import RemovableHandle

from lightning_root.coefficients import CoefficientName
from lightning_root.distributed import reshard
from lightning_root.functional import AdjustLR, Quantile, QuantileMode
from lightning_root.kernels import FormOption, KernelOption
from lightning_root.optim import agreement, groups, options, readiness
from lightning_root.optim.binding import check_params, group_params, module_behind, split
from lightning_root.optim.blocks import GroupPlan, plan_group
from lightning_root.optim.ddp import Replicated
from lightning_root.optim.fsdp import Sharded
from lightning_root.optim.gradients import SkipCounts, release_gradients, take_gradients
from lightning_root.optim.local import Finish, Local, nothing, run_all
from lightning_root.optim.shared_state import SharedState
from lightning_root.optim.stages.adamw import adamw_update_
from lightning_root.optim.state import StateParts, add_fresh_, drop_neurons_, specs_of
from lightning_root.optim.step import StackHook
from lightning_root.partition import MatrixView, Partition, Rules, partition_parameters
from lightning_root.partition.parameters import canonical_parameters


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
        params: `module.parameters()` or `module.named_parameters()`; tensors, (name, tensor) pairs;
            dicts with `params` and a `role` of "root" or "adamw" (or that as their `name`); or an
            empty list, to be filled by `bind(module)`.
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
        rules: Globs on parameter names that override the split, first match wins. The value is
            "adamw", "root", or how a matrix rule cuts the parameter: {"*.qkv.weight": {"rows": 3}}
            for three equal row blocks, {"rows": [256, 64, 64]} for unequal ones, "columns"
            likewise, {"stack": 1} for a stack of matrices; see `MatrixView`. A name stands for the
            rules of a family that needs them: "xlnet", "funnel".
        share_updates: Where Lightning's DDP replicates the model, each rank orthogonalizes a share
            of the matrices and the updates are exchanged; False has every rank do all. See `share`.
        share_dtype: In which updates travel between ranks: "auto" is float32, in which they are
            what they are on one process; "bfloat16" is half the bytes under DDP (three quarters
            under FSDP2, whose rows of momentum stay float32) and rounds each update to 0.4 %.

    A parameter that holds several matrices (fused q, k and v, gates, experts, the groups of a
    convolution) is updated as those matrices are, each with its own threshold and scale, where the
    module or a rule tells how it is cut. Groups that the user makes are taken whole.

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
        >>> [(group["name"], group["param_names"]) for group in optimizer.param_groups]
        [('root', ['0.weight']), ('adamw', ['0.bias', '2.weight', '2.bias'])]
        >>> model(torch.ones(4, 8)).sum().backward()
        >>> optimizer.step()
    """

    partition: Partition | None
    share_updates: bool
    _module: weakref.ref[nn.Module] | None
    _state_parts: dict[str, StateParts]

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
        self._views: dict[str, MatrixView] = {}
        self._reset_runtime()
        module = module_behind(params)
        given: list[Any] = [] if module is not None else list(params)
        self._own_groups = any(isinstance(entry, dict) for entry in given)
        self._selection = bool(given)
        empty = [{"params": [], "name": role, "role": role} for role in groups.ROLES]
        super().__init__(given if self._own_groups else empty, defaults)
        if module is not None:
            self._module = weakref.ref(module)
            if any(parameter.requires_grad for parameter in module.parameters()):
                self.bind(module)
        elif given and not self._own_groups:
            self._assign(split(given, rules))

    @property
    def module(self) -> nn.Module | None:
        """The module whose parameters these are, where it is known and alive."""
        return self._module() if self._module is not None else None

    @property
    def skipped(self) -> Counter[str]:
        """Number of steps that left a parameter alone, its gradient not finite, by its name."""
        return self._skipped + self._skip_counts.read()

    def bind(self, module: nn.Module, *, rules: Rules | None = None) -> Partition:
        """Take the parameters of `module`, split by name and module type, in place.

        The groups stay the same objects, so schedulers built before stay valid, and so does the
        state of parameters that stay. An optimizer that was given a selection of the module's
        tensors keeps to that selection. Groups that the user made keep their split: only
        parameters that were replaced (by FSDP2, for example) are looked up again by name.

        Args:
            module: The model, after everything that creates or replaces parameters.
            rules: As in the constructor, which they replace.

        Returns:
            The split, with a reason for each parameter; its `str` is a table.

        Raises:
            ValueError: If the module has no trainable parameter, a rule is wrong, or a replaced
                parameter cannot be found again.
            RuntimeError: If its parameters have been flattened by FSDP1 or ZeRO.
        """
        if rules is not None:
            self._rules = rules
        reshard(module)
        readiness.refuse_flattened(self.param_groups, module)
        if self._own_groups:
            stale = groups.stale_names(self.param_groups, module)
            groups.replace_stale(self.param_groups, module, stale)
            self.partition = groups.partition_from_groups(self.param_groups, self._views)
        else:
            partition = partition_parameters(module, rules=self._rules)
            if self._selection:
                partition = groups.selected(partition, self.param_groups, module)
            self._assign(partition)
        self._module = weakref.ref(module)
        self._checked = False
        assert self.partition is not None
        return self.partition

    def unbound(self) -> list[str]:
        """Names of the module's trainable parameters that no group has: unfrozen since `bind`.

        Empty where the module is not known, and for an optimizer that was given tensors or groups
        and so is not meant for the whole module.
        """
        module = self.module
        if module is None or self._selection:
            return []
        # By name: after a validation, FSDP2's parameters are other objects until the next step.
        bound = {name for _, name, _ in groups.members(self.param_groups)}
        live = canonical_parameters(module)
        return [name for name, p in live if p.requires_grad and name not in bound]

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
            TypeError: If a gradient is sparse or complex; nothing has been updated then.
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
        if not self._checked:
            added = () if self._own_groups else self.param_groups[len(groups.ROLES) :]
            readiness.check_bound(self.param_groups, self.module, added)
            readiness.check_capturable(self.param_groups, self._replicas is not None)
            agreement.sync_coefficients_across_ranks(self.param_groups, self._views)
            agreement.sync_rates_across_ranks(self.param_groups)
            agreement.sync_kernels_across_ranks(self.param_groups)
            self._known_plans = []
            self._checked = True
        known, present = self._known_plans, self.param_groups
        if len(known) != len(present) or not all(map(GroupPlan.is_of, known, present)):
            self._state_parts = self._assign_state_parts()
            known = [plan_group(group, self._views, specs_of(group)) for group in present]
            self._known_plans = known
        return known

    def _start(self, plan: GroupPlan) -> Finish:
        """Begin the step of a group wherever it is computed; what is returned ends it."""
        for bound in plan.live:
            if not plan.keys <= bound.state.keys():
                rank = self._replicas.rank if self._replicas is not None else 0
                parts = self._state_parts.get(bound.name)
                add_fresh_(bound, plan.specs, plan.group, parts, rank)
        if plan.group["role"] == "adamw":
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
        """Add a group; without a `role` its parameters are split and may make two groups.

        Args:
            param_group: `params` (tensors or (name, tensor) pairs), options that differ from the
                defaults, and `role` or `name` "root" or "adamw".

        Raises:
            ValueError: If an option is out of range, a name is taken, or a "root" parameter is not
                a matrix.
            TypeError: If the parameters are not floating point tensors, or have no order.
        """
        named = groups.name_params(group_params(param_group), self.param_groups, self.module)
        group = {key: value for key, value in param_group.items() if key != "params"}
        role = group.pop("role", group.get("name") if group.get("name") in groups.ROLES else None)
        if role is None:
            partition = groups.split_new(named, self.param_groups, self.module, self._rules)
            self._views |= groups.views_of(partition)
            for part in partition.groups():
                if part["params"]:
                    name = f"{group['name']}.{part['role']}" if "name" in group else part["role"]
                    self.add_param_group({**group, **part, "name": name})
            return
        if role not in groups.ROLES:
            raise ValueError(f"`role` must be one of {list(groups.ROLES)}, got {role!r}")
        group["name"] = groups.free_name(group.get("name") or role, self.param_groups)
        group = {**self.defaults, **group, "role": role}
        group["coefficients"] = options.plain_coefficients(group["coefficients"], group["ns_steps"])
        options.check_options(group)
        groups.check_parameters(group, named, self._views)
        group["param_names"] = [name for name, _ in named]
        super().add_param_group({**group, "params": named})
        self.partition = groups.partition_from_groups(self.param_groups, self._views)
        self._checked = False

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
            self.partition = groups.partition_from_groups(self.param_groups, self._views)

    def _reset_runtime(self) -> None:
        self.partition = None
        self._skipped: Counter[str] = Counter()
        self._skip_counts = SkipCounts()
        self._module = None
        self._checked = False
        self._replicas = None
        self._where = Local()
        self._state_parts = {}
        self._known_plans: list[GroupPlan] = []
        self._stack_hooks: OrderedDict[int, StackHook] = OrderedDict()

    def _assign(self, partition: Partition) -> None:
        """Take the parameters of a partition; what is no longer bound loses its state."""
        views = groups.views_of(partition)
        cut = {p: self._views.get(name) for _, name, p in groups.members(self.param_groups)}
        groups.fill(self.param_groups, partition)
        bound = {p: views.get(name) for _, name, p in groups.members(self.param_groups)}
        kept = {parameter: state for parameter, state in self.state.items() if parameter in bound}
        for parameter, state in kept.items():
            if bound[parameter] != cut.get(parameter):
                drop_neurons_(state)
        self.state = defaultdict(dict, kept)
        self.partition, self._views = partition, views

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
