"""cross_entropy for Triton: limits, tiles and launches of the kernels in `kernels`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mrtkern import _device, _triton
from mrtkern.ops.cross_entropy.problem import Options, Problem, Rows
from mrtkern.ops.cross_entropy.triton.kernels import CAPPED, PLAIN, SCALED, rows_kernel, scale_kernel, total_kernel

MOST_COLUMNS = 2**31 - 2**17  # columns are counted in int32, the last tile included

# Columns that a thread holds at a time, in as many registers of float32: 1,024 threads have 64 registers each.
HELD, HELD_BESIDE_OTHERS = 32, 16
REGISTERS = 65536  # of an NVIDIA multiprocessor
BLOCK_E = 32  # targets of one row at a time
LIMITS = f"{_device.NARROW_NAMES}, up to {MOST_COLUMNS:,} columns"


def why_not(problem: Problem) -> str | None:
    """None when the kernels can run `problem`, otherwise the reason."""
    return (
        _triton.why_not(problem.device, problem.capability)
        or _device.not_narrow(problem.dtype)
        or too_many_columns(problem.V)
    )


def too_many_columns(V: int) -> str | None:
    """None when the kernels can count V columns, otherwise the reason."""
    return f"needs at most {MOST_COLUMNS} columns, got {V}" if V > MOST_COLUMNS else None


def memory(problem: Problem) -> int:
    """Bytes beyond inputs and results: a number per row, one per target."""
    return 4 * problem.T + 8 * (problem.num_targets or problem.T)


@dataclass(frozen=True)
class Tile:
    """How a program reads a row: REPEAT times `threads` vectors of VECTOR columns at a time."""

    is_row: bool  # one tile is the row
    repeat: int
    threads: int
    vector: int
    options: Mapping[str, Any]  # of the compiler

    @property
    def blocks(self) -> dict[str, Any]:
        """Constants of the kernel."""
        return {"IS_ONE_TILE": self.is_row, "REPEAT": self.repeat, "THREADS": self.threads, "VECTOR": self.vector}


def tile_of(V: int, itemsize: int, arch: str, is_plain: bool) -> Tile:
    """The tile of rows of V columns; every thread loads 16 bytes at a time.

    A plain gradient (one target, no cap, no details, aligned rows) needs few registers beside the row, so 1,024
    threads hold 32,768 columns. One row on each multiprocessor also keeps in the L2 cache what is read twice: 132 rows
    of 128k bfloat16 take 34 MB.
    """
    warp = 64 if arch.startswith("gfx") else 32
    vector, held, most = 16 // itemsize, *((HELD, 1024) if is_plain else (HELD_BESIDE_OTHERS, 512))
    columns = triton.next_power_of_2(V)
    threads = min(max(columns // held, warp), most)
    each = max(columns // threads, vector)
    options = {"num_warps": threads // warp, "enable_fp_fusion": True}
    if warp == 32:  # left alone, ptxas 13 spills five of more than 64 registers although 512 threads have 128
        options["maxnreg"] = REGISTERS // most
    return Tile(each <= held, min(each, held) // vector, threads, vector, options)


def is_aligned(logits: Tensor) -> bool:
    """Whether rows [T, V] are loaded 16 bytes at a time: Triton must see multiples of 16 in address, stride and V."""
    return not (logits.data_ptr() % 16 or logits.stride(0) % 16 or logits.shape[1] % 16)


def launch(
    logits: Tensor, targets: Tensor, target_offsets: Tensor | None, weight: Tensor, options: Options, *,
    scale: float = 1.0, gradient: Tensor | None = None, entropy_weight: Tensor | None = None,
    given_lse: Tensor | None = None, classes: Tensor | None = None, nll: Tensor | None = None,
    weighted: Tensor | None = None, entropy: Tensor | None = None, best: Tensor | None = None,
    lse: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The losses of rows [T], float32. What is given as a tensor from `gradient` on is read, from `nll` on written.

    weight [targets] float32, of any stride. u = scale cap(z). With given_lse [T] float64, that of a row of which the
    logits are a part, negative targets are among the other classes; all together are `classes`, 0-d float64.
    """
    T, V = logits.shape
    losses = torch.empty(T, dtype=torch.float32, device=logits.device)
    if not T:
        return losses
    ignore_index, smoothing, z_loss, softcap = options
    cap = CAPPED if softcap else PLAIN if scale == 1.0 else SCALED
    slope = None if gradient is None else torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
    has_more = cap is CAPPED or any(value is not None for value in (entropy, entropy_weight, target_offsets))
    is_plain = not has_more and is_aligned(logits) and (gradient is None or is_aligned(gradient))
    tile = tile_of(V, logits.element_size(), _triton.arch(logits.device), is_plain)
    constants = {"CAP": cap.value, "HAS_SMOOTHING": smoothing != 0, "BLOCK_E": 1 if target_offsets is None else BLOCK_E}
    with _triton.on(logits.device):
        rows_kernel[(T,)](
            logits, gradient, targets, target_offsets, weight, entropy_weight, given_lse, losses, nll, weighted,
            entropy, best, lse, slope, classes, V, targets.shape[0], logits.stride(0),
            0 if gradient is None else gradient.stride(0), weight.stride(0), ignore_index, smoothing, z_loss,
            1 / softcap if softcap else 0.0, scale * (softcap or 1.0), **constants, **tile.blocks, **tile.options,
        )  # fmt: skip
    return losses


