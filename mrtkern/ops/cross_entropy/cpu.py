"""cross_entropy on the CPU: one call of the compiled kernel leaves loss, gradient and details of all rows.

    loss = sum_t w_t l_t,   gradient[t] = dL/dz_t

Reads  logits [T, V] float32, bfloat16 or float16, targets, weights.   Writes gradient [T, V], which may be the logits.
Idea   a row is read from memory once; its exponentials wait in the L2 cache until their sum is known.
Sums   float32 over 32 numbers per lane, float64 beyond: the same bits for every number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

import mrtkern._C as _C
from mrtkern import _device
from mrtkern._device import address
from mrtkern.ops.cross_entropy.problem import Options, Problem, Rows

LIMITS = _device.NARROW_NAMES


def why_not(problem: Problem) -> str | None:
    """None when the compiled kernel can run `problem`, otherwise the reason."""
    return _device.not_cpu(problem.device) or _device.not_narrow(problem.dtype)


def memory(problem: Problem) -> int:
    """Bytes beyond inputs and results: a row of float32 per thread, a number per row."""
    return (4 * problem.V + 4096) * torch.get_num_threads() + 8 * problem.T


def forward(
    logits: Tensor, targets: Tensor, token_weight: Tensor | None, target_offsets: Tensor | None, options: Options,
    gradient: Tensor | None, wants_details: bool,
) -> Rows:  # fmt: skip
    """The loss and, where wanted, details; dL/dz goes to `gradient`, which may be the logits."""
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        logits = logits.contiguous()
    targets = targets.contiguous()
    weight, uniform = token_weight, 0.0
    if weight is None:
        uniform = 1 / max(1, int((targets != options.ignore_index).sum()))
    else:
        weight = weight.float().contiguous()
    if target_offsets is not None:
        target_offsets = target_offsets.contiguous()
    nll, weighted, entropy, argmax = details = _details(logits, targets, wants_details)
    loss = _C.cross_entropy_rows(
        rows(logits, gradient),
        _C.Targets(
            targets=targets.data_ptr(),
            target_offsets=address(target_offsets),
            ignore_index=options.ignore_index,
            weight=address(weight),
            uniform_weight=uniform,
        ),
        _C.LossOptions(label_smoothing=options.label_smoothing, z_loss=options.z_loss, softcap=options.softcap),
        _C.RowResults(
            nll=nll.data_ptr(), weighted=weighted.data_ptr(), entropy=entropy.data_ptr(), argmax=argmax.data_ptr()
        )
        if wants_details
        else _C.RowResults(),
        torch.get_num_threads(),
    )
    return Rows(torch.tensor(loss, dtype=torch.float32, device="cpu"), *details)


def rows(logits: Tensor, gradient: Tensor | None) -> _C.Logits:
    """Rows of adjacent logits [T, V] and where their gradient goes."""
    return _C.Logits(
        logits=logits.data_ptr(),
        gradient=address(gradient),
        dtype=_device.DTYPES[logits.dtype],
        T=logits.shape[0],
        V=logits.shape[1],
        logits_stride=logits.stride(0),
        gradient_stride=0 if gradient is None else gradient.stride(0),
    )


def scale(gradient: Tensor, factor: Tensor) -> None:
    """gradient [T, V] *= factor, 0-d."""
    gradient.mul_(factor)


def _details(logits: Tensor, targets: Tensor, wants_details: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for nll, weighted, entropy and argmax; empty when nobody wants them."""
    T, E = (logits.shape[0], targets.shape[0]) if wants_details else (0, 0)
    nll, weighted, entropy = (logits.new_empty(size, dtype=torch.float32) for size in (E, E, T))
    return nll, weighted, entropy, targets.new_empty(T)
