"""Kernels with planted faults of machine code, and one without: what bench/static.py must tell apart."""

from __future__ import annotations

import triton
import triton.language as tl

from mrtkern._triton import Launch, Signature, product


@triton.jit
def scores(
    X, Y, S, M, N, D, stride_x, stride_y,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    m, n = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    s = product(X, Y, m, n, M, N, D, stride_x, stride_y, BLOCK_M, BLOCK_N, BLOCK_D)
    rows, columns = m + tl.arange(0, BLOCK_M), n + tl.arange(0, BLOCK_N)
    tl.store(S + rows[:, None] * N + columns[None, :], s, mask=(rows < M)[:, None] & (columns < N)[None, :])


TYPES = {
    "X": "*bf16", "Y": "*bf16", "S": "*fp32",
    "M": "i32", "N": "i32", "D": "i32", "stride_x": "i32", "stride_y": "i32",
}  # fmt: skip
ALIGNED = ("X", "Y", "S", "N", "D", "stride_x", "stride_y")
RULES = {"has_matrix": True, "has_wide_loads": True, "targets": ("sm_80",)}


def _launch(BLOCK: int) -> Launch:
    return Launch(BLOCK, BLOCK, 32, 4, 2)


SIGNATURES = (
    Signature("good", scores, TYPES, {}, ALIGNED, launch=lambda arch: _launch(64), **RULES),
    Signature("a tile that spills", scores, TYPES, {}, ALIGNED, launch=lambda arch: _launch(256), **RULES),
    Signature("loads of two bytes", scores, TYPES, {}, launch=lambda arch: _launch(64), **RULES),
    Signature(
        "no tensor cores", scores, {**TYPES, "X": "*fp32", "Y": "*fp32"}, {}, ALIGNED,
        launch=lambda arch: _launch(64), **RULES,
    ),
)  # fmt: skip
