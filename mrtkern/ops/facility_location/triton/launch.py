"""Launching the kernels of facility_location on pairs of one call: by tiles, or from lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from mrtkern import _triton
from mrtkern.ops.facility_location.triton import kernels

BAND = 8  # tiles of candidates that meet the same rows while these are in the cache
PADDED = 512  # rows to cover are padded to a multiple of this, so that loads of whole tiles need no masks
NOTHING = kernels.TO_INTEGER.value  # best of a row that nothing covers yet
EVERYTHING = NOTHING + kernels.STEPS.value  # best of a row that there is not: no pair is above it
PAIRS_AT_ONCE = 2**37  # of a launch: a tenth of a second or two, so that the host hears of Ctrl-C in between
LISTED_AT_ONCE = 1024  # pairs that a program reads at a time
PARTS = 8  # programs of a list, at most
BATCH = 64  # candidates of a launch: the rows of the smaller tile


class Tiles(NamedTuple):
    """Of a launch over all candidates, and of one over a batch or whose pairs are written: where pairs go, and which is
    the largest, takes registers of its own."""

    all: _triton.Launch
    few: _triton.Launch


ON_DEVICE = {arch: Tiles(tile, replace(tile, BLOCK_M=BATCH)) for arch, tile in _triton.CONSUMED.items()}
# An interpreted operation costs a millisecond whatever its tile.
INTERPRETED = {
    arch: Tiles(_triton.Launch(256, 256, 64, 4, 1), _triton.Launch(BATCH, 256, 64, 4, 1)) for arch in ON_DEVICE
}


def tiles(device: torch.device) -> Tiles:
    """The device's."""
    return (INTERPRETED if device.type == "cpu" else ON_DEVICE)[_triton.arch(device)]


