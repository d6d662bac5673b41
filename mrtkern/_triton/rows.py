"""Rows for Triton kernels: their squared lengths, and rows on a lattice, which several operations multiply.

One program handles BLOCK_M rows from their first feature to their last.

    square[m] = sum over d of x[m, d]**2, in the order of `mrtkern.lattice.squared_norms`
    q[m, d]   = x[m, d] * factor[m], rounded to float16's lattice or to int16; x[m, d] / factor[m], rounded to float32

Reads  x [M, D] of any strides, once each.   Writes square [M] float64; q [M, columns], columns padded with zeros to a
       multiple of 64, so that rows are aligned; error [M] float64, how far rounding moved the row.
Idea   plain IEEE float64 steps, one rounding each: the very integers of `mrtkern.lattice`.
Sums   float64 in the defined order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from mrtkern import lattice
from mrtkern._triton.launches import Launch
from mrtkern._triton.signature import Signature
from mrtkern._triton.targets import arch, num_warps

LANES = tl.constexpr(lattice.LANES)
TO_INTEGER = tl.constexpr(1.5 * 2**52)  # added and subtracted again: a float64 below 2**51 rounded half to even
UP = 1 + 2.0**-20  # more than the roundings of the float64 sums behind an error
REGISTERS = 65536  # of an NVIDIA multiprocessor
STEP = 64  # features that are rounded, and at most multiplied, at once: columns are padded to a multiple of it


@triton.jit
def halves(lanes, ROWS: tl.constexpr):
    """Sum of 16 lanes [ROWS, 16]: by halves 8, 4, 2, 1."""
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, LANES // 2)), axis=1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, LANES // 4)), axis=1)
    lanes = tl.sum(tl.reshape(lanes, (ROWS, 2, LANES // 8)), axis=1)
    return tl.sum(tl.reshape(lanes, (ROWS, 2)), axis=1)


@triton.jit
def load_as(pointers, mask, TYPE: tl.constexpr):
    """Features as TYPE; bfloat16 becomes float32 before anything else."""
    x = tl.load(pointers, mask=mask, other=0.0)
    if x.dtype == tl.bfloat16:
        x = x.to(tl.float32)
    return x.to(TYPE)


@triton.jit
def row_squares(X, SQUARE, M, D, stride_m, stride_d, BLOCK_M: tl.constexpr):
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, LANES)
    row = X + m.to(tl.int64)[:, None] * stride_m
    sums = tl.zeros((BLOCK_M, LANES), tl.float64)
    for first in tl.range(0, D, LANES, loop_unroll_factor=4):
        d = first + lane
        mask = (m < M)[:, None] & (d < D)[None, :]
        x = load_as(row + d.to(tl.int64)[None, :] * stride_d, mask, tl.float64)
        sums += x * x
    tl.store(SQUARE + m, halves(sums, BLOCK_M), mask=m < M)


@triton.jit
def round_rows(
    X, FACTOR, Q, ERROR, M, D, stride_m, stride_d, columns,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    factor = tl.load(FACTOR + m, mask=m < M, other=1.0)[:, None]
    row, out = X + m.to(tl.int64)[:, None] * stride_m, Q + m.to(tl.int64)[:, None] * columns
    moved = tl.zeros((BLOCK_M,), tl.float64)
    for first in range(0, columns, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        mask = (m < M)[:, None] & (d < D)[None, :]
        x = load_as(row + d.to(tl.int64)[None, :] * stride_d, mask, tl.float64)
        if Q.dtype.element_ty == tl.float32:
            q = x / factor
        elif Q.dtype.element_ty == tl.int16:
            q = x * factor + TO_INTEGER - TO_INTEGER
        else:
            exact = x * factor
            q = exact + TO_INTEGER - TO_INTEGER
            even = 2.0 * (exact * 0.5 + TO_INTEGER - TO_INTEGER)
            q = tl.where(tl.abs(exact) > 2048.0, even, q)  # float16 holds even integers there
            moved += tl.sum((q - exact) * (q - exact), axis=1)
        tl.store(out + d[None, :], q.to(tl.float32).to(Q.dtype.element_ty), mask=(m < M)[:, None])
    if Q.dtype.element_ty == tl.float16:
        tl.store(ERROR + m, tl.sqrt(moved), mask=m < M)


def squares(x: Tensor) -> Tensor:
    """|x|**2 of each row of x [M, D], float64 [M]."""
    M, D = x.shape
    result = torch.empty(M, dtype=torch.float64, device=x.device)
    if M:
        block = _block(x.device, 32)
        is_exact = x.dtype != torch.float64  # every product is: fused or not, the same bits
        row_squares[(triton.cdiv(M, block),)](
            x, result, M, D, *x.stride(), BLOCK_M=block,
            num_warps=num_warps(arch(x.device), 64), enable_fp_fusion=is_exact,
        )  # fmt: skip
    return result


def on_lattice(x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Rows r x / length as float16, and how far rounding moved each at most, float64 [M].

    With their own lengths these are the integers of `lattice.quantise`.
    """
    return _rounded(x, lattice.quotients(lattice.radius(x.shape[1]), length), torch.float16)


