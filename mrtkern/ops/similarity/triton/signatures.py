"""What the offline report builds of similarity's kernels: aligned and unaligned inputs of each width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mrtkern import _triton
from mrtkern._triton import Signature
from mrtkern.ops.similarity.triton import kernels

OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
ROWS = {"BLOCK_T": 8, "BLOCK_D": 128}
GROUPS = {  # (rows of a group at most, bytes of a feature) -> launch of one program
    (16, 2): {"BLOCK_D": 64, "num_warps": 1, "num_stages": 3, "enable_fp_fusion": True},
    (32, 2): {"BLOCK_D": 64, "num_warps": 4, "num_stages": 3, "enable_fp_fusion": True},
    (16, 4): {"BLOCK_D": 32, "num_warps": 1, "num_stages": 3, "enable_fp_fusion": True},
    (32, 4): {"BLOCK_D": 32, "num_warps": 4, "num_stages": 3, "enable_fp_fusion": True},
}
PULL = {2: (64, 64, 64), 4: (64, 32, 32)}  # BLOCK_M, BLOCK_N, BLOCK_D of pull_rows by bytes of a feature
WIDTHS = {2: torch.bfloat16, 4: torch.float32}
LONG, INT, REAL = "*i64", "i32", "*fp32"


def _rows(name: str) -> Iterator[Signature]:
    """On gfx942 a wave of 64 leaves each thread 4 numbers of a block, fewer than 16 bytes of 16-bit rows."""
    sizes = dict.fromkeys(("T", "M", "D", "E", "stride_b", "stride_m", "stride_at"), INT)
    types = {"X": f"*{name}", "A": f"*{name}", "INVERSE": REAL, "EXPONENT": "*i32", **sizes}
    constants: dict[str, Any] = {"stride_d": 1, "stride_ad": 1, "IS_COSINE": True, **ROWS}
    back = {"G": REAL, "DX": f"*{name}", "A": f"*{name}", "INVERSE": REAL, "EXPONENT": "*i32"}
    back |= dict.fromkeys(("T", "D", "E"), INT)
    for is_wide, targets in ((True, _triton.TARGETS[:-1]), (False, _triton.TARGETS[-1:])):
        yield Signature(
            f"scale_rows {name}", kernels.scale_rows, types, constants,
            ("X", "A", "D", "E", "stride_b", "stride_m", "stride_at"), OPTIONS, has_wide_loads=is_wide, targets=targets,
        )  # fmt: skip
        yield Signature(
            f"project_rows {name}", kernels.project_rows, back, {"IS_COSINE": True, **ROWS},
            ("G", "A", "DX", "D", "E"), OPTIONS, has_wide_loads=is_wide, targets=targets,
        )  # fmt: skip
    yield Signature(f"scale_rows {name}, unaligned", kernels.scale_rows, types, constants, ("A", "E"), OPTIONS)


def _tiles(name: str, dtype: torch.dtype) -> Iterator[Signature]:
    """Rows were copied: they are always aligned, and described where the target has descriptors."""
    sizes = dict.fromkeys(("B", "M", "N", "D", "T_X", "T_Y", "stride_x", "stride_y", "tiles"), INT)
    pointers = {"X": f"*{name}", "Y": f"*{name}", "INVERSE_X": REAL, "INVERSE_Y": REAL, "S": f"*{name}"}
    types = {**pointers, **sizes, "gamma": "fp32"}
    tables = dict.fromkeys(("OFFSETS", "TILES", "CELLS"))
    constants: dict[str, Any] = {"METRIC": "cosine", "HAS_GRAD": False, "GRAD": None, "GROUP": 8}
    for arch in _triton.TARGETS:
        is_described = arch in _triton.DESCRIPTORS and dtype.itemsize == 2
        for size, launch in (("", _triton.LARGE[dtype.itemsize][arch]), (" packed", _triton.SMALL[dtype.itemsize])):
            is_packed = size != ""
            given = {**types, **(dict.fromkeys(tables, LONG) if is_packed else {})}
            if is_described:
                given["X"] = f"tensordesc<{name}[{launch.BLOCK_M}, {launch.BLOCK_D}]>"
                given["Y"] = f"tensordesc<{name}[{launch.BLOCK_N}, {launch.BLOCK_D}]>"
            rows = () if is_described else ("X", "Y", "stride_x", "stride_y")
            chosen = {
                **constants,
                **({} if is_packed else tables),
                "IS_PACKED": is_packed,
                "IS_DESCRIBED": is_described,
            }
            yield Signature(
                f"score_tiles {name}{size}", kernels.score_tiles, given, {**chosen, **launch.blocks},
                ("S", "N", "D", *rows), launch.options, has_matrix=dtype.itemsize == 2, targets=(arch,),
                has_wide_loads=(arch, size, dtype) != ("gfx942", " packed", torch.float32),  # its loads are 8 bytes
            )  # fmt: skip


def _groups(name: str, width: int) -> Iterator[Signature]:
    types = {"X": f"*{name}", "S": f"*{name}", "OFFSETS": LONG, "CELLS": LONG, "B": INT, "D": INT, "stride_m": INT}
    for block, launch in ((block, launch) for (block, size), launch in GROUPS.items() if size == width):
        constants = {"METRIC": "cosine", "BLOCK": block, "stride_d": 1, "BLOCK_D": launch["BLOCK_D"]}
        options = {name: value for name, value in launch.items() if name != "BLOCK_D"}
        common: dict[str, Any] = {"options": options, "has_matrix": width == 2}
        yield Signature(
            f"score_groups {name} of {block}", kernels.score_groups, types, constants, ("X", "S", "D", "stride_m"),
            has_wide_loads=True, **common,
        )  # fmt: skip
    yield Signature(f"score_groups {name} of {block}, unaligned", kernels.score_groups, types, constants, (), **common)


def _pull(name: str, width: int) -> Iterator[Signature]:
    sizes = dict.fromkeys(("B", "M", "N", "E", "T", "stride_wm", "stride_xt", "stride_yt"), INT)
    pointers = {"W": f"*{name}", "X": f"*{name}", "Y": f"*{name}", "INVERSE_Y": REAL, "G": REAL}
    none: dict[str, Any] = dict.fromkeys(("OFFSETS", "TILES", "CELLS"))
    constants = {
        **none, "stride_wn": 1, "stride_xd": 1, "stride_yd": 1, "IS_PACKED": False, "IS_SELF": False, "IS_RBF": False,
        **dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_D"), PULL[width], strict=True)),
    }  # fmt: skip
    aligned = ("W", "X", "Y", "G", "N", "E", "stride_wm", "stride_xt", "stride_yt")
    for arch in _triton.TARGETS:
        has_tf32 = width == 2 and arch != "gfx942"
        # On sm_90 tf32 weights are loaded in the layout of the matrix instruction, on gfx942 16-bit rows by 8 bytes.
        has_wide_loads = width == 4 or arch not in ("sm_90", "gfx942")
        yield Signature(
            f"pull_rows {name}", kernels.pull_rows,
            {**pointers, **sizes, "factor": "fp32"}, {**constants, "HAS_TF32": has_tf32}, aligned, OPTIONS,
            has_matrix=has_tf32, has_wide_loads=has_wide_loads, targets=(arch,),
        )  # fmt: skip


SIGNATURES = tuple(
    signature
    for width, dtype in WIDTHS.items()
    for found in (
        _rows(_triton.NAMES[dtype]), _tiles(_triton.NAMES[dtype], dtype), _groups(_triton.NAMES[dtype], width),
        _pull(_triton.NAMES[dtype], width),
    )
    for signature in found
)  # fmt: skip
