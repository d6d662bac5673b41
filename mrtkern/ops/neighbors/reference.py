"""neighbors in PyTorch: the definition that every other backend is tested against. Slow, any device, any floating type.

Blocks of rows against blocks of columns, so that memory is bounded; the running lists of a block of rows take part in
the next selection like columns of lower index.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mrtkern import _check, _progress, lattice
from mrtkern.ops.neighbors.chains import joined
from mrtkern.ops.neighbors.problem import Inputs, Problem

BLOCK_M, BLOCK_N = 32, 512  # with lists below 32,768 scores torch works on one thread: no barrier after every feature


def why_not(problem: Problem) -> str | None:
    """The reference runs everything."""
    return None


def memory(problem: Problem) -> int:
    """Bytes beyond inputs and result, at most: rows in float64, 16 lanes and copies of a block of scores, lists."""
    rows = min(BLOCK_M, problem.M) + min(BLOCK_N, problem.columns)
    pairs = min(BLOCK_M, problem.M) * (min(BLOCK_N, problem.columns) + problem.K)
    return (
        80 * rows * (problem.D + lattice.LANES)
        + (256 + problem.num_probes) * pairs
        + 16 * (problem.M + problem.columns)
    )


def summed(x: Tensor, y: Tensor, term: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """sum_d term(x_d, y_d) [M, N] of x [M, D] and y [N, D], in their type: 16 lanes ascending, then by halves."""
    lanes = []
    columns = y.mT.contiguous()  # [D, N]
    for lane in range(lattice.LANES):
        total = x.new_zeros((x.shape[0], y.shape[0]))
        for d in range(lane, x.shape[1], lattice.LANES):
            total += term(x[:, d, None], columns[d])
        lanes.append(total)
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
    return lanes[0]


class Scorer:
    """Keys that decide the order, and scores made of keys, for blocks of rows of one call."""

    def __init__(self, inputs: Inputs) -> None:
        self.metric, self.precision, self.gamma = inputs.metric, inputs.precision, inputs.gamma
        self.is_cosine = inputs.metric not in ("dot", "rbf")
        self.square = lattice.fine_radius(inputs.x.shape[1]) ** 2 if inputs.precision == "int16" else 1.0
        self.common: float | None = None  # the length that rows of y are divided by, and those of x without y
        self.is_own = inputs.y is not None
        if inputs.metric == "dot" and inputs.precision != "exact":
            y = inputs.x if inputs.y is None else inputs.y
            self.common = float(lattice.square_root(lattice.squared_norms(y)).max()) if y.shape[0] else 0.0

    def prepared(self, x: Tensor, is_x: bool) -> tuple[Tensor, Tensor]:
        """Rows whose products are summed, and what scores need: exact, the squares |x|^2 [M]; else the lengths [M]."""
        if self.is_cosine and x.dtype == torch.float64:
            x = lattice.scaled(x) if self.precision == "exact" else lattice.to_float32(x)
        squares = lattice.squared_norms(x)
        if self.precision == "exact":
            return lattice.wide(x), squares
        lengths = lattice.square_root(squares)
        if self.common is not None and not (is_x and self.is_own):
            lengths = torch.full_like(lengths, self.common)
        if self.precision == "int16":
            return lattice.quantise_fine(x, lengths), lengths
        return (lattice.wide(x) / torch.where(lengths > 0, lengths, 1.0)[:, None]).float(), lengths

    def keys(self, x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> Tensor:
        """What the order is decided by, float64 [M, N]."""
        if self.metric == "rbf":
            return summed(x[0], y[0], lambda a, b: (a - b).square_()).neg_()
        if self.precision == "exact":
            dots = summed(x[0], y[0], torch.mul)
            return self.measured(cosines(dots, x[1], y[1])) if self.is_cosine else dots
        if self.precision == "int16":
            dots = lattice.dots(x[0], y[0]).double()
        else:  # float32, in an order of our own: a library's product has one for every number of threads
            dots = summed(x[0], y[0], torch.mul).double()
        return dots.clamp_(min=0) if self.metric == "clamped_cosine" else dots

    def measured(self, cos: Tensor) -> Tensor:
        """The metric of cosines."""
        if self.metric == "shifted_cosine":
            return (1 + cos) / 2
        return cos.clamp(min=0) if self.metric == "clamped_cosine" else cos

    def scores(self, keys: Tensor, lengths: Tensor) -> Tensor:
        """float64 scores of keys [M, k]; lengths [M] of the rows of x."""
        if self.metric == "rbf":
            return (keys * self.gamma).exp_()
        if self.precision == "exact":
            return keys
        if self.common is not None:
            return keys * (lengths * self.common / self.square)[:, None]
        return self.measured((keys * (1 / self.square)).clamp(-1, 1))


def cosines(dots: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Cosines [M, N] from dots [M, N] and squares x [M], y [N]: exactly 1 for equal rows, because sqrt(s s) is s."""
    lengths = lattice.square_root(x[:, None] * y)
    return torch.where(lengths > 0, dots / lengths, 0.0).clamp_(-1, 1)


