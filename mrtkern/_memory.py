"""New memory for results that are larger than caches: on huge pages, because faulting small ones in costs more time
than the kernels that fill them."""

from __future__ import annotations

import importlib.util
import math

import torch
from torch import Tensor

LARGE = 2**22  # bytes: two huge pages; below, the allocator of torch reuses what it has


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Like torch.empty."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < LARGE or importlib.util.find_spec("mrtkern._C") is None:
        return torch.empty(shape, dtype=dtype, device=device)
    from mrtkern import _C

    return torch.from_numpy(_C.fresh_pages(size)).view(dtype).view(shape)