def total(losses: Tensor) -> Tensor:
    """Their sum, 0-d float32."""
    found = torch.empty((), dtype=torch.float32, device=losses.device)
    with _triton.on(losses.device):
        total_kernel[(1,)](losses, found, losses.shape[0], BLOCK_T=1024, num_warps=8, enable_fp_fusion=True)
    return found


def forward(
    logits: Tensor, targets: Tensor, token_weight: Tensor | None, target_offsets: Tensor | None, options: Options,
    gradient: Tensor | None, wants_details: bool,
) -> Rows:  # fmt: skip
    """The loss and, where wanted, details; dL/dz goes to `gradient`, which may be the logits."""
    if (logits.stride(1) != 1 and logits.shape[1] > 1) or logits.is_neg():
        logits = logits.resolve_neg().contiguous()
    targets, target_offsets = targets.contiguous(), None if target_offsets is None else target_offsets.contiguous()
    if token_weight is None:
        count = (targets != options.ignore_index).sum().clamp(min=1)
        weight = count.float().reciprocal().expand(targets.shape)
    else:
        weight = token_weight.float()
    T, E = (logits.shape[0], targets.shape[0]) if wants_details else (0, 0)
    nll, weighted = logits.new_zeros((2, E), dtype=torch.float32)  # entries that no row has stay 0
    details = (nll, weighted, logits.new_empty(T, dtype=torch.float32), targets.new_empty(T))
    names = ("nll", "weighted", "entropy", "best") if wants_details else ()
    losses = launch(
        logits, targets, target_offsets, weight, options, gradient=gradient,
        **dict(zip(names, details, strict=False)),
    )  # fmt: skip
    return Rows(total(losses), *details)


def scale(gradient: Tensor, factor: Tensor) -> None:
    """gradient [T, V] *= factor, 0-d: nothing is read when that is 1."""
    T, V = gradient.shape
    if T:
        with _triton.on(gradient.device):
            scale_kernel[(T,)](
                gradient, factor, V, gradient.stride(0), BLOCK_V=4096, num_warps=8, enable_fp_fusion=True
            )


# What the report on machine code compiles


