"""similarity in PyTorch: the definition that every other backend is tested against. Any device, any floating type."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mrtkern import _check
from mrtkern.ops.similarity.problem import Packed, Problem


def why_not(problem: Problem) -> str | None:
    """The reference runs everything."""
    return None


def memory(problem: Problem, pairs: int, largest: int) -> int:
    """Bytes beyond inputs and result, at most: features and scores in wider types, packed also their indices."""
    per_feature, per_score = (44, 36) if problem.wants_grad else (20, 20)
    return per_feature * problem.rows * problem.D + per_score * pairs


def wide(x: Tensor) -> Tensor:
    """In the type that sums: float64 for float64, otherwise float32."""
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows a = x / |x| [..., M, D] in the summing type, 1 / |x| [..., M, 1] in float64; both are 0 for a zero row."""
    a = x.to(torch.float64, copy=True)
    inverse = a.new_ones((*a.shape[:-1], 1))
    for order in (
        (torch.inf, 2) if x.dtype == torch.float64 else (2,)
    ):  # its largest first, or the squares could overflow
        length = torch.linalg.vector_norm(a, order, dim=-1, keepdim=True) if a.shape[-1] else torch.zeros_like(inverse)
        a /= torch.where(length > 0, length, 1)
        inverse = torch.where(length > 0, inverse / length, 0)
    return a.to(wide(x[..., :0]).dtype), inverse


def scores(x: Tensor, y: Tensor, metric: str, gamma: float) -> Tensor:
    """s [..., M, N] of x [..., M, D] and y [..., N, D], in the summing type."""
    if metric == "dot":
        return wide(x) @ wide(y).mT
    if metric == "rbf":  # differences first: |x|^2 + |y|^2 - 2 <x, y> loses its digits far from the origin
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(wide(x), wide(y), compute_mode=exact).square_().mul_(-gamma).exp_()
    a = unit(x)[0]
    cos = (a @ (a if y is x else unit(y)[0]).mT).clamp_(-1, 1)
    if metric == "shifted_cosine":
        return cos.add_(1).div_(2)
    return cos.clamp_(min=0) if metric == "clamped_cosine" else cos


def slopes(grad: Tensor, x: Tensor, y: Tensor, metric: str, gamma: float) -> Tensor:
    """w [..., M, N]: the gradient of the scores carried back through the metric to the product of rows (rbf: v)."""
    if metric == "rbf":
        return wide(grad) * scores(x, y, metric, gamma).mul_(-2 * gamma)
    if metric == "clamped_cosine":
        return wide(grad) * (scores(x, y, metric, gamma) > 0)
    return wide(grad) / 2 if metric == "shifted_cosine" else wide(grad)


def pull(w: Tensor, x: Tensor, y: Tensor, metric: str) -> Tensor:
    """dL/dx [..., M, D] from w [..., M, N], rounded once to the type of x."""
    if metric == "dot":
        return (w @ wide(y)).to(x.dtype)
    if metric == "rbf":
        return (w.sum(-1, keepdim=True) * wide(x) - w @ wide(y)).to(x.dtype)
    a, inverse = unit(x)
    d = w @ (a if y is x else unit(y)[0])
    return ((d - a * (a * d).sum(-1, keepdim=True)) * inverse).to(x.dtype)


def blocks(groups: Packed) -> Iterator[tuple[Tensor, Tensor]]:
    """Groups of one size at a time: their rows [B', n] of x and their cells [B', n, n] of the packed result."""
    offsets, sizes = groups.offsets, groups.sizes
    begins = sizes.square().cumsum(0) - sizes.square()
    for n in sizes.unique().tolist():
        which = sizes == n
        rows = offsets[:-1][which, None] + torch.arange(n, dtype=torch.int64, device=offsets.device)
        cells = begins[which, None] + torch.arange(n * n, dtype=torch.int64, device=offsets.device)
        yield rows, cells.unflatten(1, (n, n))


def forward(x: Tensor, y: Tensor | None, groups: Packed | None, metric: str, gamma: float) -> Tensor:
    """s in the type of x: [M, N], [B, M, N], or packed."""
    for name, value in (("x", x), ("y", y)):
        if value is not None:
            _check.finite_rows(f"similarity: {name}", value.flatten(0, -2))
    if groups is None:
        return scores(x, x if y is None else y, metric, gamma).to(x.dtype)
    s = x.new_empty(groups.pairs)
    for rows, cells in blocks(groups):
        group = x[rows]
        s[cells] = scores(group, group, metric, gamma).to(x.dtype)
    return s


def backward(
    grad: Tensor, x: Tensor, y: Tensor | None, groups: Packed | None, metric: str, gamma: float,
    need_x: bool, need_y: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """dL/dx and dL/dy, of the shapes and types of x and y, where they are needed."""
    if groups is not None:
        dx = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        for rows, cells in blocks(groups):
            group = x[rows]
            w = slopes(grad[cells], group, group, metric, gamma)
            dx[rows] = pull(w + w.mT, group, group, metric)
        return dx, None
    w = slopes(grad, x, x if y is None else y, metric, gamma)
    if y is None:
        return pull(w + w.mT, x, x, metric), None
    return pull(w, x, y, metric) if need_x else None, pull(w.mT, y, x, metric) if need_y else None
