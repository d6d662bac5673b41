"""What launches take, by count: which of two ways to a gain is the shorter. Nothing here changes a pick.

The rates are an H100's, from its data sheet; for the choice only their proportions matter, and those are much the same
on other devices with matrix units.
"""

from __future__ import annotations

from mrtkern.ops.facility_location.triton.launch import BATCH

FLOPS = 8e14  # multiplications and additions of float16 products a second, of 989e12
BYTES = 3e12  # of memory a second, of 3.35e12
CALL = 1e-4  # seconds of a launch that the host waits for, with what Python does around it
EXACT_PAIRS = 2**36  # up to so many a pass takes 0.07 s: gains of as many candidates as are kept cost little beside


def pass_seconds(N: int, M: int, columns: int, is_mirrored: bool) -> float:
    """Gains of all candidates."""
    return CALL + 2 * columns * N * M / (2 if is_mirrored else 1) / FLOPS


def batch_seconds(M: int, columns: int) -> float:
    """Gains of a batch of candidates: its rows lie in the cache, all others are read."""
    return CALL + max(2 * columns * M / BYTES, 2 * columns * M * BATCH / FLOPS)


def refresh_after(N: int, M: int, columns: int, is_mirrored: bool) -> int:
    """Candidates in batches that take as long as a pass."""
    return int(BATCH * pass_seconds(N, M, columns, is_mirrored) / batch_seconds(M, columns)) + 1
