"""Triton's kernels compiled to the machine code of a GPU that is not there, as the package asks.

Run as a program, because Triton's driver is replaced for the whole process: nothing is launched.
Writes, for each kernel, what its machine code needs and has.
"""

import json
import re
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from lightning_root.kernels.triton import passes, products, rounding
from lightning_root.kernels.triton.tiles import TILES

USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


class Driver:
    """As much of a driver as compilation asks for."""

    def __init__(self, capability: int) -> None:
        limits = {"max_shared_mem": 227 << 10, "max_num_regs": 1 << 16, "warpSize": 32}
        self.utils = SimpleNamespace(get_device_properties=lambda device: limits)
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self):
        return self._target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


def compiled(capability):
    """What every kernel has, by its name and what it was compiled for."""
    triton.runtime.driver.set_active(Driver(capability))
    found, launch = {}, JITFunction.run
    label = ""

    def only_compile(self, *arguments, grid, warmup, **options):
        kernel = launch(self, *arguments, grid=grid, warmup=True, **options)
        found[f"{self.fn.__name__} {label}"] = described(kernel)
        return kernel

    JITFunction.run = only_compile
    for label, run in runs():  # noqa: B007 # `only_compile` reads it
        run()
    JITFunction.run = launch
    return found


def runs():
    """The calls that the package makes, on memory that is only looked at for its alignment."""
    wide = torch.zeros(2, 256, 512, dtype=torch.bfloat16)
    square, tall = wide[..., :256].contiguous(), wide.mT.contiguous()
    for number, tile in enumerate(TILES):
        yield f"bfloat16 {number}", lambda tile=tile: products.quadratic(square, -1.5, 0.5, tile)
    yield "wide bfloat16", lambda: products.symmetric_product(wide, wide.mT, TILES[3])
    yield "tall bfloat16", lambda: products.symmetric_product(tall.mT, tall, TILES[3])
    single = wide.float()
    yield "wide float32", lambda: products.symmetric_product(single, single.mT, TILES[0])
    out, peaks, finite = (
        single[0].clone(),
        torch.zeros(passes.blocks(single[0])),
        torch.tensor(True),
    )
    codes = torch.zeros(out.numel() * 129 // 128, dtype=torch.uint8)
    how = {"nesterov": True, "maximize": False, "finite": finite}
    for gradient in (single[0], wide[0]):
        for momentum in (single[1], wide[1]):
            yield (
                f"{gradient.dtype} {momentum.dtype}",
                lambda g=gradient, m=momentum: passes.momentum_step_(g, m, out, 0.95, peaks, **how),
            )
        for on_device in (False, True):
            yield (
                f"{gradient.dtype} {on_device}",
                lambda g=gradient, on_device=on_device: rounding.momentum_step_float8_(
                    g, codes, torch.zeros(()), out, 0.95, capturable=on_device, **how
                ),
            )
    for lr in (0.02, torch.tensor(0.02)):
        yield (
            f"bfloat16 {lr}",
            lambda lr=lr: passes.apply_update_(wide[1], wide[0], lr, 0.1, 1.0, finite),
        )
    for dtype in (torch.bfloat16, torch.float32):
        yield f"{dtype}", lambda dtype=dtype: passes.clipped_unit(single, torch.ones(2), dtype)
    yield "0.9", lambda: passes.sampled_threshold(single, 0.9)


def described(kernel):
    """Registers, memory, and the instructions that matter, of a kernel's machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    registers, stack, local = map(int, USAGE.search(usage).groups())
    return {
        "registers": registers,
        "spilled": stack + local,
        "shared": kernel.metadata.shared,
        "tensor_cores": "wgmma.mma_async" in kernel.asm["ptx"],
        "loads_ahead": "cp.async" in kernel.asm["ptx"],
    }


if __name__ == "__main__":
    json.dump(compiled(int(sys.argv[1])), sys.stdout)
