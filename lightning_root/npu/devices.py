"""Which NPUs a run takes: what `devices` may be."""

import os
from collections.abc import Sequence

from lightning_root.npu.runtime import VISIBLE_DEVICES, device_count

_RULE = '`devices` must be a number of NPUs, -1 for all, or indices such as [0, 2] or "0,2"'


def parse_devices(devices: int | str | Sequence[int]) -> list[int]:
    """The indices of the NPUs that `devices` stands for, as Lightning reads it for GPUs.

    Args:
        devices: A number n for the first n; -1, "-1" or "auto" for all; a sequence of indices, or
            "0,2". "2" is two devices, "2," the one with index 2.

    Returns:
        Indices among those that are visible, at least one, in the order given.

    Raises:
        TypeError: If `devices` is of another kind.
        ValueError: If it names no device, one twice, or one that is not there.
    """
    visible = device_count()
    indices = _indices(devices, visible)
    if not indices or len(set(indices)) < len(indices):
        raise ValueError(f"{_RULE}, each once and at least one, got {devices!r}")
    if not all(0 <= index < visible for index in indices):
        setting = os.environ.get(VISIBLE_DEVICES)
        setting = "not set" if setting is None else repr(setting)
        raise ValueError(
            f"`devices` must name NPUs that are there, got {devices!r}, which means {indices}, but "
            f"this process sees {visible}, numbered from 0 ({VISIBLE_DEVICES} is {setting})"
        )
    return indices


def _indices(devices: object, visible: int) -> list[int]:
    if isinstance(devices, str):
        return _from_text(devices.strip(), visible)
    if isinstance(devices, Sequence) and all(_is_whole(index) for index in devices):
        return list(devices)
    if not _is_whole(devices):
        raise TypeError(f"{_RULE}, got {devices!r}")
    assert isinstance(devices, int)
    return list(range(visible if devices == -1 else devices))


def _from_text(devices: str, visible: int) -> list[int]:
    if devices in ("auto", "-1"):
        return list(range(visible))
    try:
        if "," in devices:
            return [int(index) for index in devices.split(",") if index.strip()]
        return list(range(int(devices)))
    except ValueError:
        raise ValueError(f"{_RULE}, got {devices!r}") from None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
