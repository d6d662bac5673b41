"""Sums of many numbers: the same bits for every number of threads.

torch shares out a sum with a single result among its threads, in as many parts as there are, from 32,768 numbers on;
never one of several. So numbers are added in rows of BLOCK, then the sums of rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 4096  # below what torch shares out


def along_rows(x: Tensor) -> Tensor:
    """Sums over the last dimension."""
    while x.shape[-1] > BLOCK:
        whole = x.shape[-1] // BLOCK * BLOCK
        blocks = x[..., :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
        x = torch.cat([blocks, x[..., whole:].sum(-1, keepdim=True)], -1)
    return x.sum(-1)


def total(x: Tensor) -> Tensor:
    """The sum of all numbers, 0-d."""
    return along_rows(x.flatten())
