"""Chains of near-duplicates for Triton: products propose links, float64 decides, chains grow with every turn of rows.

Reads  x [N, D] of any strides.   Writes labels [N] int64, the lowest row of every chain.
Idea   a turn counts the pairs of its rows with all later rows that may be linked (links.py), takes as many rows as
       there is room for their pairs, writes these as a sparse graph, scores them, and joins chains. Rows of one chain
       are no pair any more, so rows that are all equal are one turn, and what is stored is bounded whatever the rows.
Sums   integers, and cosines in the order of the reference: the links are its own. Chains are a set: the order of links
       changes no label. The host reads, every turn, how many pairs there are, and whether chains still grow.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from mrtkern import _check, _progress, _triton
from mrtkern._triton.rows import columns
from mrtkern.ops.neighbors.chains import joined
from mrtkern.ops.neighbors.problem import Inputs, Problem
from mrtkern.ops.neighbors.triton import links, search
from mrtkern.ops.neighbors.triton.launch import BAND, INTERPRETED, ON_DEVICE, WRITING, operands
from mrtkern.ops.neighbors.triton.search import MOST_ROWS, TILE, Side, limits, sides

SLIMMEST = min(tile.BLOCK_N for tile in _triton.CONSUMED.values())
CELL = 20  # bytes for a row of a tile: its count, and the sums of counts
PAIR = 96  # bytes for a pair, until it is a link and joined


def tiles(N: int) -> int:
    """Tiles of N columns, at most."""
    return max(1, -(-N // SLIMMEST))


def most_rows(N: int) -> int:
    """Rows of a turn, at most: a multiple of TILE whose counts fit into the scratch memory, and at least that."""
    fitting = min(search.SCRATCH // (CELL * tiles(N)), MOST_ROWS, N + TILE - 1)
    return max(TILE, fitting // TILE * TILE)


def most_pairs(N: int) -> int:
    """Pairs of a turn, at most: those of one row always fit."""
    return max(N, search.SCRATCH // PAIR)


def memory(problem: Problem) -> int:
    """Bytes beyond inputs and result, at most.

    2 per feature, padded to a multiple of 64, and 48 more for float64; 128 per row; counts of pairs, 20 for every 128
    columns of the rows of a turn, and 96 per pair of a turn: each up to 256 MiB, and at least 256 rows, N pairs.
    """
    N = problem.M
    each = 2 + 48 * (problem.dtype == torch.float64)
    pairs = min(most_pairs(N), N * (N - 1) // 2)
    return each * N * columns(problem.D) + 128 * N + CELL * most_rows(N) * tiles(N) + PAIR * pairs


def components(x: Tensor, offsets: Tensor | None, threshold: float) -> Tensor:
    """The lowest row of the component of every row, int64 [N], in the graph of pairs with cosine >= threshold."""
    _check.finite_rows("deduplicate: x", x)
    labels = torch.arange(len(x), dtype=torch.int64, device=x.device)
    if not len(x):
        return labels
    with _triton.on(x.device):
        rows = sides(Inputs(x))[0]
        return _grown(Graph(rows, limits(rows, x.shape[1], threshold)), labels, threshold)


def _grown(graph: Graph, labels: Tensor, threshold: float) -> Tensor:
    """labels [N] after all links, turn by turn: where rows have too many pairs, the next turn has fewer rows."""
    N, first = len(labels), 0
    num_rows = most_rows(N)
    while first < N:
        num_rows = min(num_rows, N - first)
        count, ends = graph.counted(first, first + num_rows, labels)
        is_fitting = ends[:, -1] <= most_pairs(N)  # a prefix: these are sums
        num_rows, num_pairs = torch.stack([is_fitting.sum(), (ends[:, -1] * is_fitting).max()]).tolist()
        if num_pairs:
            i, j = graph.written(first, first + num_rows, labels, count, ends, num_pairs)
            is_linked = graph.cosines(i, j) >= threshold
            labels = joined(labels, i[is_linked].long(), j[is_linked].long())
        first += num_rows
        _progress.report(first / N)
        num_rows = min(max(TILE, 2 * num_rows), most_rows(N))
    return labels


class Graph:
    """The kernels, with what stays the same during a call."""

    def __init__(self, rows: Side, limit: Tensor) -> None:
        self.rows, self.limit, self.device = rows, limit, limit.device
        arch = _triton.arch(self.device)
        self.tile, self.writing = _triton.CONSUMED[arch], WRITING[arch]

    def counted(self, first: int, end: int, labels: Tensor) -> tuple[Tensor, Tensor]:
        """How many pairs rows first … end - 1 have in each tile, int32 [rows, tiles], and their running sums, int64."""
        tiles_n = triton.cdiv(len(labels) - first, self.tile.BLOCK_N)
        count = torch.zeros((end - first, tiles_n), dtype=torch.int32, device=self.device)
        grid, given, options = self._launch(self.tile, first, end, labels, count)
        links.count_near[grid](*given, **options)
        return count, count.flatten().cumsum(0).view(count.shape)

    def written(
        self, first: int, end: int, labels: Tensor, count: Tensor, ends: Tensor, num_pairs: int
    ) -> tuple[Tensor, Tensor]:
        """The pairs of rows first … end - 1: rows and columns, int32 [num_pairs]."""
        j = torch.empty(num_pairs, dtype=torch.int32, device=self.device)
        grid, given, options = self._launch(self.writing, first, end, labels, count, ends, j)
        links.write_near[grid](*given, **options)
        pairs = ends[: end - first, -1].diff(prepend=ends.new_zeros(1))
        rows = torch.arange(first, end, dtype=torch.int32, device=self.device)
        i = rows.repeat_interleave(pairs, output_size=num_pairs)
        return i, j

    def _launch(
        self, tile: _triton.Launch, first: int, end: int, labels: Tensor, count: Tensor, *more: Tensor
    ) -> tuple[tuple[int], tuple[Any, ...], dict[str, Any]]:
        """Grid, arguments and options of a kernel on the tiles of rows first … end - 1."""
        x, y, is_described = operands(self.rows.q, self.rows.q, tile)
        tiles_m, tiles_n = triton.cdiv(end - first, tile.BLOCK_M), count.shape[1]
        sizes = (first, end, len(labels), self.rows.q.shape[1], tiles_m, tiles_n)
        given = (x, y, self.limit, labels.int(), count, *more, *sizes)
        return (tiles_m * tiles_n,), given, {"IS_DESCRIBED": is_described, "BAND": BAND, **tile.blocks, **tile.options}

    def cosines(self, i: Tensor, j: Tensor) -> Tensor:
        """float64 cosines of pairs of rows i and j."""
        x, cosines = self.rows.scored, torch.empty(len(i), dtype=torch.float64, device=self.device)
        block = (INTERPRETED if self.device.type == "cpu" else ON_DEVICE).linked
        links.cosines[(triton.cdiv(len(i), block),)](
            x, i, j, self.rows.square, cosines, len(i), x.shape[1], *x.stride(), BLOCK_C=block,
            num_warps=_triton.num_warps(_triton.arch(self.device), 64), enable_fp_fusion=x.dtype != torch.float64,
        )  # fmt: skip
        return cosines
