"""Tiles of products, which at least two operations hand to their epilogues.

A kernel walks tiles of an output in an order that keeps operands in the L2 cache (`banded`) and makes each by one
pipelined product (`product`, or `described_product` where the target has tensor descriptors).

Float32 operands are multiplied as float32 ("ieee", no tf32), 16-bit operands on tensor cores; sums are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from mrtkern._triton.targets import DESCRIPTORS, arch


@triton.jit
def banded(tile, tiles_m, tiles_n, BAND: tl.constexpr):
    """Tile number -> (m, n): BAND rows of tiles column by column, so that neighbours in time share operands."""
    band = tile // (BAND * tiles_n)
    rows = min(tiles_m - band * BAND, BAND)
    inside = tile % (BAND * tiles_n)
    return band * BAND + inside % rows, inside // rows


@triton.jit
def product(
    X, Y, m, n, M, N, D, stride_x, stride_y,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scores [BLOCK_M, BLOCK_N] float32 of rows m.. of X [M, D] with rows n.. of Y [N, D]; features lie side by side.

    What lies outside counts as 0. Sums: steps of BLOCK_D ascending, each added to the tile.
    """
    rows_x = m + tl.arange(0, BLOCK_M)
    rows_y = n + tl.arange(0, BLOCK_N)
    steps = tl.arange(0, BLOCK_D)
    x = X + rows_x.to(tl.int64)[:, None] * stride_x + steps[None, :]
    y = Y + rows_y.to(tl.int64)[:, None] * stride_y + steps[None, :]
    is_x, is_y = (rows_x < M)[:, None], (rows_y < N)[:, None]
    s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for d in tl.range(0, D, BLOCK_D):
        is_d = (steps < D - d)[None, :]
        a = tl.load(x + d, mask=is_x & is_d, other=0.0)
        b = tl.load(y + d, mask=is_y & is_d, other=0.0)
        s = tl.dot(a, b.T, s, input_precision="ieee")
    return s


@triton.jit
def described_product(
    X, Y, m, n, D,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`product` of two tensor descriptors with blocks [BLOCK_M, BLOCK_D] and [BLOCK_N, BLOCK_D]."""
    s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for d in tl.range(0, D, BLOCK_D):
        s = tl.dot(X.load([m, d]), Y.load([n, d]).T, s, input_precision="ieee")
    return s


def can_describe(x: torch.Tensor) -> bool:
    """Whether rows x [T, D] can be read by tensor descriptor: 16-byte aligned, features side by side, not empty."""
    width = x.element_size()
    is_aligned = x.data_ptr() % 16 == 0 and x.stride(0) * width % 16 == 0 and x.stride(0) >= x.shape[1]
    is_numbered = x.numel() > 0 and max(x.shape) < 2**31
    return is_numbered and x.stride(1) == 1 and is_aligned and arch(x.device) in DESCRIPTORS


def describe(x: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A descriptor of x [T, D] with blocks [rows, columns]; made on the host, so a CUDA graph keeps it."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, columns])
