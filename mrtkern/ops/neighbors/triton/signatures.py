"""How the kernels of neighbors are launched, for the report on machine code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton.language as tl

from mrtkern import _triton
from mrtkern._triton import Launch, Signature
from mrtkern._triton import rows as lattice_rows
from mrtkern.ops.neighbors.triton import kernels, links
from mrtkern.ops.neighbors.triton.launch import BAND, EXACT, ON_DEVICE, WRITING, survivors_launch

FUSED = {"enable_fp_fusion": True}
NVIDIA = tuple(arch for arch in _triton.TARGETS if arch.startswith("sm_"))
LABELS = {"GROUP_X": "*i64", "GROUP_Y": "*i64"}
SELF = {"EXCLUDE_SELF": True, "HAS_GROUPS": False}
LABELLED = {"EXCLUDE_SELF": False, "HAS_GROUPS": True}


def _lattice(targets: tuple[str, ...], tiles: Mapping[str, Launch] = _triton.CONSUMED) -> tuple[dict[str, str], bool]:
    """Types of lattice rows X and Y, and whether they are descriptors. They are made here: always aligned, their
    columns a multiple of 64."""
    tile, is_described = tiles[targets[0]], targets[0] in _triton.DESCRIPTORS
    sizes = {"X": tile.BLOCK_M, "Y": tile.BLOCK_N}
    types = (f"tensordesc<fp16[{size}, {tile.BLOCK_D}]>" if is_described else "*fp16" for size in sizes.values())
    return dict(zip(sizes, types, strict=True)), is_described


def _maxima(name: str, targets: tuple[str, ...], exclusion: dict[str, bool]) -> Signature:
    rows, is_described = _lattice(targets)
    numbers = dict.fromkeys(("first", "M", "N", "columns", "num_strips", "tiles_m", "tiles_n"), "i32")
    constants = {"IS_DESCRIBED": is_described, "STRIP": 8, "BAND": BAND, **exclusion}
    aligned = ("MAXIMA", "columns", "num_strips", *(() if is_described else rows))
    return Signature(
        f"strip_maxima {name}, {' '.join(targets)}", kernels.strip_maxima,
        {**rows, "MAXIMA": "*fp32", **LABELS, **numbers}, constants, aligned,
        launch=_triton.CONSUMED.__getitem__, has_matrix=True, has_wide_loads=True, targets=targets,
    )  # fmt: skip


def _near(kernel: Any, targets: tuple[str, ...]) -> Signature:
    """Lattice rows again, and counts of any number of tiles."""
    tiles = WRITING if kernel is links.write_near else _triton.CONSUMED
    rows, is_described = _lattice(targets, tiles)
    pointers = {"LIMIT": "*fp32", "LABELS": "*i32", "COUNT": "*i32"}
    if kernel is links.write_near:
        pointers |= {"ENDS": "*i64", "COLUMNS": "*i32"}
    numbers = dict.fromkeys(("first", "end", "N", "columns", "tiles_m", "tiles_n"), "i32")
    constants = {"IS_DESCRIBED": is_described, "BAND": BAND}
    aligned = (*pointers, "columns", *(() if is_described else rows))
    return Signature(
        f"{kernel.fn.__name__}, {' '.join(targets)}", kernel, {**rows, **pointers, **numbers}, constants, aligned,
        launch=tiles.__getitem__, has_matrix=True, has_wide_loads=True, targets=targets,
    )  # fmt: skip


def _cosines(name: str, dtype: str, is_aligned: bool) -> Signature:
    pointers = {"X": dtype, "ROWS": "*i32", "COLUMNS": "*i32", "SQUARE": "*fp64", "COSINES": "*fp64"}
    numbers = dict.fromkeys(("num_pairs", "D", "stride_m"), "i32")
    constants = {"stride_d": 1, "BLOCK_C": ON_DEVICE.linked}
    aligned = (*pointers, "D", "stride_m") if is_aligned else ()
    return Signature(
        f"cosines {name}", links.cosines, pointers | numbers, constants, aligned,
        FUSED, lattice_rows.threads(64), has_wide_loads=is_aligned,
    )  # fmt: skip


def _scores(
    name: str,
    dtype: str,
    sum_: Any,
    is_listed: bool,
    is_aligned: bool,
    metric: str,
    targets: tuple[str, ...] = _triton.TARGETS,
) -> Signature:
    pointers = {
        "X": dtype, "Y": dtype, "ROWS": "*i64", "PLACES": "*i32", "STRIPS": "*i32", "COUNT": "*i32",
        "SQUARE_X": "*fp64", "SQUARE_Y": "*fp64", "KEYS": "*fp64", "IDS": "*i32", **LABELS,
    }  # fmt: skip
    numbers = dict.fromkeys(("rows", "N", "D", "width", "listed", "x_stride_m", "y_stride_n"), "i32")
    block_m, block_c = ON_DEVICE.listed if is_listed else ON_DEVICE.pairs
    constants = {
        "x_stride_d": 1, "y_stride_d": 1, "METRIC": metric, "SUM": sum_, "IS_LISTED": is_listed, **SELF, "STRIP": 8,
        "BLOCK_N": 128, "BLOCK_M": block_m, "BLOCK_C": block_c,
    }  # fmt: skip
    aligned = (*pointers, "D", "x_stride_m", "y_stride_n") if is_aligned else ()
    return Signature(
        f"scores {name}", kernels.scores, pointers | numbers, constants, aligned,
        FUSED, lattice_rows.threads(64 if is_listed else 32), has_wide_loads=is_aligned, targets=targets,
    )  # fmt: skip


def _survivors(name: str, width: int, is_held: bool, is_aligned: bool) -> Signature:
    pointers = {"VALUES": "*fp32", "LIMIT": "*i32", "MARGIN": "*fp32", "PLACES": "*i32", "COUNT": "*i32"}
    numbers = dict.fromkeys(("first", "rows", "width", "k", "capacity"), "i32")
    block_m, _, listed = ON_DEVICE.survivors
    constants = {
        "HAS_LIMIT": not is_aligned, "IS_HELD": is_held, "BLOCK_M": block_m, "BLOCK_W": width, "BLOCK_P": listed
    }  # fmt: skip
    aligned = (*pointers, "width", "capacity") if is_aligned else ()
    return Signature(
        f"survivors {name}", kernels.survivors, pointers | numbers, constants, aligned,
        EXACT, survivors_launch(width, is_held), has_wide_loads=is_aligned,
    )  # fmt: skip


def _members(name: str, exclusion: dict[str, bool]) -> Signature:
    pointers = {"X": "*fp16", "Y": "*fp16", "STRIPS": "*i32", "COUNT": "*i32", "PRODUCTS": "*fp32", **LABELS}
    numbers = dict.fromkeys(("first", "rows", "N", "columns", "capacity"), "i32")
    block_m, block_c = ON_DEVICE.members
    constants = {
        "STRIP": 8, "BLOCK_N": 128, "BLOCK_M": block_m, "BLOCK_C": block_c, "BLOCK_D": lattice_rows.STEP, **exclusion,
    }  # fmt: skip
    aligned = (*pointers, "columns", "capacity")
    return Signature(
        f"members {name}", kernels.members, pointers | numbers, constants, aligned, EXACT, lattice_rows.threads(128),
        has_wide_loads=True,
    )  # fmt: skip


def _ranks() -> Signature:
    pointers = {"KEYS": "*fp64", "IDS": "*i32", "COUNT": "*i32", "BEST": "*fp64", "BEST_IDS": "*i64"}
    constants = dict(zip(("BLOCK_M", "BLOCK_C", "BLOCK_J"), ON_DEVICE.ranks, strict=True))
    numbers = dict.fromkeys(("rows", "width", "k"), "i32")
    aligned, threads = (*pointers, "width"), lattice_rows.threads(128)
    return Signature("ranks", kernels.ranks, pointers | numbers, constants, aligned, EXACT, threads)


SIGNATURES = (
    *lattice_rows.SIGNATURES,
    *(_maxima("of itself", targets, SELF) for targets in _triton.CONSUMERS),
    *(_maxima("labelled", targets, LABELLED) for targets in _triton.CONSUMERS),
    _survivors("held", 8192, True, True),
    _survivors("in blocks, unaligned", 8192, False, False),
    _members("labelled", LABELLED),
    _scores("float32 in float64", "*fp32", tl.float64, True, True, "cosine"),
    _scores("bfloat16 in float64, unaligned", "*bf16", tl.float64, True, False, "shifted_cosine"),
    # A row has 16 features to load at once: 16 bytes for each of 32 threads, but not of 64.
    _scores("all pairs, float32 in float64", "*fp32", tl.float64, False, True, "clamped_cosine", NVIDIA),
    _scores("all pairs, float32 in float64, unaligned", "*fp32", tl.float64, False, False, "cosine", ("gfx942",)),
    _scores("int16", "*i16", tl.int32, True, True, "cosine"),
    _ranks(),
    *(_near(kernel, targets) for kernel in (links.count_near, links.write_near) for targets in _triton.CONSUMERS),
    _cosines("float32", "*fp32", True),
    _cosines("bfloat16, unaligned", "*bf16", False),
)
