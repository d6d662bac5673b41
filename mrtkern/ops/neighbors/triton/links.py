"""Links for Triton: pairs of rows whose products reach a limit become a sparse graph, whose pairs are scored.

    count_near  one program multiplies BLOCK_M rows with BLOCK_N columns and counts the pairs of every row
    write_near  one program multiplies its tile again, if there is any pair in it, and writes them where counts say
    cosines     one program scores BLOCK_C pairs in float64, in the defined order

Reads  lattice rows x [N, columns]; limit [N] float32, which a row's products must reach; labels [N] int32: rows of one
       chain are no pair, so that near-duplicates are no work once they are joined.
Writes count [rows, tiles_n] int32; the columns of all pairs, int32, row after row, ascending.
Idea   only pairs that may be linked are stored, and the second pass skips the tiles that have none.
Sums   products are integers of at most 2**24 in float32: exact, so both passes find the same pairs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mrtkern._triton import banded, described_product, product
from mrtkern.ops.neighbors.triton.kernels import cosine_of, dots


@triton.jit
def near(
    X, Y, LIMIT, LABELS, m, n, end, N, columns,
    IS_DESCRIBED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Which pairs of a tile may be linked and are of two chains, [BLOCK_M, BLOCK_N]: rows m … below end, columns n …
    above the row."""
    if IS_DESCRIBED:
        products = described_product(X, Y, m, n, columns, BLOCK_M, BLOCK_N, BLOCK_D)
    else:
        products = product(X, Y, m, n, N, N, columns, columns, columns, BLOCK_M, BLOCK_N, BLOCK_D)
    row, column = m + tl.arange(0, BLOCK_M), n + tl.arange(0, BLOCK_N)
    limit = tl.load(LIMIT + row, mask=row < end, other=float("inf"))
    chain = tl.load(LABELS + row, mask=row < end, other=0)
    other_chain = tl.load(LABELS + column, mask=column < N, other=0)
    # In every tile, although few need it: where a branch ends, a thread's predicates are packed and unpacked.
    above = tl.where(column < N, column, -1)
    return (products >= limit[:, None]) & (chain[:, None] != other_chain[None, :]) & (row[:, None] < above[None, :])


@triton.jit
def count_near(
    X, Y, LIMIT, LABELS, COUNT, first, end, N, columns, tiles_m, tiles_n,
    IS_DESCRIBED: tl.constexpr, BAND: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """count [end - first, tiles_n] int32, zero before: pairs of rows first … with columns from first on."""
    tile_m, tile_n = banded(tl.program_id(0), tiles_m, tiles_n, BAND)
    if (tile_n + 1) * BLOCK_N <= tile_m * BLOCK_M + 1:  # below the diagonal
        return
    m, n = first + tile_m * BLOCK_M, first + tile_n * BLOCK_N
    is_near = near(X, Y, LIMIT, LABELS, m, n, end, N, columns, IS_DESCRIBED, BLOCK_M, BLOCK_N, BLOCK_D)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    out = COUNT + row.to(tl.int64) * tiles_n + tile_n
    tl.store(out, tl.sum(is_near.to(tl.int32), axis=1), mask=row < end - first)


@triton.jit
def write_near(
    X, Y, LIMIT, LABELS, COUNT, ENDS, COLUMNS, first, end, N, columns, tiles_m, tiles_n,
    IS_DESCRIBED: tl.constexpr, BAND: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Columns of the pairs that were counted; ends [rows, tiles_n] int64: running sums of count, below 2**31."""
    tile_m, tile_n = banded(tl.program_id(0), tiles_m, tiles_n, BAND)
    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    place = row.to(tl.int64) * tiles_n + tile_n
    count = tl.load(COUNT + place, mask=row < end - first, other=0)
    if tl.max(count, axis=0) == 0:
        return
    m, n = first + tile_m * BLOCK_M, first + tile_n * BLOCK_N
    is_near = near(X, Y, LIMIT, LABELS, m, n, end, N, columns, IS_DESCRIBED, BLOCK_M, BLOCK_N, BLOCK_D)
    start = tl.load(ENDS + place, mask=row < end - first, other=0).to(tl.int32) - count
    slot = start[:, None] + tl.cumsum(is_near.to(tl.int32), axis=1) - 1
    column = n + tl.arange(0, BLOCK_N)[None, :] + tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    tl.store(COLUMNS + slot, column, mask=is_near)


@triton.jit
def cosines(
    X, ROWS, COLUMNS, SQUARE, COSINES, num_pairs, D, stride_m, stride_d, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """cosines [num_pairs] float64 of rows `ROWS` and `COLUMNS` of x; square [N] float64: their |x|**2."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_pair = c < num_pairs
    m = tl.load(ROWS + c, mask=is_pair, other=0).to(tl.int64)
    n = tl.load(COLUMNS + c, mask=is_pair, other=0).to(tl.int64)
    x, y = X + m[None, :, None] * stride_m, X + n[None, :, None] * stride_m
    is_read = is_pair[None, :, None]
    products = tl.reshape(dots(x, y, is_read, is_read, D, stride_d, stride_d, tl.float64, 1, BLOCK_C), (BLOCK_C,))
    squares = tl.load(SQUARE + m) * tl.load(SQUARE + n)
    tl.store(COSINES + c, cosine_of(products, squares), mask=is_pair)
