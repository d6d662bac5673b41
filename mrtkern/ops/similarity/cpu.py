"""similarity on the CPU: one call of the compiled kernel writes the scores of every packed group.

    s[cell(b, m, n)] = metric(x[offsets[b] + m], x[offsets[b] + n])

Reads  x [T, D] float32, bfloat16 or float16 with any strides, offsets [B + 1].
Writes s [sum of n_b^2] in the type of x.
Idea   a group is normalised into panels once and its tiles are stored from cache: one pass over x, by all threads.
Sums   float64 lengths, float32 products, one fixed order per group: the same bits for every number of threads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import mrtkern._C as _C
from mrtkern import _check
from mrtkern.ops.similarity.problem import Problem

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def why_not(problem: Problem) -> str | None:
    """None when the compiled kernel can run `problem`, otherwise the reason."""
    if problem.device != "cpu":
        return f"needs a CPU tensor, got one on {problem.device}"
    if problem.kind != "packed":
        return (
            "runs packed groups (offsets) only: for dense and batched x torch.mm is fastest, which the reference calls"
        )
    if problem.dtype not in DTYPES:
        return f"needs float32, bfloat16 or float16, got {problem.dtype}"
    if problem.metric == "rbf":
        return "has no metric 'rbf', which sums differences instead of products"
    if problem.wants_grad:
        return "has no gradient: x requires one, and the reference computes it"
    return None


def memory(problem: Problem, pairs: int) -> int:
    """Bytes beyond inputs and result, at most: the packed panels of the largest group, in every thread."""
    return 4 * problem.D * (math.isqrt(pairs) + 49) * torch.get_num_threads()


def forward(x: Tensor, y: Tensor | None, offsets: Tensor, metric: str, gamma: float) -> Tensor:
    """Packed scores in the type of x."""
    x, offsets = x.resolve_neg(), offsets.contiguous()  # the kernel reads memory: a lazy minus sign must be in it
    s = x.new_empty(int(offsets.diff().square().sum()))
    bad = _C.similarity_ragged(
        x.data_ptr(), DTYPES[x.dtype], x.stride(0), x.stride(1), offsets.data_ptr(), offsets.shape[0] - 1, x.shape[1],
        metric, s.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if bad >= 0:
        _check.finite_rows("similarity: x", x[bad : bad + 1], bad)
    return s