def largest(keys: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest keys of each row, equal keys by position, in that order; and their ids. [M, N] -> [M, k]."""
    if k == 0:
        return keys[:, :0], ids[:, :0]
    last = keys.topk(k, dim=1).values[:, -1:]
    is_above, is_last = keys > last, keys == last
    room = k - is_above.sum(dim=1, keepdim=True)
    places = (is_above | (is_last & (is_last.cumsum(dim=1) <= room))).nonzero()[:, 1].view(-1, k)
    keys, order = keys.gather(1, places).sort(dim=1, descending=True, stable=True)
    return keys, ids.gather(1, places.gather(1, order))


def spans(first: int, last: int, step: int) -> Iterator[slice]:
    """first … last - 1 in pieces of `step`."""
    for start in range(first, last, step):
        yield slice(start, min(start + step, last))


def forward(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """ids [M, k] int64 and scores [M, k] float32."""
    _check.finite_rows("neighbors: x", inputs.x)
    if inputs.y is not None:
        _check.finite_rows("neighbors: y", inputs.y)
    M, scorer = inputs.x.shape[0], Scorer(inputs)
    ids = torch.empty((M, inputs.k), dtype=torch.int64, device=inputs.x.device)
    scores = torch.empty((M, inputs.k), dtype=torch.float32, device=inputs.x.device)
    for rows in spans(0, M, BLOCK_M):
        x = scorer.prepared(inputs.x[rows], is_x=True)
        keys, ids[rows] = nearest(inputs, scorer, rows, x)
        scores[rows] = torch.where(ids[rows] >= 0, scorer.scores(keys, x[1]), -math.inf).float()
        _progress.report(rows.stop / M)
    return ids, scores


def nearest(inputs: Inputs, scorer: Scorer, rows: slice, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Keys and ids [m, k] of a block of rows, whose prepared features are x."""
    y = inputs.x if inputs.y is None else inputs.y
    ids = torch.full((rows.stop - rows.start, inputs.k), -1, dtype=torch.int64, device=y.device)
    keys = torch.full(ids.shape, -math.inf, dtype=torch.float64, device=y.device)
    for columns in spans(0, y.shape[0], BLOCK_N):
        excluded = exclusions(inputs, rows, columns)
        new_keys = scorer.keys(x, scorer.prepared(y[columns], is_x=False)).masked_fill_(excluded, -math.inf)
        new_ids = torch.arange(columns.start, columns.stop, dtype=torch.int64, device=y.device).expand(excluded.shape)
        ids = torch.cat([ids, new_ids.masked_fill(excluded, -1)], dim=1)
        keys, ids = largest(torch.cat([keys, new_keys], dim=1), ids, inputs.k)
    return keys, ids


def exclusions(inputs: Inputs, rows: slice, columns: slice) -> Tensor:
    """Which pairs of a block are no neighbours, bool [M, N]."""
    i, j = (torch.arange(part.start, part.stop, dtype=torch.int64, device=inputs.x.device) for part in (rows, columns))
    excluded = (i[:, None] == j) if inputs.exclude_self else torch.zeros_like(i[:, None] == j)
    if inputs.group_x is not None and inputs.group_y is not None:
        excluded |= inputs.group_x[rows, None] == inputs.group_y[columns]
    if inputs.cells is not None:
        excluded |= (inputs.cells.probes[rows, :, None] != inputs.cells.cell[columns]).all(dim=1)
    return excluded


def components(x: Tensor, offsets: Tensor | None, threshold: float) -> Tensor:
    """The lowest row of the component of every row, int64 [N], in the graph of pairs with cosine >= threshold; of
    groups between offsets each by itself."""
    _check.finite_rows("deduplicate: x", x)
    ends = [0, len(x)] if offsets is None else offsets.tolist()
    none = torch.empty(0, dtype=torch.int64, device=x.device)
    return torch.cat([none, *(first + _one(x[first:last], threshold) for first, last in itertools.pairwise(ends))])


def _one(x: Tensor, threshold: float) -> Tensor:
    """Of one set of rows."""
    N, labels = x.shape[0], torch.arange(x.shape[0], dtype=torch.int64, device=x.device)
    scorer = Scorer(Inputs(x))
    for rows in spans(0, N, BLOCK_M):
        block = scorer.prepared(x[rows], is_x=True)
        for columns in spans(rows.start, N, BLOCK_N):
            i, j = (scorer.keys(block, scorer.prepared(x[columns], is_x=False)) >= threshold).nonzero(as_tuple=True)
            labels = joined(labels, i + rows.start, j + columns.start)
        _progress.report(rows.stop / N)
    return labels
