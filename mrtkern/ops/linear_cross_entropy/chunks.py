"""hidden @ weight.T, a chunk of rows at a time: the only place where the two are multiplied.

    z = hidden[rows] weight^T + bias       [C, V], in a buffer that every chunk uses again
    step(z, chunk)                         the caller reads z, and turns it into dL/dz where gradients are wanted
    dh[rows] = z weight,   dW += z^T hidden[rows],   db += sum of z

Sums: on the CPU products of the summing type have at most TERMS terms at a time, in ascending order; on a device the
library's product sums as it likes, the same way on every run.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# MKL shares out the terms of longer sums, in as many parts as there are threads: the bits would depend on that number.
# With 512 they did not, on 1 to 8 threads of a Xeon with AVX-512, from LEAST_ROWS rows on. It costs 3 % of the time.
TERMS = 512
LEAST_ROWS = 16  # fewer become matrix-vector products, which are shared out by terms however few those are
LARGE = 1 << 22  # entries of dW from which on its sums are not shared out by terms, however many
# Ctrl-C waits for the product that runs: one of LARGE entries and MOST_TERMS takes 0.1 s on 2 cores of that Xeon.
LONGEST = 1 << 32  # operations of any other product
MOST_TERMS = 1024
BLOCK_ROWS = 4096  # of weight converted at a time: 16 MiB of float32 at D = 1024, a quarter of one chunk of logits

Step = Callable[[Tensor, slice], None]  # (z [C, V], rows of this chunk)


@dataclass(frozen=True)
class Gradients:
    """Of hidden [T, D], weight [V, D], bias [V] in the summing type, where they were asked for."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def blocks(weight: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows of weight in the type that multiplies, in a buffer of their own; all at once where they have it already."""
    if weight.dtype == dtype:
        yield slice(0, weight.shape[0]), weight
        return
    buffer = weight.new_empty((min(BLOCK_ROWS, weight.shape[0]), weight.shape[1]), dtype=dtype)
    for v in range(0, weight.shape[0], BLOCK_ROWS):
        rows = weight[v : v + BLOCK_ROWS]
        yield slice(v, v + len(rows)), buffer[: len(rows)].copy_(rows)


