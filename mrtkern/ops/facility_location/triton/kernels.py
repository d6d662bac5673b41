"""facility_location for Triton: what candidates gain, cover and still can gain, from tiles of pairs or from lists.

    t[m, n] = min(32767, rint(float32(max(0, base + dot[m, n])) * (unit[m] * quality[n])))

    sum_pairs    one program adds up what BLOCK_M candidates gain on BLOCK_N rows, or counts the pairs above `best`
    write_pairs  one program writes the pairs of its tile that are above `best`, where counts say
    take_rows    one program lets up to BLOCK_M candidates, one after the other, cover BLOCK_N rows
    reach_rows   one program finds the best of any number of candidates for BLOCK_N rows
    sum_lists    one program reads a part of the list of one candidate: what it gains, and lets it cover

Reads  rows on the lattice as float16 [M, columns], [N, columns]; best, unit [M and more], quality [N] float32.
Writes sums [N] int64; the pairs above best, row int32 and t int16, candidate after candidate.
Idea   a tile of t is consumed where tensor cores left it and never stored. Candidates are the tile's rows, so that a
       thread adds up most of a candidate's pairs by itself; where candidates cover themselves, a tile above the
       diagonal serves both sides. Pairs below 0 need no clamp: best is not below 0 either. Rounding is an addition of
       1.5 * 2**23, which best keeps: differences and comparisons are those of steps.
Sums   integers: products below 2**24 and sums of a tile in float32, sums of tiles by 64-bit atomics. Any order gives
       the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mrtkern import lattice
from mrtkern._triton import banded, described_product, product

TO_INTEGER = tl.constexpr(1.5 * 2**23)  # a float32 below 2**22 plus this is rounded half to even
STEPS = tl.constexpr(lattice.STEPS)


@triton.jit
def steps_of(dots, base, coefficient):
    """t, to which TO_INTEGER is added."""
    return tl.minimum((dots + base) * coefficient + TO_INTEGER, TO_INTEGER + STEPS)


@triton.jit
def tile_of(
    X, Y, UNIT, QUALITY, n0, m0, M, N, columns, base,
    IS_DESCRIBED: tl.constexpr, HAS_QUALITY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """steps_of candidates n0 … of Y with rows m0 … of X, and their products."""
    if IS_DESCRIBED:
        dots = described_product(Y, X, n0, m0, columns, BLOCK_M, BLOCK_N, BLOCK_D)
    else:
        dots = product(Y, X, n0, m0, N, M, columns, columns, columns, BLOCK_M, BLOCK_N, BLOCK_D)
    n = n0 + tl.arange(0, BLOCK_M)
    coefficient = tl.load(UNIT + m0 + tl.arange(0, BLOCK_N))[None, :]
    if HAS_QUALITY:
        coefficient = coefficient * tl.load(QUALITY + n, mask=n < N, other=0.0)[:, None]
    return steps_of(dots, base, coefficient), dots


@triton.jit
def above(t, best, IS_COUNTED: tl.constexpr):
    """How far t is above best, or 1 where it is."""
    if IS_COUNTED:
        return tl.where(t > best, 1.0, 0.0)
    return tl.maximum(t - best, 0.0)


@triton.jit
def sum_pairs(
    X, Y, BEST, UNIT, QUALITY, SUM, M, N, columns, first, tiles_m, tiles_n, base,
    IS_DESCRIBED: tl.constexpr, IS_MIRRORED: tl.constexpr, IS_COUNTED: tl.constexpr, IS_WEIGHED: tl.constexpr,
    HAS_QUALITY: tl.constexpr, BAND: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Tiles of candidates from `first` on with tiles_m tiles of rows: all, or if mirrored those from `first` on.

    X rows to cover, Y candidates. BEST, to which TO_INTEGER is added, and UNIT are padded to whole tiles; the padding
    of BEST is above all t. IS_WEIGHED: t[m, n] is not t[n, m].
    """
    tile_n, tile_m = banded(tl.program_id(0), tiles_n, tiles_m, BAND)
    if IS_MIRRORED:
        tile_m += first
        if tile_m < first + tile_n:  # the other side of a tile that is
            return
    n0, m0 = (first + tile_n) * BLOCK_M, tile_m * BLOCK_N
    t, dots = tile_of(
        X, Y, UNIT, QUALITY, n0, m0, M, N, columns, base, IS_DESCRIBED, HAS_QUALITY, BLOCK_M, BLOCK_N, BLOCK_D
    )
    n, m = n0 + tl.arange(0, BLOCK_M), m0 + tl.arange(0, BLOCK_N)
    total = tl.sum(above(t, tl.load(BEST + m)[None, :], IS_COUNTED), axis=1)
    tl.atomic_add(SUM + n, total.to(tl.int32).to(tl.int64), mask=n < N, sem="relaxed")
    if IS_MIRRORED:
        if IS_WEIGHED:
            coefficient = tl.load(UNIT + n)[:, None]
            if HAS_QUALITY:
                coefficient = coefficient * tl.load(QUALITY + m, mask=m < N, other=0.0)[None, :]
            t = steps_of(dots, base, coefficient)
        total = tl.sum(above(t, tl.load(BEST + n)[:, None], IS_COUNTED), axis=0)
        is_other = m < tl.where(m0 > n0, N, 0)  # a tile of the diagonal is its own mirror image
        tl.atomic_add(SUM + m, total.to(tl.int32).to(tl.int64), mask=is_other, sem="relaxed")


