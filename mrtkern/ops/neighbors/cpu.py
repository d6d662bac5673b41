"""neighbors on the CPU: one call of csrc/neighbors/cpu.cpp searches, one of components.cpp links near-duplicates.

Reads  x [M, D], y [N, D] of any strides; cells [N] and probes [M, P].   Writes ids, scores [M, k], or labels [N].
Idea   integer products of rows on the fine lattice propose; what could still be among the k nearest is scored in
       float64, so the answer is exact. Without y every tile is computed once for both of its sides.
Sums   integers in the tiles, float64 in the defined order: the same bits for every number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

import mrtkern._C as _C
from mrtkern import _check, _device, _progress, lattice
from mrtkern._device import address
from mrtkern.ops.neighbors.problem import Inputs, Problem

MOST_COLUMNS = 2**31 - 64  # row numbers are 32 bits wide inside
LIMITS = f"up to {MOST_COLUMNS:,} rows, without metrics dot and rbf of float64"


def why_not(problem: Problem) -> str | None:
    """None when the compiled kernel can run `problem`, otherwise the reason."""
    if reason := _device.not_cpu(problem.device):
        return reason
    if problem.metric in ("dot", "rbf") and problem.dtype == torch.float64:
        return f"takes metric {problem.metric!r} of float32, bfloat16 and float16, got float64"
    rows = max(problem.columns, problem.M if problem.num_cells else 0)
    if rows > MOST_COLUMNS:
        return f"takes up to {MOST_COLUMNS} rows, got {rows}"
    return None


def memory(problem: Problem) -> int:
    """Bytes beyond inputs and result, at most.

    Packed rows (4 bytes per unit, a unit is two int16 or one float32), 8 bytes per squared length; lists of
    8 (capacity + 1) bytes, capacity = k + max(k, 192) rounded up to 16: one per row of x for cosines without y,
    otherwise one per row of the blocks under way; per thread 40 bytes per feature of a panel and 32 per slot of a list.
    In cells, of which each is packed from a panel on, only y is packed; per thread two blocks of rows more, and the
    probes of one.
    """
    threads = torch.get_num_threads()
    if problem.num_cells:
        return _memory_in_cells(problem, threads)
    is_symmetric = problem.N is None and problem.metric not in ("dot", "rbf")
    rows = problem.M + 16 + (0 if is_symmetric else problem.columns + 16)
    listed = problem.M + 16 if is_symmetric else min(problem.M + 16, _C.LARGEST_BLOCK * threads)
    packed = rows * (_row(problem) + 8)
    capacity = _capacity(problem)
    if problem.kind.startswith("components"):
        return packed + 8 * problem.M + threads * 160 * (problem.D + 32)
    return packed + listed * 8 * (capacity + 1) + threads * (160 * (problem.D + 32) + 32 * capacity)


def _row(problem: Problem) -> int:
    """Bytes of a packed row; for rbf with two integers more."""
    unit = 4 if problem.precision == "float32" else 2
    return unit * (problem.D + (3 if problem.metric == "rbf" else 1))


def _capacity(problem: Problem) -> int:
    """Slots of a list."""
    return problem.K + max(problem.K, 192) + 16


def _memory_in_cells(problem: Problem, threads: int) -> int:
    """As `memory` says; also 4 bytes per place and per row, and in each thread the members of a row's cells."""
    N, M, row = problem.columns, problem.M, _row(problem)
    places = N + 16 * min(problem.num_cells, N)
    block = min(M + 16, _C.LARGEST_BLOCK)
    growing = 2 * 4 * places + 8 * block * problem.num_probes  # arrays that double while they are filled
    per_thread = block * (2 * row + 8 * (_capacity(problem) + 1) + 16 * problem.num_probes)
    per_thread += 160 * (problem.D + 32) + 32 * _capacity(problem) + 64 * problem.D
    zeros = 8 * N if problem.metric != "rbf" else 0
    return (
        places * row
        + growing
        + 4 * (N + M)
        + 8 * (N + (0 if problem.N is None else M))
        + (32 * problem.num_cells + threads * (per_thread + zeros))
    )


def forward(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """ids [M, k] int64 and scores [M, k] float32."""
    x, y = inputs.x, inputs.y
    M, D = x.shape
    ids, scores = (x.new_empty((M, inputs.k), dtype=dtype) for dtype in (torch.int64, torch.float32))
    group_x, group_y = (None if group is None else group.contiguous() for group in (inputs.group_x, inputs.group_y))
    problem = _C.NeighborsProblem(
        x=_device.features(_C, x),
        y=None if y is None else _device.features(_C, y),
        M=M,
        N=M if y is None else y.shape[0],
        k=inputs.k,
        metric=inputs.metric,
        gamma=inputs.gamma,
        precision=inputs.precision,
        radius=lattice.fine_radius(D),
        exclusion=_C.Exclusion(exclude_self=inputs.exclude_self, group_x=address(group_x), group_y=address(group_y)),
    )
    progress, threads = _progress.current(), torch.get_num_threads()
    if inputs.cells is not None:  # whoever made them has looked at every row
        cells = _cells(*inputs.cells)
        _C.neighbors_in_cells(problem, cells, ids.data_ptr(), scores.data_ptr(), progress=progress, threads=threads)
        return ids, scores
    bad_x, bad_y = _C.neighbors(problem, ids.data_ptr(), scores.data_ptr(), progress=progress, threads=threads)
    if bad_x >= 0:
        _check.finite_rows("neighbors: x", x[bad_x : bad_x + 1], bad_x)
    if bad_y >= 0 and y is not None:
        _check.finite_rows("neighbors: y", y[bad_y : bad_y + 1], bad_y)
    return ids, scores


def components(x: Tensor, offsets: Tensor | None, threshold: float) -> Tensor:
    """The lowest row of the component of every row, int64 [N], in the graph of pairs with cosine >= threshold; of
    groups between offsets each by itself."""
    N, D = x.shape
    labels = torch.empty(N, dtype=torch.int64, device="cpu")
    offsets = None if offsets is None else offsets.contiguous()
    bad = _C.components(
        x=_device.features(_C, x), N=N, offsets=address(offsets), num_groups=0 if offsets is None else len(offsets) - 1,
        threshold=threshold, radius=lattice.fine_radius(D), labels=labels.data_ptr(), progress=_progress.current(),
        threads=torch.get_num_threads(),
    )  # fmt: skip
    if bad >= 0:
        _check.finite_rows("deduplicate: x", x[bad : bad + 1], bad)
    return labels


def _cells(count: int, cell: Tensor, probes: Tensor) -> _C.Cells:
    """Which rows meet."""
    return _C.Cells(count=count, cell=cell.data_ptr(), num_probes=probes.shape[1], probes=probes.data_ptr())