def signature(
    name: str, dtype: str, V: int, *, gives: str = "G SLOPE", takes: str = "", cap: int = PLAIN.value,
    aligned: bool = True, has_wide_loads: bool = True, targets: tuple[str, ...] = _triton.TARGETS,
) -> _triton.Signature:  # fmt: skip
    """A launch of rows_kernel with the outputs `gives` and the optional inputs `takes`."""
    pointers = {
        "Z": dtype, "G": dtype, "TARGETS": "i64", "OFFSETS": "i64", "WEIGHT": "fp32", "ENTROPY_WEIGHT": "fp32",
        "GIVEN_LSE": "fp64", "LOSS": "fp32", "NLL": "fp32", "WEIGHTED": "fp32", "ENTROPY": "fp32", "BEST": "i64",
        "LSE": "fp64", "SLOPE": "fp32", "CLASSES": "fp64",
    }  # fmt: skip
    given = {"Z", "TARGETS", "WEIGHT", "LOSS", *gives.split(), *takes.split()}
    types = {name: f"*{kind}" for name, kind in pointers.items() if name in given}
    sizes = ("V", "z_stride", "g_stride", "num_targets", "weight_stride", "ignore_index")
    types |= dict.fromkeys(sizes, "i32") | dict.fromkeys(("smoothing", "z_loss", "cap_in", "cap_out"), "fp32")
    has_offsets = "OFFSETS" in given
    constants = dict.fromkeys(set(pointers) - given) | {
        "CAP": cap, "HAS_SMOOTHING": has_offsets or "CLASSES" in given, "BLOCK_E": BLOCK_E if has_offsets else 1
    }  # fmt: skip
    is_plain = aligned and cap != CAPPED.value and not given & {"ENTROPY", "ENTROPY_WEIGHT", "OFFSETS"}

    def launch(arch: str) -> Any:
        return tile_of(V, 4 if dtype == "fp32" else 2, arch, is_plain)

    multiples = tuple(name for name in (*types,) if name in pointers or name in sizes[:3]) if aligned else ()
    return _triton.Signature(
        name, rows_kernel, types, constants, multiples, launch=launch, has_wide_loads=has_wide_loads, targets=targets
    )


def _scale(dtype: str, aligned: bool) -> _triton.Signature:
    types = {"G": f"*{dtype}", "FACTOR": "*fp32", "V": "i32", "g_stride": "i32"}
    name = f"scale {dtype}" + ("" if aligned else ", any address")
    multiples = ("G", "V", "g_stride") if aligned else ()
    options = {"num_warps": 8, "enable_fp_fusion": True}
    return _triton.Signature(
        name, scale_kernel, types, {"BLOCK_V": 4096}, multiples, options=options, has_wide_loads=aligned
    )


# Without a loop over the row, and with one over its targets, the loads of targets and weights are counted, too. With
# every option gfx942 keeps two scalars in a vector register, which the report calls spills.
DETAILS = "G SLOPE NLL WEIGHTED ENTROPY BEST"
SIGNATURES = (
    signature("bf16, 32,000 in registers", "bf16", 32000, has_wide_loads=False),
    signature("bf16, 128,256 read twice", "bf16", 128256),
    signature("fp32, 32,000 in registers", "fp32", 32000, has_wide_loads=False),
    signature("fp32, 128,256 read twice", "fp32", 128256),
    signature("bf16, 50,257 at any address", "bf16", 50257, aligned=False, has_wide_loads=False),
    signature("fp32, 50,257 at any address", "fp32", 50257, aligned=False, has_wide_loads=False),
    signature(
        "bf16, every option", "bf16", 128256, gives=DETAILS, takes="OFFSETS", cap=CAPPED.value, has_wide_loads=False,
        targets=_triton.TARGETS[:-1],
    ),
    *(_scale(dtype, aligned) for dtype in ("bf16", "fp32") for aligned in (True, False)),
    _triton.Signature(
        "total", total_kernel, {"LOSS": "*fp32", "TOTAL": "*fp32", "T": "i32"}, {"BLOCK_T": 1024},
        options={"num_warps": 8, "enable_fp_fusion": True},
    ),
)  # fmt: skip
