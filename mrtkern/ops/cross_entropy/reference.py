"""cross_entropy in PyTorch: the definition that every backend is tested against. Any device, any floating type."""

from __future__ import annotations

import torch
from torch import Tensor

from mrtkern import _sums
from mrtkern._groups import IdGroups
from mrtkern.ops.cross_entropy.problem import Options, Problem, Rows


def why_not(problem: Problem) -> str | None:
    """The reference runs everything."""
    return None


def memory(problem: Problem) -> int:
    """Bytes beyond inputs and results, at most: logits, probabilities and their products in the type that sums."""
    return problem.T * problem.V * (56 if problem.dtype == torch.float64 else 28)


def wide(x: Tensor) -> Tensor:
    """In the type that sums: float64 for float64, otherwise float32."""
    return x if x.dtype == torch.float64 else x.float()


def forward(
    logits: Tensor, targets: Tensor, token_weight: Tensor | None, target_offsets: Tensor | None, options: Options,
    gradient: Tensor | None, wants_details: bool,
) -> Rows:  # fmt: skip
    """The loss and, where wanted, details; dL/dz goes to `gradient`, which may be the logits."""
    ignore_index, smoothing, z_loss, softcap = options
    (T, V), device = logits.shape, logits.device
    z = wide(logits)
    u = softcap * torch.tanh(z / softcap) if softcap else z  # [T, V]
    largest = u.amax(1)
    d = u - largest[:, None]  # [T, V], so that digits of large logits are kept
    log_sum = _sums.along_rows(d.exp()).log()
    lse = largest + log_sum  # [T]
    p = torch.exp(d - log_sum[:, None])  # [T, V]

    rows = torch.arange(T, dtype=torch.int64, device=device)
    if target_offsets is not None:  # the row of each entry
        entries = torch.arange(targets.shape[0], dtype=torch.int64, device=device)
        rows = torch.searchsorted(target_offsets[1:], entries, right=True).clamp(max=T - 1)
    is_valid = targets != ignore_index
    is_bad = is_valid & ((targets < 0) | (targets >= V))  # refused before wherever values may be read, otherwise NaN
    y = torch.where(is_valid & ~is_bad, targets, 0)
    w = z.new_ones(targets.shape) / is_valid.sum().clamp(min=1) if token_weight is None else token_weight.to(z.dtype)
    w = torch.where(is_bad, torch.nan, torch.where(is_valid, w, 0))  # one per entry, like all that follow

    nll = torch.where(is_bad, torch.nan, log_sum[rows] - d[rows, y])
    each = (1 - smoothing) * nll + z_loss * lse[rows].square()
    if smoothing:
        each = each + smoothing * (log_sum - _sums.along_rows(d) / V)[rows]
    weighted = torch.where(w == 0, 0, w.double() * each)
    loss = _sums.total(weighted).to(z.dtype)

    none = z.new_empty(0)
    best = logits_argmax(logits) if wants_details else none.long()  # before the gradient, which may replace them
    if gradient is not None:
        has_one = target_offsets is None  # per row; otherwise what a cell gets is summed before it is added
        a = z.new_zeros(T).index_copy_(0, rows, IdGroups(None if has_one else rows).sums(w))
        du = (a * (1 + 2 * z_loss * lse))[:, None] * p
        if smoothing:
            du -= (a * smoothing / V)[:, None]
        du[rows, y] += IdGroups(None if has_one else rows * V + y).sums((smoothing - 1) * w)
        if softcap:
            du *= 1 - torch.tanh(z / softcap).square()
        gradient.copy_(torch.where(in_rows(w != 0, rows, T)[:, None], du, 0))

    if not wants_details:
        return Rows(loss, none, none, none, best)
    counts = in_rows(is_valid, rows, T)
    entropy = log_sum - _sums.along_rows(torch.where(p > 0, p * d, 0))
    return Rows(
        loss,
        torch.where(is_valid, nll, 0),
        weighted.to(z.dtype),
        torch.where(counts, entropy, 0),
        torch.where(counts, best, -1),
    )


def in_rows(is_true: Tensor, rows: Tensor, T: int) -> Tensor:
    """Whether a row [T] has an entry that is true."""
    return rows.new_zeros(T).index_add_(0, rows, is_true.long()) > 0


def scale(gradient: Tensor, factor: Tensor) -> None:
    """gradient [T, V] *= factor, 0-d, which a product of both in float16 may not hold."""
    gradient.copy_(wide(gradient) * factor)


def logits_argmax(logits: Tensor) -> Tensor:
    """The lowest column of the largest logit [T]; torch.argmax leaves the choice among equals open."""
    V = logits.shape[1]
    columns = torch.arange(V, dtype=torch.int64, device=logits.device)
    return torch.where(logits == logits.amax(1, keepdim=True), columns, V).amin(1)