def accumulate(total: Tensor, a: Tensor, b: Tensor, is_first: bool) -> None:
    """total [M, N] = a [M, K] @ b [K, N], or += where it is not the first; no product of more than LONGEST."""
    if total.device.type != "cpu":
        _accumulate_on_device(total, a, b, is_first)
        return
    (M, K), N = a.shape, b.shape[1]
    terms = TERMS if a.dtype in (torch.float32, torch.float64) else max(K, 1)  # narrow sums must not be resumed
    if is_first and not K:
        total.zero_()
    width = max(LONGEST // (2 * max(M, 1) * terms) // 64, 1) * 64  # whole registers
    for n, k in itertools.product(range(0, N, width), range(0, K, terms)):
        part, x, y = total[:, n : n + width], a[:, k : k + terms], b[k : k + terms, n : n + width]
        begins = is_first and k == 0
        if a.dtype == total.dtype:
            part.addmm_(x, y, beta=0 if begins else 1)
        else:  # a narrow product, rounded once before it is added
            part.copy_(x @ y) if begins else part.add_(x @ y)


@functools.cache
def adds_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch adds products of 16-bit factors to a float32 sum there, without rounding them first.

    Found out by adding one: the overload was there for some versions before it took such a sum.
    """
    if not hasattr(torch.ops.aten.addmm, "dtype_out"):
        return False
    total = torch.zeros((LEAST_ROWS, LEAST_ROWS), dtype=torch.float32, device=device)
    factor = total.to(dtype)
    try:
        torch.addmm(total, factor, factor, out_dtype=total.dtype, out=total)
    except RuntimeError:
        return False
    return True


def _accumulate_on_device(total: Tensor, a: Tensor, b: Tensor, is_first: bool) -> None:
    """All at once: nothing is interrupted there."""
    if is_first and not a.shape[1]:
        total.zero_()
    elif a.dtype == total.dtype:
        total.addmm_(a, b, beta=0 if is_first else 1)
    elif adds_wide(total.device, a.dtype):
        torch.addmm(total, a, b, beta=0 if is_first else 1, out_dtype=total.dtype, out=total)
    else:
        total.copy_(a @ b) if is_first else total.add_(a @ b)


def logits(z: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """z [C, V] = h [C, D] weight^T + bias."""
    for columns, w in blocks(weight, z.dtype):
        accumulate(z[:, columns], h, w.T, True)
    if bias is not None:
        z += bias


def hidden_gradient(dz: Tensor, weight: Tensor, wide: torch.dtype) -> Tensor:
    """dz [C, V] weight, in the summing type."""
    dh = dz.new_empty((dz.shape[0], weight.shape[1]), dtype=wide)  # [C, D]
    for columns, w in blocks(weight, dz.dtype):
        accumulate(dh, dz[:, columns], w, columns.start == 0)
    return dh


def add_weight_gradient(total: Tensor, z: Tensor, h: Tensor, is_first: bool) -> None:
    """total [V, D] += z^T h, in blocks of LARGE entries or all at once; `chunk_rows` keeps a chunk of that at TERMS."""
    if total.device.type != "cpu":
        _accumulate_on_device(total, z.T, h, is_first)
        return
    if z.dtype == total.dtype:
        v = 0
        for block in total.tensor_split(max(total.numel() // LARGE, 1)):
            for c in range(0, len(z), MOST_TERMS):
                part = z[c : c + MOST_TERMS, v : v + len(block)]
                block.addmm_(part.T, h[c : c + MOST_TERMS], beta=0 if is_first and c == 0 else 1)
            v += len(block)
        return
    for v in range(0, total.shape[0], BLOCK_ROWS):
        accumulate(total[v : v + BLOCK_ROWS], z[:, v : v + BLOCK_ROWS].T, h, is_first)


def run(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor | None, step: Step, *,
    size: int, product: torch.dtype, needs: tuple[bool, bool, bool] = (False, False, False),
    keeps: Tensor | None = None,
) -> Gradients:  # fmt: skip
    """Call `step` on each chunk of `size` rows and collect the gradients of what it leaves in z.

    rows [T'] int64: the rows of hidden that count, ascending; None: all. keeps [T] bool: the others are multiplied as
    zeros, whatever they hold. `product` is the type that multiplies.
    """
    T, (V, D) = hidden.shape[0] if rows is None else rows.shape[0], weight.shape
    wide = torch.float64 if product == torch.float64 else torch.float32
    if hidden.device.type != "cpu":  # converted once: there a block at a time would keep no processor busy
        weight = weight.to(product)
    z = hidden.new_empty((max(size, LEAST_ROWS), V), dtype=product)  # [C, V]
    dh = hidden.new_zeros(hidden.shape, dtype=wide) if needs[0] else None  # [T, D]
    dW = hidden.new_empty((V, D), dtype=wide) if needs[1] else None
    db = hidden.new_zeros(V, dtype=wide) if needs[2] else None
    for t in range(0, T, max(size, 1)):
        chunk = slice(t, min(t + size, T))
        which = chunk if rows is None else rows[chunk]
        count = chunk.stop - t
        h = hidden.new_zeros((max(count, LEAST_ROWS), D), dtype=product)
        h[:count] = hidden[which] if keeps is None else hidden[which].masked_fill(~keeps[which, None], 0)
        dz = z[: len(h)]
        logits(dz, h, weight, bias)
        step(dz[:count], chunk)
        dz[count:] = 0
        if dh is not None:
            dh[which] = hidden_gradient(dz, weight, wide)[:count]
        if dW is not None:
            add_weight_gradient(dW, dz, h, t == 0)
        if db is not None:
            db += dz.sum(0, dtype=wide)
    if dW is not None and not T:
        dW.zero_()
    return Gradients(dh, dW, db)