def padded(values: Tensor, beyond: float = 0.0) -> Tensor:
    """values [M], and more of them up to a whole tile of any kernel."""
    return pad(values, (0, -len(values) % PADDED), value=beyond)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Candidates and rows to cover on the lattice, and what turns their products into steps."""

    y: Tensor  # [N, columns] float16, candidates: from `_triton.rows.on_lattice`
    x: Tensor  # [M, columns] float16, rows to cover; y itself where candidates cover themselves
    unit: Tensor  # [M and more] float32, `padded`
    quality: Tensor | None  # [N] float32; None: ones
    base: int
    has_weight: bool = False  # whether units differ

    @property
    def is_mirrored(self) -> bool:
        return self.x is self.y

    @property
    def device(self) -> torch.device:
        return self.y.device

    def nothing(self) -> Tensor:
        """best [M and more] of rows that nothing covers."""
        best = torch.full((len(self.x),), NOTHING, dtype=torch.float32, device=self.device)
        return padded(best, EVERYTHING)

    def of_rows(self, rows: Tensor) -> Pairs:
        """The same candidates with some of the rows."""
        return replace(self, x=self.x.index_select(0, rows), unit=padded(self.unit.index_select(0, rows)))

    def of_candidates(self, ids: Tensor) -> Pairs:
        """The same rows with some of the candidates."""
        quality = None if self.quality is None else self.quality.index_select(0, ids)
        return replace(self, y=self.y.index_select(0, ids), quality=quality)

    def plain(self, unit: float) -> Pairs:
        """The same pairs unweighted."""
        return replace(self, unit=torch.full_like(self.unit, unit), quality=None, has_weight=False)

    def sums(self, best: Tensor, tile: _triton.Launch, is_counted: bool = False) -> Tensor:
        """What each candidate gains over best, or how many of its pairs are above it, int64 [N]."""
        total = torch.zeros(len(self.y), dtype=torch.int64, device=self.device)
        given = self._arguments(tile)
        is_mirrored = self.is_mirrored and tile.BLOCK_M == tile.BLOCK_N
        for first, tiles_n in self._turns(tile):
            tiles_m = triton.cdiv(len(self.x), tile.BLOCK_N) - (first if is_mirrored else 0)
            kernels.sum_pairs[(tiles_n * tiles_m,)](
                *given.rows, best, *given.values, total, *given.sizes, first, tiles_m, tiles_n, float(self.base),
                IS_MIRRORED=is_mirrored, IS_COUNTED=is_counted,
                IS_WEIGHED=self.has_weight or self.quality is not None, BAND=BAND, **given.options,
            )  # fmt: skip
        return total

    def write(self, best: Tensor, is_open: Tensor, place: Tensor, rows: Tensor, t: Tensor) -> None:
        """The pairs above best of candidates that are open [N] uint8, each from `place` [N] int64 on, which moves."""
        tile = tiles(self.device).few
        given = self._arguments(tile)
        for first, tiles_n in self._turns(tile):
            tiles_m = triton.cdiv(len(self.x), tile.BLOCK_N)
            kernels.write_pairs[(tiles_n * tiles_m,)](
                *given.rows, best, *given.values, is_open, place, rows, t, *given.sizes, first, tiles_m, tiles_n,
                float(self.base), BAND=BAND, **given.options,
            )  # fmt: skip

    def take(self, best: Tensor, wants_gains: bool) -> Tensor:
        """best goes up to what the candidates, at most BATCH, reach; what each gained after those before it, [N]."""
        tile, total = tiles(self.device).few, torch.zeros(len(self.y), dtype=torch.int64, device=self.device)
        given = self._arguments(tile)
        kernels.take_rows[(triton.cdiv(len(self.x), tile.BLOCK_N),)](
            *given.rows, best, *given.values, total, *given.sizes, float(self.base), WANTS_TOTALS=wants_gains,
            **given.options,
        )  # fmt: skip
        return total.diff(prepend=total.new_zeros(1))

    def reach(self, best: Tensor, owner: Tensor, before: int) -> None:
        """best [M and more] goes up to what the candidates reach, and owner [M and more] int32 says who is first."""
        tile = tiles(self.device).few
        given = self._arguments(tile)
        kernels.reach_rows[(triton.cdiv(len(self.x), tile.BLOCK_N),)](
            *given.rows, best, owner, *given.values, *given.sizes, float(self.base), before, **given.options
        )

    def _turns(self, tile: _triton.Launch) -> Iterator[tuple[int, int]]:
        """First tile of candidates, and how many, of each launch. The host waits in between, to be interrupted."""
        tiles_n = triton.cdiv(len(self.y), tile.BLOCK_M)
        many = max(PAIRS_AT_ONCE // (tile.BLOCK_M * max(len(self.x), 1)), 1)
        for first in range(0, tiles_n if len(self.x) else 0, many):
            if first and self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            yield first, min(many, tiles_n - first)

    def _arguments(self, tile: _triton.Launch) -> Arguments:
        """What all launches on tiles are given."""
        y, x = self.y, self.x
        is_described = _triton.can_describe(x) and _triton.can_describe(y)
        if is_described:
            x = _triton.describe(x, tile.BLOCK_N, tile.BLOCK_D)
            y = _triton.describe(y, tile.BLOCK_M, tile.BLOCK_D)
        unit = self.unit if self.quality is None else self.quality  # any address: it is not read
        options = {"IS_DESCRIBED": is_described, "HAS_QUALITY": self.quality is not None, **tile.blocks}
        options |= {"num_warps": tile.num_warps, "num_stages": tile.num_stages, "enable_fp_fusion": False}
        return Arguments((x, y), (self.unit, unit), (len(self.x), len(self.y), self.x.shape[1]), options)


class Arguments(NamedTuple):
    """X, Y; UNIT, QUALITY; M, N, columns; constants and options."""

    rows: tuple[Any, Any]
    values: tuple[Tensor, Tensor]
    sizes: tuple[int, int, int]
    options: dict[str, Any]


class Lists:
    """Pairs that can still matter, candidate after candidate."""

    def __init__(self, ends: Tensor, rows: Tensor, t: Tensor) -> None:
        self.ends, self.rows, self.t = ends, rows, t  # [N + 1] int64; [pairs] int32, int16
        longest = int(ends.diff().max()) if len(ends) > 1 else 0
        self.parts = min(max(triton.cdiv(longest, LISTED_AT_ONCE), 1), PARTS)

    @property
    def all(self) -> Tensor:
        """Every candidate."""
        return torch.arange(len(self.ends) - 1, dtype=torch.int64, device=self.ends.device)

    def gains(self, ids: Tensor, best: Tensor, reaches: bool = False) -> Tensor:
        """What each gains over best [M and more], which goes up to what they reach, all at once, if they do."""
        gain = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
        if len(ids):
            kernels.sum_lists[(len(ids), self.parts)](
                ids, self.ends, self.rows, self.t, best, gain, self.parts, REACHES=reaches, BLOCK=LISTED_AT_ONCE,
                num_warps=_triton.num_warps(_triton.arch(ids.device), 128), enable_fp_fusion=False,
            )  # fmt: skip
        return gain

    def take(self, ids: Tensor, best: Tensor, wants_gains: bool) -> Tensor:
        """The same, one after the other."""
        turns = ids.split(1) if wants_gains else [ids]
        return torch.cat([ids.new_empty(0), *(self.gains(one, best, reaches=True) for one in turns)])
