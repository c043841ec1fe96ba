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
    """`triton.jit`, where there is one."""
    return function if triton is None else triton.jit(function)


def interpreted() -> bool:
    """Whether kernels run as Python on CPU tensors (TRITON_INTERPRET=1), as tests run them."""
    return triton is not None and bool(triton.knobs.runtime.interpret)


def cdiv(a: int, b: int) -> int:
    """How many parts of size b there are in a."""
    return -(-a // b)
