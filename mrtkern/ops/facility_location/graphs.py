"""What users give as a graph: lists of neighbours, or a sparse matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrtkern import _check, _device
from mrtkern.ops.neighbors.lists import Neighbors

OP = "facility_location"
COPY_BYTES = 13  # an edge: id, value and whether it is there, where a graph is not as the kernels read it
EDGES_AT_ONCE = 1 << 18  # of a graph that are looked at together: what is made of them is small beside the graph


class Edges(NamedTuple):
    """Compressed rows, as an operator's arguments. None: no graph was given."""

    graph_ends: Tensor | None = None  # [M + 1] int64
    graph_ids: Tensor | None = None  # [edges] int64
    graph_values: Tensor | None = None  # [edges] float32
    graph_columns: int = 0

    @property
    def rows(self) -> int:
        """M."""
        return 0 if self.graph_ends is None else len(self.graph_ends) - 1


def edges(graph: Any) -> Edges:
    """The edges of lists of neighbours, their negative scores 0, or of a sparse matrix in compressed rows."""
    if graph is None:
        return Edges()
    if isinstance(graph, Neighbors):
        if graph.ids.ndim != 2 or graph.ids.shape != graph.scores.shape:
            got = f"ids {_check.shape(graph.ids)} and scores {_check.shape(graph.scores)}"
            _check.fail(OP, "graph", "have ids and scores of the same shape [M, k]", got)
        _device.fits(f"{OP}: graph", COPY_BYTES * graph.ids.numel(), graph.ids.device)  # lists may be views
        ids, scores = graph.ids.long(), graph.scores.detach().float()  # a Neighbors that somebody else made
        is_real = ids >= 0
        ends = torch.cat([ids.new_zeros(1), is_real.sum(dim=1).cumsum(0)])
        ids, scores = ids.reshape(-1), scores.reshape(-1)
        if int(ends[-1]) < len(ids):
            ids, scores = (values.masked_select(is_real.reshape(-1)) for values in (ids, scores))
        if len(scores) and float(scores.min()) < 0:
            scores = scores.clamp(min=0)
        return Edges(ends, ids, scores, graph.num_columns)
    if not isinstance(graph, Tensor):
        raise TypeError(f"{OP}: graph must be a Neighbors or a torch.Tensor, got {type(graph).__name__}")
    if graph.layout != torch.sparse_csr or graph.ndim != 2:
        got = f"a tensor {_check.shape(graph)} of layout {graph.layout}"
        _check.fail(OP, "graph", "be a Neighbors or a matrix of layout torch.sparse_csr", got)
    values = graph.values().detach()
    if not values.is_floating_point():
        _check.fail(OP, "graph", "have floating-point values", values.dtype)
    _device.fits(f"{OP}: graph", COPY_BYTES * values.numel(), values.device)
    ends, ids = graph.crow_indices().long().contiguous(), graph.col_indices().long().contiguous()
    return Edges(ends, ids, values.float().contiguous(), graph.shape[1])


def parts(ends: Tensor) -> Iterator[tuple[int, int, slice]]:
    """First row and the row behind the last, and their edges: about EDGES_AT_ONCE at a time."""
    first, begin, num_rows = 0, 0, len(ends) - 1
    while first < num_rows:
        behind = int(torch.searchsorted(ends, begin + EDGES_AT_ONCE, right=True)) - 1
        behind = min(max(behind, first + 1), num_rows)
        end = int(ends[behind])
        yield first, behind, slice(begin, end)
        first, begin = behind, end


def _refuse_ends(ends: Tensor, count: int) -> None:
    """Rows that do not follow each other: torch does not look at what it is given."""
    begin, end, sizes = int(ends[0]), int(ends[-1]), ends.diff()
    if begin != 0 or end != count:
        _check.fail(OP, "graph", f"have crow_indices from 0 to its {count} values", f"{begin} to {end}")
    if bool((sizes < 0).any()):
        _check.fail(OP, "graph", "have ascending crow_indices", f"a decrease after row {_check.first(sizes < 0)}")


def _refuse(ids: Tensor, values: Tensor, row: Tensor, N: int) -> None:
    """Edges that are no similarities, of no candidates, or of the same candidate twice."""
    bad = ~(torch.isfinite(values) & (values >= 0))
    if bool(bad.any()):
        e = _check.first(bad)
        mends = "shift it to (1 + s) / 2 or clamp it at 0"
        where = f"{float(values[e])} at [{int(row[e])}, {int(ids[e])}]"
        _check.fail(OP, "graph", f"be finite and not negative ({mends})", where)
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < N):
        outside = (ids < 0) | (ids >= N)
        _check.fail(OP, "graph", f"name candidates from 0 to {N - 1}", int(ids[_check.first(outside)]))
    is_ascending = (ids[1:] > ids[:-1]) | (row[1:] > row[:-1])
    if not bool(is_ascending.all()):
        pairs = (row * N + ids).sort().values
        is_double = pairs[1:] == pairs[:-1]
        if bool(is_double.any()):
            i, j = divmod(int(pairs[_check.first(is_double)]), N)
            _check.fail(OP, "graph", "name each candidate of a row once", f"[{i}, {j}] twice")


def scale_of(given: Edges, similarity_scale: float | None) -> float:
    """What counts as 1: the largest edge and, in a square graph, the diagonal. Refuses what is no similarity."""
    ends, ids, values, N = given
    assert ends is not None and ids is not None and values is not None
    _refuse_ends(ends, len(ids))
    for first, behind, edges in parts(ends):
        row = first + torch.repeat_interleave(ends[first : behind + 1].diff(), output_size=edges.stop - edges.start)
        _refuse(ids[edges], values[edges], row, N)
    largest = max(float(values.max()) if len(values) else 0.0, 1.0 if given.rows == N else 0.0)
    if similarity_scale is not None and not (similarity_scale > 0 and largest <= similarity_scale):
        _check.fail(OP, "similarity_scale", f"be at least the largest similarity {largest}", similarity_scale)
    return similarity_scale or largest or 1.0
