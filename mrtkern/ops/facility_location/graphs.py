"""What users give as a graph: lists of neighbours, or a sparse matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrtkern import _check
from mrtkern.ops.neighbors.lists import Neighbors

OP = "facility_location"


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
        is_real = graph.ids >= 0
        ends = torch.cat([graph.ids.new_zeros(1), is_real.sum(dim=1).cumsum(0)])
        return Edges(ends, graph.ids[is_real], graph.scores[is_real].clamp(min=0), graph.num_columns)
    if not isinstance(graph, Tensor):
        raise TypeError(f"{OP}: graph must be a Neighbors or a torch.Tensor, got {type(graph).__name__}")
    if graph.layout != torch.sparse_csr or graph.ndim != 2:
        got = f"a tensor {_check.shape(graph)} of layout {graph.layout}"
        _check.fail(OP, "graph", "be a Neighbors or a matrix of layout torch.sparse_csr", got)
    values = graph.values().detach()
    if not values.is_floating_point():
        _check.fail(OP, "graph", "have floating-point values", values.dtype)
    ends, ids = graph.crow_indices().long().contiguous(), graph.col_indices().long().contiguous()
    return Edges(ends, ids, values.float().contiguous(), graph.shape[1])


def _refuse_ends(ends: Tensor, count: int) -> None:
    """Rows that do not follow each other: torch does not look at what it is given."""
    begin, end, sizes = int(ends[0]), int(ends[-1]), ends.diff()
    if begin != 0 or end != count:
        _check.fail(OP, "graph", f"have crow_indices from 0 to its {count} values", f"{begin} to {end}")
    if bool((sizes < 0).any()):
        _check.fail(OP, "graph", "have ascending crow_indices", f"a decrease after row {_check.first(sizes < 0)}")


def scale_of(given: Edges, similarity_scale: float | None) -> float:
    """What counts as 1: the largest edge and, in a square graph, the diagonal. Refuses what is no similarity."""
    ends, ids, values, N = given
    assert ends is not None and ids is not None and values is not None
    _refuse_ends(ends, len(ids))
    bad = ~(torch.isfinite(values) & (values >= 0))
    row = torch.repeat_interleave(ends.diff(), output_size=len(ids))
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
    largest = max(float(values.max()) if len(values) else 0.0, 1.0 if given.rows == N else 0.0)
    if similarity_scale is not None and not (similarity_scale > 0 and largest <= similarity_scale):
        _check.fail(OP, "similarity_scale", f"be at least the largest similarity {largest}", similarity_scale)
    return similarity_scale or largest or 1.0
