"""Where a model lies: the devices of this machine, and the arguments of Model and LLM that choose among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pyhysparse._ffi import check, ffi, lib, new_error, text
from pyhysparse.errors import ArgumentError

if TYPE_CHECKING:
    from pyhysparse.session import SessionParams

__all__ = ["Device", "DeviceMemory", "GpuLayers", "devices"]

GpuLayers = int | Literal["auto", "all"]
ALL_LAYERS = 2**31 - 1  # hs_model_params: any number above n_layer is all of them


@dataclass(frozen=True)
class Device:
    """A GPU that this build has kernels for, or the CPU (hs_device_info). Memory in bytes, at the time of asking."""

    name: str  # "CUDA0", "CPU"
    description: str  # "NVIDIA H100 80GB HBM3"
    memory_free: int
    memory_total: int


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a session on one device (hs_device_memory)."""

    device: str
    weights: int
    pages: int
    rings: int
    compute: int


def devices() -> list[Device]:
    """What models can be placed on: the GPUs, as CUDA numbers them, and the CPU at the end."""
    info, found = ffi.new("hs_device_info *"), []
    for i in range(lib.hs_device_count()):
        check(lib.hs_device_get(i, info), new_error())
        found.append(Device(text(info.name), text(info.description), int(info.memory_free), int(info.memory_total)))
    return found


def set_placement(
    params: Any,
    n_gpu_layers: GpuLayers,
    n_cpu_moe: int,
    cpu_moe: bool,
    names: Sequence[str] | str | None,
    tensor_split: Sequence[float] | None,
    fit: SessionParams | None,
) -> list[Any]:
    """Fill the placement members of hs_model_params; returns what they point to. Raises ArgumentError."""
    params.n_gpu_layers = gpu_layers(n_gpu_layers)
    if isinstance(n_cpu_moe, bool) or not isinstance(n_cpu_moe, int) or not 0 <= n_cpu_moe < 2**31:
        raise ArgumentError(f"n_cpu_moe is {n_cpu_moe!r}; expected a number of layers from 0 on")
    params.n_cpu_moe = -1 if cpu_moe else n_cpu_moe
    keep: list[Any] = []  # a member read back would not own what it points to
    if names is not None:
        keep.append(ffi.new("char[]", device_list(names).encode()))
        params.devices = keep[-1]
    if tensor_split is not None:
        keep.append(ffi.new("float[]", split_shares(tensor_split)))
        params.tensor_split, params.n_tensor_split = keep[-1], len(keep[-1])
    if fit is not None:
        session, strings = fit.to_c()
        params.fit = session
        keep += [session, *strings]
    return keep


def gpu_layers(value: object) -> int:
    """n_gpu_layers as C counts it: "auto" is -1 there; "all", and -1 as in llama-cpp-python, any large number."""
    if value == "auto":
        return -1
    if value == "all":
        return ALL_LAYERS
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < 2**31:
        raise ArgumentError(f"n_gpu_layers is {value!r}; expected 'auto', 'all' (or -1), or a number of layers from 0 on")
    return ALL_LAYERS if value == -1 else value


def device_list(names: Sequence[str] | str) -> str:
    """["CUDA1", "CUDA0"] or "CUDA1,CUDA0" -> "CUDA1,CUDA0"; no device is "none"."""
    parts = [part.strip() for part in names.split(",")] if isinstance(names, str) else names
    if not isinstance(parts, Sequence) or any(not isinstance(part, str) or not part or "," in part or "\0" in part for part in parts):
        raise ArgumentError(f"devices is {names!r}; expected names such as ['CUDA0', 'CUDA1'] or 'CUDA0,CUDA1', or 'none'")
    return ",".join(parts) or "none"


def split_shares(tensor_split: Sequence[float]) -> list[float]:
    """The share of each device."""
    try:
        shares = [] if isinstance(tensor_split, (str, bytes)) else [float(share) for share in tensor_split]
    except (TypeError, ValueError):
        shares = []
    if not shares or any(not math.isfinite(share) or share < 0 for share in shares) or sum(shares) <= 0:
        raise ArgumentError(f"tensor_split is {tensor_split!r}; expected a share for each device, such as [3, 1], none of them negative")
    return shares
