"""linear_cross_entropy for Triton: the device's library makes a chunk of logits, one kernel turns it into its gradient.

Reads  hidden [T, D], weight [V, D] float32, bfloat16 or float16 with any strides.
Writes nothing of its own: `chunks.run` holds the loop, the kernel of cross_entropy works in place on its chunk.
Idea   matrix units are kept busy by the vendor's products, 2,048 to 4,096 rows at a time; between two of them the
       logits are read, and dz is written in the type in which it is multiplied (`traffic` counts the bytes). Nothing
       waits for the device, so rows that do not count are multiplied as zeros unless `check` allows to ask which they
       are.
Sums   products in float32, also where 16-bit factors are multiplied; dW in float32 over all chunks.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from mrtkern import _device, _triton
from mrtkern.ops.cross_entropy import triton as cross_entropy
from mrtkern.ops.cross_entropy.problem import Options, Rows
from mrtkern.ops.cross_entropy.triton.kernels import SCALED
from mrtkern.ops.linear_cross_entropy import library
from mrtkern.ops.linear_cross_entropy.chunks import Products
from mrtkern.ops.linear_cross_entropy.problem import NO_TARGET, Cap, LogProbs, Problem
from mrtkern.ops.linear_cross_entropy.traffic import device_rows

LIMITS = cross_entropy.LIMITS
SCALED_BLOCK = 4096  # numbers of a program: 32 of each thread, eight loads of 16 bytes in flight


@triton.jit
def scaled_kernel(G, FACTOR, OUT, count, IS_SAME: tl.constexpr, BLOCK: tl.constexpr):
    """OUT = G [count] float32 times a number (None: 1), rounded once; IS_SAME: OUT is G, which a factor of 1 leaves."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = 1.0 if FACTOR is None else tl.load(FACTOR).to(tl.float32)
    if (not IS_SAME) or factor != 1.0:
        g = tl.load(G + i, mask=i < count, eviction_policy="evict_first")
        tl.store(OUT + i, (g * factor).to(OUT.dtype.element_ty), mask=i < count)


def why_not(problem: Problem) -> str | None:
    """None when the kernels can run `problem`, otherwise the reason."""
    return (
        _triton.why_not(problem.device, problem.capability)
        or _device.not_narrow(problem.hidden, problem.weight)
        or cross_entropy.too_many_columns(problem.V)
    )


def multiplies(problem: Problem) -> torch.dtype:
    """The type of the factors. Never float16: the gradients of its logits would vanish."""
    return torch.bfloat16 if problem.product == torch.bfloat16 else torch.float32


def chunk_size(problem: Problem) -> int:
    """Rows of a chunk."""
    return device_rows(problem, multiplies(problem))


def memory(problem: Problem) -> int:
    """Bytes of the work on a chunk of logits beyond the chunk: numbers per row, the weight and dz as they multiply, and
    what of a product waits to be added where torch does not add it in place."""
    narrow = multiplies(problem)
    converted = problem.D * (narrow != problem.weight) + chunk_size(problem) * (narrow.itemsize < 4)
    waiting = 4 * problem.D * min(problem.V, library.ADDED_ROWS) if narrow.itemsize < 4 and problem.needs[1] else 0
    return 32 * problem.T + converted * problem.V * narrow.itemsize + waiting


def products(weight: Tensor, bias: Tensor | None, product: torch.dtype) -> Products:
    """The library of the device; what is interpreted has no device, and no library keeps there what is promised."""
    if weight.device.type == "cpu":
        from mrtkern.ops.linear_cross_entropy import tiles

        return tiles.Products(weight, bias, product)
    return library.Products(weight, bias, product)


def forward(
    z: Tensor, targets: Tensor, token_weight: Tensor, target_offsets: Tensor | None, options: Options,
    gradient: Tensor | None, wants_details: bool,
) -> Rows:  # fmt: skip
    """The loss of rows of logits z [C, V]; dL/dz goes to `gradient`, which may be z."""
    return cross_entropy.forward(z, targets, token_weight, target_offsets, options, gradient, wants_details)