def on_fine_lattice(x: Tensor, length: Tensor) -> Tensor:
    """Rows of `lattice.quantise_fine`, int16."""
    return _rounded(x, lattice.quotients(lattice.fine_radius(x.shape[1]), length), torch.int16)[0]


def of_length_one(x: Tensor, length: Tensor) -> Tensor:
    """Rows x / length, float32; a row of length 0 stays as it is."""
    return _rounded(x, torch.where(length > 0, length, 1.0), torch.float32)[0]


def columns(D: int) -> int:
    """Columns of rounded rows of D features."""
    return int(triton.cdiv(D, STEP)) * STEP


def _block(device: torch.device, rows: int) -> int:
    """Rows of one program: few for a GPU, so that there are many programs; many for the interpreter."""
    return 512 if device.type == "cpu" else rows


def _rounded(x: Tensor, factor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    M, D = x.shape
    q = torch.empty((M, columns(D)), dtype=dtype, device=x.device)
    error = torch.empty(M, dtype=torch.float64, device=x.device)
    if M:
        block = _block(x.device, 8)
        round_rows[(triton.cdiv(M, block),)](
            x, factor, q, error, M, D, *x.stride(), q.shape[1], BLOCK_M=block, BLOCK_D=STEP,
            num_warps=num_warps(arch(x.device), 128), enable_fp_fusion=False,
        )  # fmt: skip
    return q, error * UP + (UP - 1)


def threads(number: int, programs: int | None = None) -> Callable[[str], Launch]:
    """The launch of a program of so many threads; the sizes of its blocks are its own. programs: how many of them the
    registers of one of NVIDIA's multiprocessors must hold."""

    def launch(arch: str) -> Launch:
        most = None if programs is None or arch.startswith("gfx") else REGISTERS // (number * programs)
        return Launch(0, 0, 0, num_warps(arch, number), 3, most)

    return launch


def _squares(name: str, dtype: str, is_aligned: bool) -> Signature:
    types = {"X": f"*{dtype}", "SQUARE": "*fp64", **dict.fromkeys(("M", "D", "stride_m"), "i32")}
    aligned = ("X", "SQUARE", "D", "stride_m") if is_aligned else ()
    options, constants = {"enable_fp_fusion": True}, {"stride_d": 1, "BLOCK_M": 32}
    return Signature(name, row_squares, types, constants, aligned, options, threads(64), has_wide_loads=is_aligned)


def _round(name: str, dtype: str, to: str, is_aligned: bool) -> Signature:
    types = {"X": f"*{dtype}", "FACTOR": "*fp64", "Q": f"*{to}", "ERROR": "*fp64"}
    types |= dict.fromkeys(("M", "D", "stride_m", "columns"), "i32")
    aligned = ("Q", "columns", *(("X", "FACTOR", "ERROR", "D", "stride_m") if is_aligned else ()))
    options, constants = {"enable_fp_fusion": False}, {"stride_d": 1, "BLOCK_M": 8, "BLOCK_D": STEP}
    return Signature(name, round_rows, types, constants, aligned, options, threads(128), has_wide_loads=is_aligned)


SIGNATURES = (
    _squares("row_squares", "fp32", True),
    _squares("row_squares unaligned", "bf16", False),
    _round("round_rows to the lattice", "fp32", "fp16", True),
    _round("round_rows to the lattice, unaligned", "bf16", "fp16", False),
    _round("round_rows to length 1, unaligned", "bf16", "fp32", False),
)
