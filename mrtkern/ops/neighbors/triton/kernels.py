"""neighbors for Triton: tiles of products leave strip maxima, few strips are multiplied again, fewer pairs are scored.

    strip_maxima  one program multiplies BLOCK_M rows with BLOCK_N columns and keeps the largest product of each strip
    survivors     one program finds what may belong to the k largest of each of its rows, and lists where it stands
    members       few programs multiply a row with the columns of its listed strips
    scores        one program scores pairs in the defined order: float64, or integers, or float32
    ranks         one program counts how many pairs of a row come before each of its own, and puts it in that place

Idea   No tile is sorted or stored: the k-th largest strip maximum is a lower bound of the k-th largest product, and
       what lies further below it than rounding to the lattice can move two products is no neighbour. A strip is every
       (BLOCK_N / STRIP)-th column of a tile: in the layout of the tensor cores one thread holds all of it, so that its
       maximum needs no shuffle.
Sums   products are integers of at most 2**24 in float32: exact in any order. Scores in the order of the reference.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mrtkern._triton import banded, described_product, product
from mrtkern._triton.rows import LANES, halves, load_as

NEVER = tl.constexpr(-(2.0**30))  # the product of a pair that is excluded, below every threshold
LARGEST = tl.constexpr(2.0**24 + 1)  # above every product
STEPS = tl.constexpr(16)  # halvings of the range of products: 512 are left of 2**25, little beside any margin


@triton.jit
def excluded(
    m, n, N, GROUP_X, GROUP_Y, EXCLUDE_SELF: tl.constexpr, HAS_GROUPS: tl.constexpr,
):  # fmt: skip
    """Which pairs of rows m and columns n (any two shapes that broadcast) are no neighbours."""
    no = n >= N
    if EXCLUDE_SELF:
        no = no | (m == n)
    if HAS_GROUPS:
        no = no | (tl.load(GROUP_X + m) == tl.load(GROUP_Y + n, mask=n < N, other=0))
    return no


@triton.jit
def strip_maxima(
    X, Y, MAXIMA, GROUP_X, GROUP_Y, first, M, N, columns, num_strips, tiles_m, tiles_n,
    IS_DESCRIBED: tl.constexpr, EXCLUDE_SELF: tl.constexpr, HAS_GROUPS: tl.constexpr, STRIP: tl.constexpr,
    BAND: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """maxima [tiles_m BLOCK_M, num_strips] float32 of rows first … of x; lattice rows X, Y are [M, columns], [N, …]."""
    tile_m, tile_n = banded(tl.program_id(0), tiles_m, tiles_n, BAND)
    m0, n0 = first + tile_m * BLOCK_M, tile_n * BLOCK_N
    if IS_DESCRIBED:
        products = described_product(X, Y, m0, n0, columns, BLOCK_M, BLOCK_N, BLOCK_D)
    else:
        products = product(X, Y, m0, n0, M, N, columns, columns, columns, BLOCK_M, BLOCK_N, BLOCK_D)
    m, n = m0 + tl.arange(0, BLOCK_M), n0 + tl.arange(0, BLOCK_N)
    is_diagonal = EXCLUDE_SELF and (m0 < n0 + BLOCK_N and n0 < m0 + BLOCK_M)
    if HAS_GROUPS or (n0 + BLOCK_N > N or is_diagonal):
        rows = tl.minimum(m, M - 1)
        no = excluded(rows[:, None], n[None, :], N, GROUP_X, GROUP_Y, EXCLUDE_SELF, HAS_GROUPS)
        products = tl.where(no, NEVER, products)
    best = tl.max(tl.reshape(products, (BLOCK_M, STRIP, BLOCK_N // STRIP)), axis=1)
    out = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None] * num_strips
    strip = tile_n * (BLOCK_N // STRIP) + tl.arange(0, BLOCK_N // STRIP)
    tl.store(MAXIMA + out + strip[None, :], best)


@triton.jit
def num_at_least(values, threshold):
    return tl.sum((values >= threshold[:, None]).to(tl.int32), axis=1)


@triton.jit
def survivors(
    VALUES, LIMIT, MARGIN, PLACES, COUNT, first, rows, width, k, capacity,
    HAS_LIMIT: tl.constexpr, IS_HELD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """places [rows, capacity] int32, ascending: where values [rows, width] lie at most margin below the k-th largest.

    count [rows] int32: how many there are, also beyond capacity. HAS_LIMIT: only the first limit [rows] values of a row
    are real. IS_HELD: a row fits into a block, and is read once for its threshold. Places are listed BLOCK_P at a time,
    from the cache again: held, the row and its places would take the registers of a second program.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    w = tl.arange(0, BLOCK_W)
    row = VALUES + m.to(tl.int64)[:, None] * width
    is_row = m < rows
    end = tl.zeros((BLOCK_M,), tl.int32) + width
    if HAS_LIMIT:
        end = tl.minimum(tl.load(LIMIT + m, mask=is_row, other=0), end)
    end = tl.where(is_row, end, 0)
    values = tl.load(row + w[None, :], mask=w[None, :] < end[:, None], other=NEVER)
    low, high = tl.zeros((BLOCK_M,), tl.float32) - LARGEST, tl.zeros((BLOCK_M,), tl.float32) + LARGEST
    for _ in range(STEPS):  # at least k values reach low, or all do; fewer than k reach high
        middle = (low + high) * 0.5
        reach = num_at_least(values, middle)
        if not IS_HELD:
            for start in range(BLOCK_W, width, BLOCK_W):
                mask = start + w[None, :] < end[:, None]
                reach += num_at_least(tl.load(row + start + w[None, :], mask=mask, other=NEVER), middle)
        low, high = tl.where(reach >= k, middle, low), tl.where(reach >= k, high, middle)
    threshold = low - tl.load(MARGIN + first + m, mask=is_row, other=0.0)
    out = PLACES + m.to(tl.int64)[:, None] * capacity
    count = tl.zeros((BLOCK_M,), tl.int32)
    for start in range(0, width, BLOCK_P):
        place = start + tl.arange(0, BLOCK_P)[None, :]
        is_kept = tl.load(row + place, mask=place < end[:, None], other=NEVER) >= threshold[:, None]
        slot = count[:, None] + tl.cumsum(is_kept.to(tl.int32), axis=1) - 1
        tl.store(out + slot, place + tl.zeros_like(slot), mask=is_kept & (slot < capacity))
        count += tl.sum(is_kept.to(tl.int32), axis=1)
    tl.store(COUNT + m, count, mask=is_row)