def log_probs(z: Tensor, targets: Tensor, cap: Cap, wants_below: bool = False) -> LogProbs:
    """Of rows of logits z [C, V]; targets [C] are classes, or NO_TARGET where all results are 0."""
    nll, entropy = z.new_empty((2, len(z)), dtype=torch.float32)
    lse = z.new_empty(len(z), dtype=torch.float64)
    smoothed = torch.empty_like(nll) if wants_below else None  # the loss of nothing but smoothing
    cross_entropy.launch(
        z, targets.contiguous(), None, z.new_ones((), dtype=torch.float32).expand(len(z)),
        Options(NO_TARGET, label_smoothing=float(wants_below), softcap=cap.softcap), scale=1 / cap.temperature,
        nll=nll, weighted=smoothed, entropy=entropy, lse=lse,
    )  # fmt: skip
    return LogProbs(nll.neg_(), entropy, lse, smoothed)


def log_probs_backward(
    z: Tensor, targets: Tensor, cap: Cap, w: Tensor, c: Tensor | None, *, gradient: Tensor | None = None,
    z_loss: float = 0.0, lse: Tensor | None = None, label_smoothing: float = 0.0, classes: Tensor | None = None,
) -> None:  # fmt: skip
    """The gradient of sum_t w_t (z_loss lse_t^2 - logp_t) + c_t H_t, or of a part of the classes, goes to `gradient`,
    or replaces z [C, V]."""
    cross_entropy.launch(
        z, targets.contiguous(), None, w, Options(NO_TARGET, label_smoothing, z_loss, cap.softcap),
        scale=1 / cap.temperature, classes=classes, gradient=z if gradient is None else gradient,
        entropy_weight=None if c is None else c.contiguous(), given_lse=None if lse is None else lse.contiguous(),
    )  # fmt: skip


def scales(gradient: Tensor) -> bool:
    """Whether `scaled` takes it."""
    reason = _triton.why_not(gradient.device.type, _device.capability(gradient.device))
    return reason is None and gradient.dtype == torch.float32 and gradient.is_contiguous()


def scaled(gradient: Tensor, factor: Tensor | None, dtype: torch.dtype, in_place: bool) -> Tensor:
    """gradient float32 times a number (None: 1), rounded once to dtype: one read, one write."""
    is_same = in_place and dtype == torch.float32
    if dtype == torch.float32 and factor is None:
        return gradient
    out, count = gradient if is_same else torch.empty_like(gradient, dtype=dtype), gradient.numel()
    if count:
        with _triton.on(gradient.device):
            scaled_kernel[(triton.cdiv(count, SCALED_BLOCK),)](
                gradient, factor, out, count, IS_SAME=is_same, BLOCK=SCALED_BLOCK, num_warps=4, enable_fp_fusion=True
            )
    return out


def _narrowed(signature: _triton.Signature) -> _triton.Signature:
    """The launch whose gradient goes to bfloat16 factors."""
    return replace(signature, types={**signature.types, "G": "*bf16"})


def _scaled(name: str, to: str, *, is_same: bool = False, is_aligned: bool = True) -> _triton.Signature:
    types = {"G": "*fp32", "FACTOR": "*fp32", "OUT": f"*{to}", "count": "i32"}
    options = {"num_warps": 4, "enable_fp_fusion": True}
    return _triton.Signature(
        f"scaled {name}", scaled_kernel, types, {"IS_SAME": is_same, "BLOCK": SCALED_BLOCK},
        ("G", "OUT", "count") if is_aligned else (), options, has_wide_loads=is_aligned,
    )  # fmt: skip


# Of the kernel of cross_entropy, launched as only these functions launch it.
LOGPROBS = {"gives": "NLL ENTROPY LSE", "cap": SCALED.value}
SIGNATURES = (
    cross_entropy.signature("bf16, log-probabilities", "bf16", 128256, **LOGPROBS),
    cross_entropy.signature(
        "bf16, log-probabilities, any address", "bf16", 50257, aligned=False, has_wide_loads=False, **LOGPROBS
    ),
    cross_entropy.signature("bf16, their gradient", "bf16", 128256, takes="ENTROPY_WEIGHT", cap=SCALED.value),
    cross_entropy.signature("bf16, a part of the classes", "bf16", 128256, takes="GIVEN_LSE CLASSES"),
    _narrowed(cross_entropy.signature("fp32, gradient in bf16", "fp32", 128256)),
    _scaled("to bf16", "bf16"),
    _scaled("in place", "fp32", is_same=True),
    _scaled("to bf16, any address", "bf16", is_aligned=False),
)