@triton.jit
def write_pairs(
    X, Y, BEST, UNIT, QUALITY, IS_OPEN, PLACE, ROWS, T, M, N, columns, first, tiles_m, tiles_n, base,
    IS_DESCRIBED: tl.constexpr, HAS_QUALITY: tl.constexpr, BAND: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """ROWS, T [pairs]: those of candidate n from PLACE[n] on, which is moved on; of candidates that are open."""
    tile_n, tile_m = banded(tl.program_id(0), tiles_n, tiles_m, BAND)
    n0, m0 = (first + tile_n) * BLOCK_M, tile_m * BLOCK_N
    t, _ = tile_of(
        X, Y, UNIT, QUALITY, n0, m0, M, N, columns, base, IS_DESCRIBED, HAS_QUALITY, BLOCK_M, BLOCK_N, BLOCK_D
    )
    n, m = n0 + tl.arange(0, BLOCK_M), m0 + tl.arange(0, BLOCK_N)
    is_open = tl.load(IS_OPEN + n, mask=n < N, other=0) != 0
    is_above = (t > tl.load(BEST + m)[None, :]) & is_open[:, None]
    count = tl.sum(is_above.to(tl.int32), axis=1)
    start = tl.atomic_add(PLACE + n, count.to(tl.int64), mask=(n < N) & (count > 0), sem="relaxed")
    slot = start[:, None] + (tl.cumsum(is_above.to(tl.int32), axis=1) - 1)
    tl.store(ROWS + slot, m[None, :] + tl.zeros((BLOCK_M, BLOCK_N), tl.int32), mask=is_above)
    tl.store(T + slot, (t - TO_INTEGER).to(tl.int16), mask=is_above)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def take_rows(
    X, Y, BEST, UNIT, QUALITY, TOTAL, M, N, columns, base,
    IS_DESCRIBED: tl.constexpr, HAS_QUALITY: tl.constexpr, WANTS_TOTALS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BEST goes up to what the N <= BLOCK_M candidates reach; TOTAL[n]: by how much until the n-th is taken, too."""
    m0 = tl.program_id(0) * BLOCK_N
    n, m = tl.arange(0, BLOCK_M), m0 + tl.arange(0, BLOCK_N)
    t, _ = tile_of(
        X, Y, UNIT, QUALITY, 0, m0, M, N, columns, base, IS_DESCRIBED, HAS_QUALITY, BLOCK_M, BLOCK_N, BLOCK_D
    )
    t = tl.where((n < N)[:, None], t, 0.0)
    best = tl.load(BEST + m)
    if WANTS_TOTALS:
        reached = tl.maximum(tl.associative_scan(t, 0, larger), best[None, :])
        total = tl.sum(reached - best[None, :], axis=1)
        tl.atomic_add(TOTAL + n, total.to(tl.int32).to(tl.int64), mask=n < N, sem="relaxed")
    tl.store(BEST + m, tl.maximum(tl.max(t, axis=0), best))


@triton.jit
def reach_rows(
    X, Y, BEST, OWNER, UNIT, QUALITY, M, N, columns, base, before,
    IS_DESCRIBED: tl.constexpr, HAS_QUALITY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BEST goes up to what the N candidates reach, whoever is first with it becomes OWNER: `before` plus its number."""
    m0 = tl.program_id(0) * BLOCK_N
    m = m0 + tl.arange(0, BLOCK_N)
    best, owner = tl.load(BEST + m), tl.load(OWNER + m)
    for n0 in range(0, N, BLOCK_M):
        t, _ = tile_of(
            X, Y, UNIT, QUALITY, n0, m0, M, N, columns, base, IS_DESCRIBED, HAS_QUALITY, BLOCK_M, BLOCK_N, BLOCK_D
        )
        t = tl.where((n0 + tl.arange(0, BLOCK_M) < N)[:, None], t, 0.0)
        most = tl.max(t, axis=0)
        owner = tl.where(most > best, before + n0 + tl.argmax(t, axis=0, tie_break_left=True), owner)
        best = tl.maximum(most, best)
    tl.store(BEST + m, best)
    tl.store(OWNER + m, owner)


@triton.jit
def sum_lists(IDS, ENDS, ROWS, T, BEST, GAIN, parts, REACHES: tl.constexpr, BLOCK: tl.constexpr):
    """Of candidate IDS[i], whose pairs lie from ENDS[id] to ENDS[id + 1]; if it REACHES, BEST goes up to them."""
    i, part = tl.program_id(0), tl.program_id(1)
    id = tl.load(IDS + i)
    begin, end = tl.load(ENDS + id), tl.load(ENDS + id + 1)
    place = begin + part * BLOCK + tl.arange(0, BLOCK)
    gain = tl.zeros((BLOCK,), tl.int64)
    while tl.min(place, axis=0) < end:
        is_pair = place < end
        row = tl.load(ROWS + place, mask=is_pair, other=0)
        t = tl.load(T + place, mask=is_pair, other=0).to(tl.float32) + TO_INTEGER
        best = tl.load(BEST + row, mask=is_pair, other=TO_INTEGER + STEPS)
        gain += tl.maximum(t - best, 0.0).to(tl.int64)
        if REACHES:
            tl.atomic_max(BEST + row, t, mask=is_pair, sem="relaxed")
        place += parts * BLOCK
    tl.atomic_add(GAIN + i, tl.sum(gain, axis=0), sem="relaxed")
