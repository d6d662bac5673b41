"""neighbors for Triton: proposals on tensor cores, decided by scores in the defined order, so every answer is exact.

Reads  x [M, D], y [N, D] of any strides.   Writes ids, scores [M, k].
Idea   float16 products of rows on the lattice, exact integers in float32, propose (kernels.py). How far rounding moved
       a row is known; what lies further below the k-th largest product than that can move two products is no neighbour.
       What remains is scored as the precision says.
Lists  have a fixed number of places. Rows whose candidates do not fit (near-duplicates, ties, zero rows) are scored
       against all columns and sorted; which rows these are is read back, once per call.
Chains of near-duplicates are found from the same products and scores (chains.py).
Sums   integers, and scores in the order of the reference: its very bits, except for precision "float32".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mrtkern import _check, _progress, _triton, lattice
from mrtkern._triton.rows import columns
from mrtkern.ops.neighbors.problem import Inputs, Problem
from mrtkern.ops.neighbors.triton import chains
from mrtkern.ops.neighbors.triton.chains import components as components
from mrtkern.ops.neighbors.triton.launch import Launch
from mrtkern.ops.neighbors.triton.search import PAIR, Side, Sizes, sides, sorted_rows
from mrtkern.ops.neighbors.triton.signatures import SIGNATURES as SIGNATURES

MOST_ROWS = 2**31 - 2**16  # row numbers are 32 bits wide inside
LIMITS = f"up to {MOST_ROWS:,} rows, without metric rbf, and without metric dot of float64"


def why_not(problem: Problem) -> str | None:
    """None when the kernels can run `problem`, otherwise the reason."""
    if reason := _triton.why_not(problem.device, problem.capability):
        return reason
    if problem.kind == "components of groups":
        return "takes one set of rows, got groups"
    if problem.num_cells:
        return "searches among all rows: it has no cells"
    if problem.metric == "rbf":
        return "has no metric 'rbf', which sums differences instead of products"
    if problem.metric == "dot" and problem.dtype == torch.float64:
        return "takes metric 'dot' of float32, bfloat16 and float16, got float64"
    if max(problem.M, problem.columns) > MOST_ROWS:
        return f"takes up to {MOST_ROWS} rows, got {max(problem.M, problem.columns)}"
    return None


def memory(problem: Problem) -> int:
    """Bytes beyond inputs and result, at most; those of near-duplicates are in chains.py.

    2 per feature, padded to a multiple of 64, once more for every rounding that the precision asks for, 48 for float64;
    100 per row; the lists of the rows under way, up to 256 MiB, and 40 per neighbour of these; 48 per pair of rows that
    are scored against all columns, up to 256 MiB and at least one row.
    """
    if problem.kind == "components":
        return chains.memory(problem)
    M, N, sizes = problem.M, problem.columns, Sizes.of(problem)
    is_one = problem.N is None and problem.metric != "dot"
    features = (M if is_one else M + N) * columns(problem.D)
    each = 2 + {"exact": 0, "int16": 2, "float32": 4}[problem.precision] + 48 * (problem.dtype == torch.float64)
    lists = sizes.bytes + 40 * sizes.rows * problem.K if sizes else 0
    return each * features + 100 * (M + N) + lists + PAIR * sorted_rows(problem) * N


def forward(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """ids [M, k] int64 and scores [M, k] float32."""
    _check.finite_rows("neighbors: x", inputs.x)
    if inputs.y is not None:
        _check.finite_rows("neighbors: y", inputs.y)
    problem = Problem.of(inputs)
    M, k, device = problem.M, problem.K, inputs.x.device
    ids = torch.full((M, k), -1, dtype=torch.int64, device=device)
    scores = torch.full((M, k), -math.inf, dtype=torch.float32, device=device)
    if 0 in (M, k, problem.columns):
        return ids, scores
    with _triton.on(device):
        _search(inputs, problem, ids, scores)
    return ids, scores


def _search(inputs: Inputs, problem: Problem, ids: Tensor, scores: Tensor) -> None:
    """Fill ids and scores [M, k]: by lists, then, where these cannot decide, by the scores of all columns."""
    x, y = sides(inputs)
    M, k, launch, sizes = problem.M, problem.K, Launch(inputs, x, y), Sizes.of(problem)
    is_open = torch.ones(M, dtype=torch.bool, device=ids.device)
    if sizes is not None:
        for rows in sizes.turns(M):
            keys, ids[rows], is_open[rows] = launch.lists(sizes, rows.start, rows.stop - rows.start)
            scores[rows] = reported(inputs, keys, x.length[rows], y)
            _progress.report(rows.stop / M)
    for which in is_open.nonzero()[:, 0].split(sorted_rows(problem)):
        keys, order = launch.all_scores(which).sort(dim=1, descending=True, stable=True)
        keys, order = keys[:, :k], order[:, :k].masked_fill_(keys[:, :k] == -math.inf, -1)
        ids[which, : keys.shape[1]] = order
        scores[which, : keys.shape[1]] = reported(inputs, keys, x.length[which], y)


def reported(inputs: Inputs, keys: Tensor, length: Tensor, y: Side) -> Tensor:
    """Scores of keys [M, k] as float32; -infinity stays. length [M]: of the rows of x."""
    if inputs.precision == "exact":
        return keys.float()
    radius = lattice.fine_radius(inputs.x.shape[1]) if inputs.precision == "int16" else 1.0
    if inputs.metric == "dot":
        unit = length * y.length[0] / torch.full_like(length, radius**2)  # by a number it would be a product
        worth = keys * unit[:, None]
    else:
        worth = (keys * (1 / radius**2)).clamp(-1, 1)
    if inputs.metric == "shifted_cosine":
        worth = (1 + worth) / 2
    return torch.where(keys > -math.inf, worth, -math.inf).float()
