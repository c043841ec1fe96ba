"""Arithmetic for emulated NPUs: torch_npu's kernels, computed by the CPU on the same bytes.

torch's autoloading of backends calls `install` in every process. It takes the place of the kernels
that torch_npu registers for `npu`, and of no others: an operator that has none goes torch_npu's own
way to the CPU, or fails where `TORCH_NPU_FALLBACK_CPU_DISABLE=1` forbids that, as on the device.
What allocates or only looks at memory stays torch_npu's.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

aten = torch.ops.aten

MEMORY = {
    *("empty.memory_format", "empty_strided", "empty_like", "new_empty_strided", "contiguous"),
    *("set_", "set_.source_Storage", "set_.source_Storage_storage_offset", "set_.source_Tensor"),
    *("resize_", "resize_as_", "is_set_to", "_to_copy", "_copy_from_and_resize"),
    *("record_stream", "is_pinned", "_pin_memory"),
}
"""Operators that stay torch_npu's own."""

NOT_IN_BFLOAT16 = {"sort", "kthvalue", "histc", "quantile", "nanquantile", "linalg_qr"}
"""By Ascend's tables of operators and dtypes for torch 2.13."""

MAY_BE_FLOAT64 = {"copy_", "_copy_from", "clone", "fill_", "zero_", "_local_scalar_dense"}
"""A tensor of float64 can be made on the device; hardly an operator computes with it."""

_library: list[torch.library.Library] = []


def install() -> None:
    """Put the CPU's arithmetic in the place of torch_npu's kernels."""
    import torch_npu  # noqa: F401

    if _library:
        return
    library = torch.library.Library("aten", "IMPL")
    _library.append(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that kernels are overridden is the point
        for name, operator in _operators():
            library.impl(operator, _on_cpu(name, operator), "PrivateUse1", allow_override=True)
        for name, kernel in (
            ("matmul_backward", _matmul_backward),
            ("linear_backward", _linear_backward),
        ):
            library.impl(name, kernel, "PrivateUse1", allow_override=True)
        attention = "scaled_dot_product_attention"
        library.impl(attention, _attention, "AutogradPrivateUse1", allow_override=True)
        library.impl(attention, _attention, "PrivateUse1", allow_override=True)


def _operators() -> Iterator[tuple[str, Any]]:
    """The operators with a kernel of torch_npu, except those that only handle memory."""
    for qualified in torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1"):
        namespace, _, name = qualified.partition("::")
        if namespace != "aten" or name in MEMORY:
            continue
        base, _, overload = name.partition(".")
        try:
            operator = getattr(getattr(aten, base), overload or "default")
        except AttributeError:  # of torch_npu alone, under aten's name
            continue
        if not any(r.alias_info and not r.alias_info.is_write for r in operator._schema.returns):
            yield base, operator


def _on_cpu(name: str, operator: Any) -> Callable[..., Any]:
    outputs = {a.name for a in operator._schema.arguments if a.is_out}

    def kernel(*args: Any, **kwargs: Any) -> Any:
        devices: list[torch.device] = []
        originals: dict[int, tuple[Tensor, Tensor]] = {}

        def down(value: Any) -> Any:
            if isinstance(value, torch.Generator) and value.device.type == "npu":
                return torch.default_generator
            if isinstance(value, torch.device) and value.type == "npu":
                devices.append(torch.device("npu", torch.npu.current_device()))
                return torch.device("cpu")
            if not isinstance(value, Tensor) or value.device.type != "npu":
                return value
            devices.append(value.device)
            _check_dtype(name, value)
            alias = on_host(value)
            originals[id(alias)] = (alias, value)
            return alias

        def fresh(value: Any) -> Any:  # an empty `out=` is to be resized, which an alias cannot be
            if not isinstance(value, Tensor) or value.numel() or value.device.type != "npu":
                return down(value)
            alias = torch.empty_like(value, device="cpu")
            originals[id(alias)] = (alias, value)
            return alias

        def up(value: Any) -> Any:
            if not isinstance(value, Tensor) or not devices:
                return value
            if id(value) not in originals:
                return to_device(value, devices[0])
            alias, original = originals[id(value)]
            if original.shape != alias.shape:
                original.resize_(alias.shape)
                on_host(original).copy_(alias)
            return original

        kwargs = {k: tree_map(fresh if k in outputs else down, v) for k, v in kwargs.items()}
        return tree_map(up, operator(*tree_map(down, args), **kwargs))

    return kernel


def _check_dtype(name: str, tensor: Tensor) -> None:
    """Refuse what the device cannot compute with."""
    base = name.removeprefix("_foreach_").rstrip("_")
    if tensor.dtype == torch.bfloat16 and base in NOT_IN_BFLOAT16:
        raise RuntimeError(f"emulated NPU: {name} does not take bfloat16")
    if tensor.dtype == torch.float64 and name not in MAY_BE_FLOAT64:
        raise RuntimeError(f"emulated NPU: {name} does not take float64")


def on_host(tensor: Tensor) -> Tensor:
    """The same bytes, as a tensor of the CPU."""
    storage = tensor.untyped_storage()
    memory = torch._C._construct_storage_from_data_pointer(
        storage.data_ptr(), torch.device("cpu"), storage.nbytes()
    )
    layout = (tensor.storage_offset(), tensor.size(), tensor.stride())
    return torch.empty(0, dtype=tensor.dtype).set_(memory, *layout)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, laid out alike."""
    made = torch.empty_like(tensor, device=device)
    on_host(made).copy_(tensor)
    return made


# torch_npu differentiates these three by kernels of its own, which a CPU does not have.


def _matmul_backward(
    gradient: Tensor, a: Tensor, b: Tensor, mask: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    left = a.unsqueeze(0) if a.ndim == 1 else a
    right = b.unsqueeze(1) if b.ndim == 1 else b
    gradient = gradient.unsqueeze(-2) if a.ndim == 1 else gradient
    gradient = gradient.unsqueeze(-1) if b.ndim == 1 else gradient
    return (
        (gradient @ right.mT).sum_to_size(left.shape).reshape(a.shape) if mask[0] else None,
        (left.mT @ gradient).sum_to_size(right.shape).reshape(b.shape) if mask[1] else None,
    )


def _linear_backward(
    x: Tensor, gradient: Tensor, weight: Tensor, mask: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    flat, rows = gradient.flatten(0, -2), x.flatten(0, -2)
    return (
        gradient @ weight if mask[0] else None,
        flat.mT @ rows if mask[1] else None,
        flat.sum(0) if mask[2] else None,
    )


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    options = {"scale": scale, "enable_gqa": enable_gqa}
    return aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, None, **options
    )[0]
