"""linear_cross_entropy on the CPU: torch.mm makes a chunk of logits, one compiled pass turns it into its gradient.

Reads  hidden [T, D], weight [V, D] float32, bfloat16 or float16 with any strides.
Writes nothing of its own: `chunks.run` holds the loop, the kernel of cross_entropy works in place on its chunk.
Idea   the chunk is as small as the streams of weight and dW allow; weights of rows are folded in by the kernel.
Sums   products in float32; in bfloat16 where the caller allows it and the machine has an instruction for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

import mrtkern._C as _C
from mrtkern.ops.linear_cross_entropy.problem import Problem, chunk_rows
from mrtkern.ops.linear_cross_entropy.rows import Entries, Options, Results

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
NOTHING = torch.iinfo(torch.int64).min  # the index to ignore: what is ignored does not come here


def why_not(problem: Problem) -> str | None:
    """None when the compiled kernel can run `problem`, otherwise the reason."""
    if problem.device != "cpu":
        return f"needs a CPU tensor, got one on {problem.device}"
    if torch.float64 in (problem.hidden, problem.weight):
        return "needs float32, bfloat16 or float16, got torch.float64"
    return None


def multiplies(problem: Problem) -> torch.dtype:
    """The type of products and logits. Without its instruction a bfloat16 product took 4.7 times a float32 one (Xeon).

    Never float16: the gradients of its logits would vanish.
    """
    has_bfloat16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if problem.product == torch.bfloat16 and has_bfloat16 else torch.float32


def chunk_size(problem: Problem) -> int:
    """Rows of a chunk."""
    return chunk_rows(problem, multiplies(problem).itemsize)


def forward(
    z: Tensor, given: Entries, options: Options, *, entropy_weight: Tensor | None = None,
    given_lse: Tensor | None = None, wants_gradient: bool = False, wants: tuple[str, ...] = (),
) -> Results:  # fmt: skip
    """Losses of rows of logits z [C, V], which become dL/dz where the gradient is wanted."""
    def address(value: Tensor | None) -> int:
        return 0 if value is None else value.data_ptr()

    sizes = {"nll": given.targets.shape[0], "entropy": z.shape[0], "argmax": z.shape[0], "lse": z.shape[0]}
    types = {"argmax": torch.int64, "lse": torch.float64}
    found = {name: torch.empty(sizes[name], dtype=types.get(name, torch.float32)) for name in wants}
    loss = _C.cross_entropy_rows(
        z.data_ptr(), z.data_ptr() if wants_gradient else 0, DTYPES[z.dtype], z.shape[0], z.shape[1], z.stride(0),
        z.stride(0), given.targets.data_ptr(), address(given.offsets), NOTHING, given.weight.data_ptr(), 0.0,
        address(entropy_weight), options.label_smoothing, options.z_loss, options.softcap, options.scale,
        [address(found.get(name)) for name in ("nll", "weighted", "entropy", "argmax", "lse")], address(given_lse),
        torch.get_num_threads(),
    )  # fmt: skip
    return Results(loss, **found)
