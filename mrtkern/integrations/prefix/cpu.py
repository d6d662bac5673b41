"""Attention over a shared prefix on the CPU: parts of the answer, each by torch's fused kernel, joined by their sums.

    out = Σ_part exp(lse_part − lse) out_part,   lse = log Σ_part exp(lse_part)

Every piece attends to itself, and the segments of a prompt, as they lie, to its prefix: no key is copied, no matrix of
scores is stored. In backward the fused kernel gets the joint `out` and `lse` instead of a part's own, which makes its
gradient that part's share of the whole.
Reads  q [H, T, D], k and v [H_kv, T, D].   Writes out [H, T, D].
Sums   by the kernel in float32 (float64 for float64); gradients of a key meet in that type, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrtkern.integrations.prefix.layout import Layout, Run

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Part:
    """Queries of `count` pieces, `rows` of each, against their own keys or, as `keys` says, those of their prefix."""

    run: Run
    rows: int
    keys: tuple[int, int] | None
    is_causal: bool
    mask: Tensor | None  # [rows, keys], added to the scores

    def queries(self, x: Tensor) -> Tensor:
        """[H, T, D] -> [count, H, rows, D], or [H, T] -> [count, H, rows]."""
        pieces: Tensor = x[:, self.run.start : self.run.end].unflatten(1, (self.run.count, self.run.length))
        return pieces[:, :, : self.rows].transpose(0, 1)

    def seen(self, x: Tensor) -> Tensor:
        """[H, T, D] -> [count, H, keys, D]."""
        if self.keys is None:
            return self.queries(x)
        return x[None, :, slice(*self.keys)].expand(self.run.count, -1, -1, -1)

    def give(self, total: Tensor, share: Tensor) -> None:
        """Add [count, H, keys, D] to the keys it belongs to."""
        if self.keys is None:
            self.queries(total).copy_(share)  # what a piece gives itself is the first that a key gets
        else:
            total[:, slice(*self.keys)] += share.sum(0)


def _parts(layout: Layout, window: int | None, like: Tensor) -> Iterator[Part]:
    """First of every piece its own keys, which are all tokens; then the prefixes."""
    for run in (*layout.prefixes, *layout.segments):
        if window is None or run.length <= window:
            yield Part(run, run.length, None, True, None)
        else:
            yield Part(run, run.length, None, False, _band(run.length, run.length, 0, window, like))
    for run in layout.segments:
        if not run.prefix:
            continue
        if window is None or run.prefix + run.length <= window:
            yield Part(run, run.length, (run.prefix_start, run.prefix_start + run.prefix), False, None)
        elif window > 1:
            first = max(0, run.prefix + 1 - window)
            rows, seen = min(run.length, window - 1), run.prefix - first
            mask = _band(rows, seen, seen, window, like)
            yield Part(run, rows, (run.prefix_start + first, run.prefix_start + run.prefix), False, mask)


def _band(rows: int, keys: int, ahead: int, window: int, like: Tensor) -> Tensor:
    """0 where query `ahead` + i sees key j, less than `window` before it; −inf elsewhere."""
    i = torch.arange(ahead, ahead + rows, dtype=torch.int64, device=like.device)[:, None]
    j = torch.arange(keys, dtype=torch.int64, device=like.device)
    return like.new_zeros((rows, keys)).masked_fill_((j > i) | (j <= i - window), -torch.inf)


def _repeated(x: Tensor, groups: int) -> Tensor:
    """[H_kv, T, D] -> [H, T, D]: the kernel wants a head of keys for every head of queries."""
    return x if groups == 1 else x.repeat_interleave(groups, 0)


def prefix_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, window: int | None, scale: float) -> Tensor:
    """q [1, H, T, D], k and v [1, H_kv, T, D] -> [1, H, T, D]."""
    out: Tensor = _PrefixAttention.apply(q[0], k[0], v[0], layout, window, scale)  # type: ignore[no-untyped-call]
    return out[None]


def _adjacent(x: Tensor) -> Tensor:
    """With features next to each other: the fused kernel takes that for granted."""
    return x if x.stride(-1) == 1 else x.contiguous()


class _PrefixAttention(torch.autograd.Function):
    """q [H, T, D], k and v [H_kv, T, D] -> [H, T, D]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, layout: Layout, window: int | None, scale: float) -> Tensor:
        """Each part, joined to what is there."""
        H, T, D = q.shape
        groups = H // len(k)
        q, k, v = (_adjacent(x) for x in (q, k, v))
        keys, values = _repeated(k, groups), _repeated(v, groups)
        out = q.new_empty((T, H, D)).transpose(0, 1)  # as the model wants it: heads of a token together
        lse = q.new_empty((H, T), dtype=_wide(q))
        for part in _parts(layout, window, q):
            seen = part.seen(keys), part.seen(values)
            o, s = _forward(part.queries(q), *seen, 0.0, part.is_causal, attn_mask=part.mask, scale=scale)
            old_o, old_s = part.queries(out), part.queries(lse)
            if part.keys is None:
                old_o.copy_(o)
                old_s.copy_(s)
                continue
            joint = torch.logaddexp(old_s, s)
            old_o.copy_(torch.lerp(old_o.to(joint.dtype), o.to(joint.dtype), (s - joint).exp_()[..., None]))
            old_s.copy_(joint)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.layout, ctx.window, ctx.scale = layout, window, scale
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Each part's share."""
        q, k, v, out, lse = ctx.saved_tensors
        groups = len(q) // len(k)
        grad = _adjacent(grad)
        keys, values = _repeated(k, groups), _repeated(v, groups)
        dq, dk, dv = (torch.empty_like(x, dtype=_wide(x)) for x in (q, keys, values))
        for part in _parts(ctx.layout, ctx.window, q):
            inputs = (part.queries(grad), part.queries(q), part.seen(keys), part.seen(values))
            joint = part.queries(out), part.queries(lse)
            share = _backward(*inputs, *joint, 0.0, part.is_causal, attn_mask=part.mask, scale=ctx.scale)
            if part.keys is None:
                part.queries(dq).copy_(share[0])
            else:
                part.queries(dq).add_(share[0])
            part.give(dk, share[1])
            part.give(dv, share[2])
        if groups > 1:
            dk, dv = (x.unflatten(0, (-1, groups)).sum(1) for x in (dk, dv))
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _wide(x: Tensor) -> torch.dtype:
    """What sums of products of this type are kept in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
