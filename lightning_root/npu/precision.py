"""Precision plugins that compute on NPUs, or say that they cannot."""

from typing import TypeVar

import torch

from lightning_root.npu.runtime import npu, supports_bfloat16

Plugin = TypeVar("Plugin")


def on_npu(plugin: Plugin) -> Plugin:
    """Turn a precision plugin of Lightning to NPUs, in place.

    Lightning makes `precision: bf16-mixed` an autocast of CUDA, which on an NPU is none at all: the
    forward pass would run in float32 and nobody would say so.

    Args:
        plugin: Of `lightning.pytorch` or `pytorch_lightning`.

    Returns:
        `plugin`, whose autocast and loss scaling, if it has any, are those of `npu`.

    Raises:
        ValueError: If the chip has no bfloat16 and the plugin needs it, or if it needs float64.
        RuntimeError: If there is no NPU that can be used.
    """
    precision = getattr(plugin, "precision", "32-true")
    if precision == "64-true":
        raise ValueError(
            "`precision` must not be 64-true on an NPU: casts to float64 give float32 there; use "
            "32-true"
        )
    if precision in ("bf16-mixed", "bf16-true") and not supports_bfloat16():
        name = npu().get_device_name()
        raise ValueError(
            f"`precision` must not be {precision} on {name}, which has no bfloat16 and would "
            f"compute in float32; use {precision.replace('bf16', '16')}"
        )
    if getattr(plugin, "device", "npu") != "npu":  # only mixed precision has a device
        plugin.device = "npu"  # type: ignore[attr-defined]
        if plugin.scaler is not None:  # type: ignore[attr-defined]
            npu()
            plugin.scaler = torch.amp.GradScaler(device="npu")  # type: ignore[attr-defined]
    return plugin
