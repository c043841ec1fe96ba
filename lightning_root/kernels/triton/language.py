"""Triton where it is installed; without it, modules with kernels can be imported all the same."""

from collections.abc import Callable
from typing import Any

try:
    import triton
    from triton import language as tl
except ImportError:
    triton = tl = None

__all__ = ["cdiv", "interpreted", "jit", "tl"]


def jit(function: Callable[..., Any]) -> Any:
    """Apply `triton.jit`, where there is one."""
    return function if triton is None else triton.jit(function)


def interpreted() -> bool:
    """Return whether kernels run as Python on CPU tensors (TRITON_INTERPRET=1), as in tests."""
    return triton is not None and bool(triton.knobs.runtime.interpret)


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)
