"""Attention over a shared prefix in plain PyTorch, a piece at a time: what the fused forms leave out.

Every piece's queries meet its prefix's keys and its own, [prefix, own], which are copied side by side. With a softcap
all scores of a piece are stored, [H, length, prefix + length]; without one torch's scaled_dot_product_attention
decides. Any device, any type, dropout, values of another width than keys. Differentiable by autograd, twice if need be.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mrtkern.integrations.prefix.layout import Layout


def prefix_attention(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, *,
    window: int | None, scale: float, softcap: float | None, dropout: float,
) -> Tensor:  # fmt: skip
    """q [1, H, T, D], k [1, H_kv, T, D], v [1, H_kv, T, E] -> [1, H, T, E]."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    pieces = []
    for run in (*layout.prefixes, *layout.segments):
        prefix = slice(run.prefix_start, run.prefix_start + run.prefix)
        i = torch.arange(run.prefix, run.prefix + run.length, dtype=torch.int64, device=q.device)[:, None]
        j = torch.arange(run.prefix + run.length, dtype=torch.int64, device=q.device)
        mask = j <= i if window is None else (j <= i) & (j > i - window)
        for start in range(run.start, run.end, run.length):
            own = slice(start, start + run.length)
            keys, values = (torch.cat([x[:, :, prefix], x[:, :, own]], 2) for x in (k, v))
            pieces.append((start, attend(q[:, :, own], keys, values, mask, scale, softcap, dropout)))
    return torch.cat([piece for _, piece in sorted(pieces, key=lambda pair: pair[0])], 2)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None, softcap: float | None, dropout: float
) -> Tensor:  # fmt: skip
    """softmax(cap(scale q kᵀ)) v over the keys that `mask` (bool, or added to the scores) lets through."""
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale)
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    scores = softcap * torch.tanh(scores / softcap)
    least = torch.finfo(scores.dtype).min  # not −inf: padding that sees nothing stays a number
    scores = scores.masked_fill(~mask, least) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(q.dtype)
    return F.dropout(weights, dropout) @ v
