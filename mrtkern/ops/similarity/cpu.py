"""similarity on the CPU: one call of the compiled kernel for all groups, one for their gradient.

    s[b, m, n] = metric(x[b, m], y[b, n])

Reads  x and y, float32, bfloat16 or float16 with any strides; offsets [B + 1].
Writes s, dx, dy in the type of x.
Idea   rows are packed once and multiplied in tiles that are stored from registers; without y each tile is computed once
       and stored on both sides of the diagonal. Groups of up to 32 rows are multiplied where they lie.
Sums   float64 lengths (small groups: float32, where their range allows it), float32 products, one fixed order per pair:
       the same bits for every number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

import mrtkern._C as _C
from mrtkern import _check, _device
from mrtkern._device import address
from mrtkern.ops.similarity.problem import Packed, Problem

LIMITS = f"{_device.NARROW_NAMES}, rows that begin at a multiple of the size of their type"


def why_not(problem: Problem) -> str | None:
    """None when the compiled kernel can run `problem`, otherwise the reason."""
    if reason := _device.not_cpu(problem.device) or _device.not_narrow(problem.dtype):
        return reason
    if not problem.is_aligned:
        return "needs rows that begin at a multiple of the size of their type, got x or y at an odd address"
    return None


def memory(problem: Problem, pairs: int, largest: int) -> int:
    """Bytes beyond inputs and results, at most: packed rows of the largest group, in every thread or once for all."""
    threads, D = torch.get_num_threads(), problem.D + 16
    rows = 2 * largest + 32 if problem.N is None else 3 * max(problem.M, problem.N) + 64
    packed = 4 * D * rows
    per_thread = 800 * D + 140_000 + packed
    return packed + threads * per_thread + (pairs * problem.dtype.itemsize if problem.wants_grad else 0)


def forward(x: Tensor, y: Tensor | None, groups: Packed | None, metric: str, gamma: float) -> Tensor:
    """Scores in the type of x: [M, N], [B, M, N], or packed."""
    x, y, offsets = _readable(x, y, groups)
    if groups is None:
        s = x.new_empty((*x.shape[:-1], (x if y is None else y).shape[-2]))
    else:
        s = x.new_empty(groups.pairs)
    bad = _C.similarity(_problem(x, y, offsets, metric, gamma), s.data_ptr(), torch.get_num_threads())
    for name, value, row in zip(("x", "y"), (x, y), bad, strict=True):
        if value is not None and row >= 0:
            _check.finite_rows(f"similarity: {name}", value[divmod(row, value.shape[-2])[-value.ndim + 1 :]][None], row)
    return s


def backward(
    grad: Tensor, x: Tensor, y: Tensor | None, groups: Packed | None, metric: str, gamma: float,
    need_x: bool, need_y: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """dL/dx and dL/dy, of the shapes and types of x and y, where they are needed."""
    x, y, offsets = _readable(x, y, groups)
    grad = grad.resolve_neg().contiguous()
    dx = x.new_empty(x.shape) if need_x else None
    dy = x.new_empty(y.shape) if need_y and y is not None else None
    _C.similarity_gradient(
        _problem(x, y, offsets, metric, gamma), grad.data_ptr(), address(dx), address(dy), torch.get_num_threads()
    )
    return dx, dy


def _readable(x: Tensor, y: Tensor | None, groups: Packed | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rows and offsets as the kernel reads them: a lazy minus sign must be in memory."""
    return x.resolve_neg(), y if y is None else y.resolve_neg(), None if groups is None else groups.offsets.contiguous()


def _problem(x: Tensor, y: Tensor | None, offsets: Tensor | None, metric: str, gamma: float) -> _C.SimilarityProblem:
    """What both passes share."""
    return _C.SimilarityProblem(
        B=offsets.shape[0] - 1 if offsets is not None else 1 if x.ndim == 2 else x.shape[0],
        offsets=address(offsets),
        x=_matrices(x),
        y=None if y is None else _matrices(y),
        metric=metric,
        gamma=gamma,
    )


def _matrices(x: Tensor) -> _C.Matrices:
    """Where the matrices lie."""
    batch_stride = x.stride(0) if x.ndim == 3 else 0
    return _C.Matrices(first=_device.features(_C, x), batch_stride=batch_stride, rows_per_group=x.shape[-2])
