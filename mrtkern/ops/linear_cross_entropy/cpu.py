"""linear_cross_entropy on the CPU: the tile engine makes a chunk of logits, one pass turns it into its gradient.

Reads  hidden [T, D], weight [V, D] float32, bfloat16 or float16 with any strides.
Writes nothing of its own: `chunks.run` holds the loop, the kernel of cross_entropy works in place on its chunk.
Idea   the chunk is as small as the streams of weight and dW allow; weights of rows are folded in by the kernel.
Sums   float32, logits too; factors are multiplied as bfloat16 where the caller's are, the same bits on every machine.
"""

from __future__ import annotations

import torch
from torch import Tensor

import mrtkern._C as _C
from mrtkern import _device
from mrtkern._device import address
from mrtkern.ops.cross_entropy import cpu as cross_entropy
from mrtkern.ops.cross_entropy.problem import Options, Rows
from mrtkern.ops.linear_cross_entropy.problem import NO_TARGET, Cap, LogProbs, Problem, chunk_rows
from mrtkern.ops.linear_cross_entropy.tiles import WORKSPACE, Products

LIMITS = _device.NARROW_NAMES


def why_not(problem: Problem) -> str | None:
    """None when the compiled kernel can run `problem`, otherwise the reason."""
    return _device.not_cpu(problem.device) or _device.not_narrow(problem.hidden, problem.weight)


def multiplies(problem: Problem) -> torch.dtype:
    """The type of the factors. Never float16: the gradients of its logits would vanish."""
    return torch.bfloat16 if problem.product == torch.bfloat16 else torch.float32


def products(weight: Tensor, bias: Tensor | None, product: torch.dtype) -> Products:
    """What multiplies."""
    return Products(weight, bias, product)


def chunk_size(problem: Problem) -> int:
    """Rows of a chunk."""
    return chunk_rows(problem)


def memory(problem: Problem) -> int:
    """Bytes of the work on a chunk of logits beyond the chunk: packed factors, exponentials of a row in each thread."""
    return WORKSPACE + (4 * problem.V + 4096) * torch.get_num_threads()


def forward(
    z: Tensor, targets: Tensor, token_weight: Tensor, target_offsets: Tensor | None, options: Options,
    gradient: Tensor | None, wants_details: bool,
) -> Rows:  # fmt: skip
    """The loss of rows of logits z [C, V]; dL/dz goes to `gradient`, which may be z."""
    return cross_entropy.forward(z, targets, token_weight, target_offsets, options, gradient, wants_details)


def log_probs(z: Tensor, targets: Tensor, cap: Cap, wants_below: bool = False) -> LogProbs:
    """Of rows of logits z [C, V]; targets [C] are classes."""
    nll, entropy = z.new_empty((2, len(z)), dtype=torch.float32)
    lse = z.new_empty(len(z), dtype=torch.float64)
    smoothed = torch.empty_like(nll) if wants_below else None  # the loss of nothing but smoothing
    results = _C.RowResults(
        nll=nll.data_ptr(), weighted=address(smoothed), entropy=entropy.data_ptr(), lse=lse.data_ptr()
    )
    _rows(z, targets, cap, torch.ones_like(nll), label_smoothing=float(wants_below), results=results)
    return LogProbs(nll.neg_(), entropy, lse, smoothed)


def log_probs_backward(
    z: Tensor, targets: Tensor, cap: Cap, w: Tensor, c: Tensor | None, *, gradient: Tensor | None = None,
    z_loss: float = 0.0, lse: Tensor | None = None, label_smoothing: float = 0.0, classes: Tensor | None = None,
) -> None:  # fmt: skip
    """The gradient of sum_t w_t (z_loss lse_t^2 - logp_t) + c_t H_t, or of a part of the classes, goes to `gradient`,
    or replaces z [C, V]."""
    _rows(
        z, targets, cap, w, c=c, z_loss=z_loss, lse=lse, label_smoothing=label_smoothing, classes=classes,
        gradient=z if gradient is None else gradient,
    )  # fmt: skip


def _rows(
    z: Tensor, targets: Tensor, cap: Cap, w: Tensor, *, c: Tensor | None = None, z_loss: float = 0.0,
    lse: Tensor | None = None, label_smoothing: float = 0.0, classes: Tensor | None = None,
    gradient: Tensor | None = None, results: _C.RowResults | None = None,
) -> None:  # fmt: skip
    """One call of the kernel, with one target per row."""
    targets, w = targets.contiguous(), w.contiguous()
    c, lse = (None if value is None else value.contiguous() for value in (c, lse))
    _C.cross_entropy_rows(
        cross_entropy.rows(z, gradient),
        _C.Targets(
            targets=targets.data_ptr(),
            ignore_index=NO_TARGET,
            weight=w.data_ptr(),
            entropy_weight=address(c),
            given_lse=address(lse),
        ),
        _C.LossOptions(
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=cap.softcap,
            scale=1 / cap.temperature,
            classes=0 if classes is None else int(classes),
        ),
        results or _C.RowResults(),
        torch.get_num_threads(),
    )
