"""The device that tensors lie on: what it runs and holds, whether it may be waited for, where a tensor lies in it."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

OLDEST = (8, 0)  # compute capability of NVIDIA's: asynchronous copies, bfloat16, reductions of a warp
DTYPES = {  # as the compiled kernels call them
    torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float64: "float64",
    torch.uint16: "uint16",
}  # fmt: skip
NARROW = (torch.float32, torch.bfloat16, torch.float16)  # what most kernels take
NARROW_NAMES = "float32, bfloat16 and float16"


def capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of a CUDA device; None for others."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def too_old(capability: tuple[int, int] | None) -> str | None:
    """None when kernels run on a device of this compute capability (None: unknown), otherwise the reason."""
    if capability is None or torch.version.hip is not None or capability >= OLDEST:
        return None
    return f"needs compute capability 8.0 or later, got {capability[0]}.{capability[1]}"


def not_cpu(device: str) -> str | None:
    """None when kernels of the CPU run there, otherwise the reason."""
    return None if device == "cpu" else f"needs a CPU tensor, got one on {device}"


def not_narrow(*dtypes: torch.dtype) -> str | None:
    """None when all are NARROW, otherwise the reason."""
    others = (f"needs float32, bfloat16 or float16, got {dtype}" for dtype in dtypes if dtype not in NARROW)
    return next(others, None)


def may_wait(device: torch.device, check: bool | None = None) -> bool:
    """Whether a value may be read here: on the CPU; elsewhere the host would wait for the device, so only if asked."""
    return device.type == "cpu" or bool(check)


def memory(device: torch.device) -> int:
    """Bytes of memory that the device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fits(subject: str, needed: int, device: torch.device) -> None:
    """Refuse what is larger than the memory of the device, before anything is allocated."""
    if needed > memory(device):
        raise MemoryError(f"{subject} must leave room for {needed} bytes, got {memory(device)} bytes of memory")


def address(value: Tensor | None) -> int:
    """Of the first element; 0 where there is no tensor."""
    return 0 if value is None else value.data_ptr()


def features(extension: ModuleType, x: Tensor) -> Any:
    """Where rows of features [..., N, D] lie, as `extension`, _C or _cuda, has it: of a batch the first matrix."""
    return extension.Features(
        data=x.data_ptr(),
        dtype=DTYPES[x.dtype],
        row_stride=x.stride(-2),
        column_stride=x.stride(-1),
        columns=x.shape[-1],
    )
