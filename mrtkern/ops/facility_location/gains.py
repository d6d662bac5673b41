"""Gains of facility_location for Triton: one program adds what BLOCK_M candidates gain on BLOCK_N rows to cover.

    gain[n] = sum over m of max(t[m, n] - best[m], 0)
    t[m, n] = min(32767, rint(float32(max(0, base + dot[m, n])) * (unit[m] * quality[n])))

Reads  rows on the lattice as float16 [M, columns], [N, columns]; best, unit [M], quality [N] float32.
Writes gain [N] int64.
Idea   a tile of t is consumed where tensor cores left it and never stored. Candidates are the tile's rows, so that a
       thread adds up most of a candidate's pairs by itself. Pairs below 0 need no clamp: best is not below 0 either.
       Rounding is an addition of 1.5 * 2**23, which both sides of the difference keep.
Sums   integers: products below 2**24 and sums of a tile in float32, sums of tiles by 64-bit atomics. Any order gives
       the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from mrtkern import _triton, lattice
from mrtkern._triton import banded, described_product, product

TO_INTEGER = tl.constexpr(1.5 * 2**23)  # a float32 below 2**22 plus this is rounded half to even
STEPS = tl.constexpr(lattice.STEPS)
BAND = 8  # tiles of candidates that meet the same rows while these are in the cache


@triton.jit
def sum_gains(
    X, Y, BEST, UNIT, QUALITY, GAIN, M, N, columns, tiles_m, tiles_n, base,
    IS_DESCRIBED: tl.constexpr, HAS_QUALITY: tl.constexpr, BAND: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """X rows to cover, Y candidates; BEST, to which TO_INTEGER is added, and UNIT are padded to whole tiles."""
    tile_n, tile_m = banded(tl.program_id(0), tiles_n, tiles_m, BAND)
    n0, m0 = tile_n * BLOCK_M, tile_m * BLOCK_N
    if IS_DESCRIBED:
        dots = described_product(Y, X, n0, m0, columns, BLOCK_M, BLOCK_N, BLOCK_D)
    else:
        dots = product(Y, X, n0, m0, N, M, columns, columns, columns, BLOCK_M, BLOCK_N, BLOCK_D)
    n, m = n0 + tl.arange(0, BLOCK_M), m0 + tl.arange(0, BLOCK_N)
    coefficient = tl.load(UNIT + m)[None, :]
    if HAS_QUALITY:
        coefficient = coefficient * tl.load(QUALITY + n, mask=n < N, other=0.0)[:, None]
    t = tl.minimum((dots + base) * coefficient + TO_INTEGER, TO_INTEGER + STEPS)
    gain = tl.sum(tl.maximum(t - tl.load(BEST + m)[None, :], 0.0), axis=1)
    tl.atomic_add(GAIN + n, gain.to(tl.int32).to(tl.int64), mask=n < N, sem="relaxed")


def gains(x: Tensor, y: Tensor, best: Tensor, unit: Tensor, base: int, quality: Tensor | None = None) -> Tensor:
    """Gains of all candidates y over what best covers of x, in steps, int64 [N].

    x [M, columns], y [N, columns] float16: from `_triton.rows.on_lattice`. best [M] int16, in steps; unit [M],
    quality [N] float32 (None: 1), base: as `mrtkern.ops.facility_location` defines them.
    """
    M, N = x.shape[0], y.shape[0]
    gain = torch.zeros(N, dtype=torch.int64, device=y.device)
    if 0 in (M, N):
        return gain
    tile, columns = _triton.CONSUMED[_triton.arch(y.device)], x.shape[1]
    tiles_n, tiles_m = triton.cdiv(N, tile.BLOCK_M), triton.cdiv(M, tile.BLOCK_N)
    is_described = _triton.can_describe(x) and _triton.can_describe(y)
    if is_described:
        x, y = (_triton.describe(q, size, tile.BLOCK_D) for q, size in ((x, tile.BLOCK_N), (y, tile.BLOCK_M)))
    beyond = (0, tiles_m * tile.BLOCK_N - M)  # rows that gain nothing: without masks loads are wide
    unit, best = pad(unit, beyond), pad(best.float(), beyond) + TO_INTEGER.value
    with _triton.on(gain.device):
        sum_gains[(tiles_n * tiles_m,)](
            x, y, best, unit, unit if quality is None else quality, gain, M, N, columns, tiles_m, tiles_n, float(base),
            IS_DESCRIBED=is_described, HAS_QUALITY=quality is not None, BAND=BAND, **tile.blocks,
            num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=False,
        )  # fmt: skip
    return gain


def _signature(name: str, targets: tuple[str, ...], is_aligned: bool) -> _triton.Signature:
    """Lattice rows are made here: always aligned, their columns a multiple of 64. Quality is the caller's."""
    tile, is_described = _triton.CONSUMED[targets[0]], targets[0] in _triton.DESCRIPTORS
    sizes = {"X": tile.BLOCK_N, "Y": tile.BLOCK_M}
    rows = {
        key: f"tensordesc<fp16[{size}, {tile.BLOCK_D}]>" if is_described else "*fp16" for key, size in sizes.items()
    }
    values = {"BEST": "*fp32", "UNIT": "*fp32", "QUALITY": "*fp32", "GAIN": "*i64", "base": "fp32"}
    numbers = dict.fromkeys(("M", "N", "columns", "tiles_m", "tiles_n"), "i32")
    constants = {"IS_DESCRIBED": is_described, "HAS_QUALITY": not is_aligned, "BAND": BAND}
    aligned = ("BEST", "UNIT", "columns", *(("QUALITY", "GAIN") if is_aligned else ()), *(() if is_described else rows))
    return _triton.Signature(
        f"sum_gains {name}, {' '.join(targets)}", sum_gains, rows | values | numbers, constants, aligned,
        {"enable_fp_fusion": False}, _triton.CONSUMED.__getitem__, has_matrix=True, has_wide_loads=is_aligned,
        targets=targets,
    )  # fmt: skip


SIGNATURES = tuple(
    _signature(name, targets, is_aligned)
    for name, is_aligned in (("alone", True), ("with unaligned quality", False))
    for targets in _triton.CONSUMERS
)