@triton.jit
def column_of(place, STRIP: tl.constexpr, BLOCK_N: tl.constexpr, strip):
    """Column of the member `place` % STRIP of a strip."""
    step = BLOCK_N // STRIP
    return strip // step * BLOCK_N + place % STRIP * step + strip % step


@triton.jit
def members(
    X, Y, STRIPS, COUNT, PRODUCTS, GROUP_X, GROUP_Y, first, rows, N, columns, capacity,
    EXCLUDE_SELF: tl.constexpr, HAS_GROUPS: tl.constexpr, STRIP: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """products [rows, capacity * STRIP] float32 of rows with the columns of the strips that they list."""
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    count = tl.minimum(tl.load(COUNT + m, mask=m < rows, other=0), capacity) * STRIP
    row = (first + tl.where(m < rows, m, 0)).to(tl.int64)
    for block in range(tl.program_id(0), tl.cdiv(tl.max(count, axis=0), BLOCK_C), tl.num_programs(0)):
        place = block * BLOCK_C + tl.arange(0, BLOCK_C)
        is_real = place[None, :] < count[:, None]
        listed = STRIPS + m.to(tl.int64)[:, None] * capacity + place[None, :] // STRIP
        n = column_of(place[None, :], STRIP, BLOCK_N, tl.load(listed, mask=is_real, other=0))
        is_read = (is_real & (n < N))[:, :, None]  # strips of the last tile may end beyond the columns
        sums = tl.zeros((BLOCK_M, BLOCK_C, BLOCK_D), tl.float32)
        x = X + row[:, None, None] * columns + tl.arange(0, BLOCK_D)[None, None, :]
        y = Y + n.to(tl.int64)[:, :, None] * columns + tl.arange(0, BLOCK_D)[None, None, :]
        for _ in range(0, columns, BLOCK_D):
            sums += tl.load(x).to(tl.float32) * tl.load(y, mask=is_read, other=0.0).to(tl.float32)
            x += BLOCK_D
            y += BLOCK_D
        no = excluded(row[:, None], n, N, GROUP_X, GROUP_Y, EXCLUDE_SELF, HAS_GROUPS)
        out = PRODUCTS + m.to(tl.int64)[:, None] * (capacity * STRIP) + place[None, :]
        tl.store(out, tl.where(no, NEVER, tl.sum(sums, axis=2)), mask=is_real)


@triton.jit
def dots(
    x, y, is_x, is_y, D, x_stride_d, y_stride_d, SUM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Products [BLOCK_M, BLOCK_C] of the rows that begin at x and y, [BLOCK_M, BLOCK_C, 1] or broadcast to it."""
    lane = tl.arange(0, LANES)
    sums = tl.zeros((BLOCK_M, BLOCK_C, LANES), SUM)
    for start in tl.range(0, D, LANES, loop_unroll_factor=4):
        d = (start + lane).to(tl.int64)[None, None, :]
        a = load_as(x + d * x_stride_d, is_x & (d < D), SUM)
        b = load_as(y + d * y_stride_d, is_y & (d < D), SUM)
        sums += a * b  # products of 24 bits are exact in float64: fused or not, the same bits
    return tl.reshape(halves(tl.reshape(sums, (BLOCK_M * BLOCK_C, LANES)), BLOCK_M * BLOCK_C), (BLOCK_M, BLOCK_C))


@triton.jit
def cosine_of(products, squares):
    """Cosines of products and products of squared lengths, float64: exactly 1 for equal rows."""
    cosines = products / tl.sqrt(tl.where(squares > 0, squares, 1.0))
    return tl.where(squares > 0, tl.minimum(tl.maximum(cosines, -1.0), 1.0), 0.0)


@triton.jit
def scores(
    X, Y, ROWS, PLACES, STRIPS, COUNT, SQUARE_X, SQUARE_Y, KEYS, IDS, GROUP_X, GROUP_Y, rows, N, D, width, listed,
    x_stride_m, x_stride_d, y_stride_n, y_stride_d,
    METRIC: tl.constexpr, SUM: tl.constexpr, IS_LISTED: tl.constexpr, EXCLUDE_SELF: tl.constexpr,
    HAS_GROUPS: tl.constexpr, STRIP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """keys [rows, width] float64: what decides the order of rows `ROWS` with all columns, -infinity where excluded.

    IS_LISTED: with the columns of count [rows] places within their strips [rows, listed] instead; ids are written.
    """
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_row = m < rows
    row = tl.load(ROWS + m, mask=is_row, other=0)
    n, is_column = c[None, :], (c < width)[None, :]
    out = m.to(tl.int64)[:, None] * width + c[None, :]
    if IS_LISTED:
        count = tl.minimum(tl.load(COUNT + m, mask=is_row, other=0), width)
        if tl.program_id(0) * BLOCK_C >= tl.max(count, axis=0):
            return
        is_column = c[None, :] < count[:, None]
        place = tl.load(PLACES + out, mask=is_column, other=0)
        strip = tl.load(STRIPS + m.to(tl.int64)[:, None] * listed + place // STRIP, mask=is_column, other=0)
        n = column_of(place, STRIP, BLOCK_N, strip)
        tl.store(IDS + out, n, mask=is_column)
    x = X + row[:, None, None] * x_stride_m
    y = Y + n.to(tl.int64)[:, :, None] * y_stride_n
    is_x, is_y = is_row[:, None, None], is_column[:, :, None]
    key = dots(x, y, is_x, is_y, D, x_stride_d, y_stride_d, SUM, BLOCK_M, BLOCK_C).to(tl.float64)
    if METRIC != "dot" and tl.float64 == SUM:
        squares = tl.load(SQUARE_X + row)[:, None] * tl.load(SQUARE_Y + n, mask=is_column, other=0.0)
        key = cosine_of(key, squares)
        if METRIC == "shifted_cosine":
            key = (1.0 + key) * 0.5
    if METRIC == "clamped_cosine":
        key = tl.maximum(key, 0.0)
    if not IS_LISTED:
        no = excluded(row[:, None], n, N, GROUP_X, GROUP_Y, EXCLUDE_SELF, HAS_GROUPS)
        key = tl.where(no, -float("inf"), key)
    tl.store(
        KEYS + out, key + 0.0, mask=is_row[:, None] & is_column
    )  # no negative zeros: a radix sort would tell them apart


@triton.jit
def ranks(
    KEYS, IDS, COUNT, BEST, BEST_IDS, rows, width, k,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """best [rows, k] float64 and their ids: keys in order, equal ones by the lower id."""
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    i = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    count = tl.minimum(tl.load(COUNT + m, mask=m < rows, other=0), width)
    last = tl.max(count, axis=0)
    if tl.program_id(0) * BLOCK_C >= last:
        return
    row = m.to(tl.int64)[:, None] * width
    is_mine = i[None, :] < count[:, None]
    key = tl.load(KEYS + row + i[None, :], mask=is_mine, other=0.0)
    ids = tl.load(IDS + row + i[None, :], mask=is_mine, other=0)
    rank = tl.zeros((BLOCK_M, BLOCK_C), tl.int32)
    for start in range(0, last, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        is_other = j[None, :] < count[:, None]
        other = tl.load(KEYS + row + j[None, :], mask=is_other, other=-float("inf"))[:, None, :]
        other_ids = tl.load(IDS + row + j[None, :], mask=is_other, other=0)[:, None, :]
        is_before = (other > key[:, :, None]) | ((other == key[:, :, None]) & (other_ids < ids[:, :, None]))
        rank += tl.sum(is_before.to(tl.int32), axis=2)
    out = m.to(tl.int64)[:, None] * k + rank
    is_best = is_mine & (rank < k)
    tl.store(BEST + out, key, mask=is_best)
    tl.store(BEST_IDS + out, ids.to(tl.int64), mask=is_best)
