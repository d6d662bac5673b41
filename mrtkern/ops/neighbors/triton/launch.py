"""Launching the kernels of neighbors on the rows of one call."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mrtkern import _triton
from mrtkern._triton import rows as lattice_rows
from mrtkern.ops.neighbors.problem import Inputs
from mrtkern.ops.neighbors.triton import kernels
from mrtkern.ops.neighbors.triton.search import SUMS, Side, Sizes, margins

EXACT = {"enable_fp_fusion": False}
# Programs that multiply the listed strips of a row. A list has places for 4 times as many strips as k = 64 fill: a
# program for each block of places found nothing in two of three. Few rows get more, until a GPU is full.
FEW_OF_A_ROW, IN_FLIGHT = 4, 8
BAND = 8  # tiles of rows that meet the same columns while these are in the cache
WRITING = {  # tiles whose pairs are written: half as many rows, since where pairs go takes registers of its own
    arch: replace(tile, BLOCK_M=tile.BLOCK_M // 2) for arch, tile in _triton.CONSUMED.items()
}


class Blocks(NamedTuple):
    """Rows, and columns or places, of one program of each kernel."""

    survivors: tuple[int, int, int]  # the places: at most, and listed at a time
    members: tuple[int, int]
    listed: tuple[int, int]
    pairs: tuple[int, int]
    ranks: tuple[int, int, int]  # and pairs they are compared with
    linked: int  # pairs


ON_DEVICE = Blocks((1, 8192, 2048), (1, 32), (1, 32), (8, 8), (1, 64, 32), 32)
INTERPRETED = Blocks(
    (128, 1024, 1024), (32, 512), (128, 256), (64, 256), (16, 256, 256), 8192
)  # an operation costs a millisecond


def survivors_launch(places: int, is_held: bool) -> Callable[[str], _triton.Launch]:
    """By places of a block: two programs of many threads on a multiprocessor, but for rows that are not held on sm_120,
    where 64 registers of a thread spill."""
    if places <= ON_DEVICE.survivors[2]:
        return lattice_rows.threads(128)
    return lambda arch: lattice_rows.threads(512, 2 if is_held or arch != "sm_120" else None)(arch)


def operands(x: Tensor, y: Tensor, tile: _triton.Launch) -> tuple[Any, Any, bool]:
    """Lattice rows as products take them: by descriptor where the device has these, and whether it is so."""
    if not (_triton.can_describe(x) and _triton.can_describe(y)):
        return x, y, False
    return _triton.describe(x, tile.BLOCK_M, tile.BLOCK_D), _triton.describe(y, tile.BLOCK_N, tile.BLOCK_D), True


class Launch:
    """The kernels, with what stays the same during a call."""

    def __init__(self, inputs: Inputs, x: Side, y: Side) -> None:
        self.inputs, self.x, self.y = inputs, x, y
        self.M, self.N, self.device = len(x.length), len(y.length), x.q.device
        self.arch = _triton.arch(self.device)
        self.warps = functools.partial(_triton.num_warps, self.arch)
        self.tile = _triton.CONSUMED[self.arch]
        self.blocks = INTERPRETED if self.device.type == "cpu" else ON_DEVICE
        self.margin = margins(x, y, inputs.x.shape[1], inputs.precision)
        has_groups = inputs.group_x is not None
        self.labels = [x.length if label is None else label.contiguous() for label in (inputs.group_x, inputs.group_y)]
        self.exclusion = {"EXCLUDE_SELF": inputs.exclude_self, "HAS_GROUPS": has_groups}

    def lists(self, sizes: Sizes, first: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """The k best keys [rows, k] float64 of rows first …, their ids, and which rows are not decided, bool [rows]."""
        maxima = self.strip_maxima(sizes, first, rows)
        strips, num_strips = self.survivors(maxima, None, sizes.strips, first, rows)
        products = self.members(sizes, first, rows, strips, num_strips)
        places, count = self.survivors(products, num_strips * sizes.STRIP, sizes.places, first, rows)
        keys, ids = self.listed_scores(sizes, first, rows, strips, places, count)
        best, best_ids = self.ranks(keys, ids, count)
        is_open = (num_strips > sizes.strips) | (count > sizes.places)
        if self.inputs.metric == "clamped_cosine":  # columns below 0 tie at 0 with others that no list has
            is_open |= ~(best[:, -1] > 0)
        return best, best_ids, is_open

    def strip_maxima(self, sizes: Sizes, first: int, rows: int) -> Tensor:
        """Largest products of rows first … with the columns of every strip, float32 [rows and more, num_strips]."""
        tile, columns, tiles_m = self.tile, self.x.q.shape[1], triton.cdiv(rows, self.tile.BLOCK_M)
        tiles_n = sizes.num_strips * sizes.STRIP // tile.BLOCK_N
        maxima = torch.empty((tiles_m * tile.BLOCK_M, sizes.num_strips), dtype=torch.float32, device=self.device)
        x, y, is_described = operands(self.x.q, self.y.q, tile)
        kernels.strip_maxima[(tiles_m * tiles_n,)](
            x, y, maxima, *self.labels, first, self.M, self.N, columns, sizes.num_strips, tiles_m, tiles_n,
            IS_DESCRIBED=is_described, **self.exclusion, STRIP=sizes.STRIP, BAND=BAND, **tile.blocks, **tile.options,
        )  # fmt: skip
        return maxima

    def survivors(
        self, values: Tensor, limit: Tensor | None, capacity: int, first: int, rows: int
    ) -> tuple[Tensor, Tensor]:
        """Where values [rows, …] may belong to the k largest, int32 [rows, capacity], and how many there are."""
        width = values.shape[1]
        places = torch.empty((rows, capacity), dtype=torch.int32, device=self.device)
        count = torch.empty(rows, dtype=torch.int32, device=self.device)
        block_m, most, listed = self.blocks.survivors
        block_w = min(triton.next_power_of_2(width), most)
        options = survivors_launch(block_w, width <= block_w)(self.arch).options
        kernels.survivors[(triton.cdiv(rows, block_m),)](
            values, count if limit is None else limit, self.margin, places, count, first, rows, width, self.inputs.k,
            capacity, HAS_LIMIT=limit is not None, IS_HELD=width <= block_w, BLOCK_M=block_m, BLOCK_W=block_w,
            BLOCK_P=min(block_w, listed), **options | EXACT,
        )  # fmt: skip
        return places, count

    def members(self, sizes: Sizes, first: int, rows: int, strips: Tensor, num_strips: Tensor) -> Tensor:
        width, (block_m, block_c) = sizes.strips * sizes.STRIP, self.blocks.members
        products = torch.empty((rows, width), dtype=torch.float32, device=self.device)
        each = max(FEW_OF_A_ROW, triton.cdiv(IN_FLIGHT * _triton.multiprocessors(self.device), rows))
        kernels.members[(min(triton.cdiv(width, block_c), each), triton.cdiv(rows, block_m))](
            self.x.q, self.y.q, strips, num_strips, products, *self.labels, first, rows, self.N, self.x.q.shape[1],
            sizes.strips, **self.exclusion, STRIP=sizes.STRIP, BLOCK_N=self.tile.BLOCK_N, BLOCK_M=block_m,
            BLOCK_C=block_c, BLOCK_D=lattice_rows.STEP, num_warps=self.warps(128), enable_fp_fusion=False,
        )  # fmt: skip
        return products

    def listed_scores(
        self, sizes: Sizes, first: int, rows: int, strips: Tensor, places: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys and ids of listed pairs [rows, places]."""
        keys = torch.empty(places.shape, dtype=torch.float64, device=self.device)
        ids = torch.empty(places.shape, dtype=torch.int32, device=self.device)
        which = torch.arange(first, first + rows, dtype=torch.int64, device=self.device)
        self._scores(which, keys, self.blocks.listed, (places, strips, count, ids), sizes.STRIP)
        return keys, ids

    def all_scores(self, which: Tensor) -> Tensor:
        """Keys of rows `which` with all columns, float64 [rows, N], -infinity where excluded."""
        keys = torch.empty((len(which), self.N), dtype=torch.float64, device=self.device)
        self._scores(which, keys, self.blocks.pairs, None, 1)
        return keys

    def _scores(
        self, which: Tensor, keys: Tensor, block: tuple[int, int], listed: tuple[Tensor, ...] | None, STRIP: int
    ) -> None:
        (rows, width), (block_m, block_c), x, y = keys.shape, block, self.x.scored, self.y.scored
        places, strips, count, ids = listed or (which, which, which, which)
        kernels.scores[(triton.cdiv(width, block_c), triton.cdiv(rows, block_m))](
            x, y, which, places, strips, count, self.x.square, self.y.square, keys, ids, *self.labels, rows, self.N,
            x.shape[1], width, strips.shape[-1], *x.stride(), *y.stride(), METRIC=self.inputs.metric,
            SUM=SUMS[self.inputs.precision], IS_LISTED=listed is not None, **self.exclusion, STRIP=STRIP,
            BLOCK_N=self.tile.BLOCK_N, BLOCK_M=block_m, BLOCK_C=block_c, num_warps=self.warps(64 if listed else 32),
            enable_fp_fusion=x.dtype != torch.float64,
        )  # fmt: skip

    def ranks(self, keys: Tensor, ids: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """The k best of listed keys and their ids, in order; -infinity and -1 where there are no more."""
        (rows, width), (block_m, block_c, block_j), k = keys.shape, self.blocks.ranks, self.inputs.k
        best = torch.full((rows, k), -math.inf, dtype=torch.float64, device=self.device)
        best_ids = torch.full((rows, k), -1, dtype=torch.int64, device=self.device)
        kernels.ranks[(triton.cdiv(width, block_c), triton.cdiv(rows, block_m))](
            keys, ids, count, best, best_ids, rows, width, k, BLOCK_M=block_m, BLOCK_C=block_c, BLOCK_J=block_j,
            num_warps=self.warps(128), enable_fp_fusion=False,
        )  # fmt: skip
        return best, best_ids
