"""What Triton compiles for: devices, architectures and what differs between them."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch

from mrtkern import _device

DEVICES: tuple[str, ...] = ("cuda",)  # types of devices that kernels run on
TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")  # what the report on machine code compiles for
SHARED = {  # bytes of shared memory that one program may use; sm_86 stands for sm_89 too
    arch: size << 10
    for arch, size in [("sm_80", 163), ("sm_86", 99), ("sm_90", 227), ("sm_100", 227), ("sm_120", 99), ("gfx942", 64)]
}
DESCRIPTORS = ("sm_90", "sm_100", "sm_120")  # architectures that copy tiles by tensor descriptor
INTERPRETED = "sm_90"  # what the interpreter stands for: all paths of the newer targets
NAMES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64",
    torch.int16: "i16", torch.int32: "i32", torch.int64: "i64", torch.uint16: "u16",
}  # fmt: skip


def why_not(device: str, capability: tuple[int, int] | None) -> str | None:
    """None when kernels run on a device of this type and compute capability (None: unknown), otherwise the reason."""
    if device not in DEVICES:
        return f"needs a CUDA tensor, got one on {device}"
    return _device.too_old(capability)


@functools.cache
def arch(device: torch.device) -> str:
    """The row of the tables that a device takes: its own, or that of the closest older one."""
    if device.type == "cpu":
        return INTERPRETED
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if major == 8:
        return "sm_80" if minor == 0 else "sm_86"
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_120")


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs of the largest kind run at once."""
    if device.type == "cpu":
        return 2  # so that an interpreted program takes several tiles
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Launches inside go to this device, in torch's current stream."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def num_warps(arch: str, threads: int) -> int:
    """Warps of so many threads: 32 wide, 64 on AMD."""
    return max(1, threads // (64 if arch.startswith("gfx") else 32))
