"""How similarity's kernels are launched, and what the offline report builds of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from mrtkern import _triton
from mrtkern._triton import Launch, Signature
from mrtkern._triton import rows as lattice_rows
from mrtkern.ops.similarity.triton import kernels, small, split

FUSED = {"enable_fp_fusion": True}
ROWS = {"BLOCK_T": 8, "BLOCK_D": 128}
row_launch = lattice_rows.threads(128)  # 8 numbers of a block of rows to a thread: 16 bytes of 16-bit types
GROUPS = {  # (rows of a group at most, bytes of a feature) -> features of a step, threads, steps in flight
    (16, 2): (64, 32, 3),
    (32, 2): (64, 64, 3),
    (16, 4): (16, 32, 5),
    (32, 4): (16, 128, 5),
}
PULL = {2: (64, 64, 64), 4: (64, 32, 32)}  # BLOCK_M, BLOCK_N, BLOCK_D of pull_rows by bytes of a feature
INT, REAL = "i32", "*fp32"
TABLES = dict.fromkeys(("OFFSETS", "TILES", "CELLS"), "*i64")
NONE: dict[str, Any] = dict.fromkeys(TABLES)  # where there are no groups
NVIDIA, AMD = _triton.TARGETS[:-1], _triton.TARGETS[-1:]


def group_launch(block: int, itemsize: int, has_y: bool, is_pull: bool) -> Callable[[str], Launch]:
    """One program of small groups. Rows of two matrices, or of gradients, take the registers of more threads."""
    step, threads, stages = GROUPS[block, itemsize]
    threads *= 2 if (has_y or is_pull) and (block, itemsize) == (32, 2) else 1

    def launch(arch: str) -> Launch:
        warps, in_flight, most = max(block // 16, _triton.num_warps(arch, threads)), stages, None
        if block == 32 and arch == "sm_120":
            in_flight = 3  # with five ptxas stops at 64 registers, and spills
        if is_pull and arch in ("sm_100", "sm_120"):
            most = 255  # left alone it stops at 128 or 168, and spills
        return Launch(0, 0, step, warps, in_flight, most)

    return launch


def has_parts(dtype: torch.dtype, arch: str) -> bool:
    """Whether matrix units hold these features as they are, so that gradients are products of parts of the weights."""
    return dtype == torch.bfloat16 or (dtype == torch.float16 and not arch.startswith("gfx"))


def pull_launch(dtype: torch.dtype, is_self: bool) -> Callable[[str], Launch]:
    """Weights that are read twice, or cut into parts, take the registers of twice as many threads."""
    threads = 128 if dtype == torch.float32 and not is_self else 256
    return lambda arch: Launch(*PULL[dtype.itemsize], _triton.num_warps(arch, threads), 2 if arch in AMD else 3)


def _scaled(name: str, label: str, aligned: tuple[str, ...], is_wide: bool, by_feature: bool = False) -> Signature:
    """by_feature: a copy for rbf, without lengths."""
    sizes = dict.fromkeys(("T", "M", "D", "E", "stride_b", "stride_m", "stride_at", "stride_ad"), INT)
    types = {"X": f"*{name}", "A": f"*{name}", "INVERSE": REAL, "EXPONENT": "*i32", **sizes}
    beside = "stride_at" if by_feature else "stride_ad"
    constants = {"stride_d": 1, beside: 1, "IS_COSINE": not by_feature, **ROWS}
    types.pop(beside)
    return Signature(
        f"scale_rows {name}{label}", kernels.scale_rows, types, constants, (*aligned, "A", "E"), FUSED, row_launch,
        has_wide_loads=is_wide,
    )  # fmt: skip


def _projected(
    name: str, label: str, aligned: tuple[str, ...], is_cosine: bool, targets: tuple[str, ...] = _triton.TARGETS
) -> Signature:
    """Rows are read from a copy, whose features are padded, so that they are read 16 bytes at a time whatever D is.

    On gfx942 what is read and written in one loop is laid out for the unaligned result.
    """
    types = {"G": REAL, "DX": f"*{name}", "A": f"*{name}", "INVERSE": REAL, "EXPONENT": "*i32"}
    types |= dict.fromkeys(("T", "D", "E"), INT)
    return Signature(
        f"project_rows {name}{label}", kernels.project_rows, types, {"IS_COSINE": is_cosine, **ROWS},
        ("G", "A", "E", *aligned), FUSED, row_launch, has_wide_loads=is_cosine or targets != AMD, targets=targets,
    )  # fmt: skip


def _rows() -> Iterator[Signature]:
    given = ("X", "D", "stride_b", "stride_m", "stride_at")
    for name in ("fp32", "bf16"):
        yield _scaled(name, "", given, True)
        yield _scaled(name, ", unaligned", ("stride_at",), False)
        yield _projected(name, "", ("DX", "D"), True)
    yield _scaled("fp16", " by feature", ("X", "D", "stride_b", "stride_m", "stride_ad"), True, by_feature=True)
    yield _projected("fp16", ", unaligned", (), True)
    for targets in (NVIDIA, AMD):
        yield _projected("fp32", " of rbf, unaligned", (), False, targets)


def _tile(
    dtype: torch.dtype, label: str, arch: str, launch: Launch, *, metric: str = "cosine", grad: str = "",
    is_packed: bool = False, is_split: bool = False, aligned: tuple[str, ...] = ("S", "N"),
    has_wide_loads: bool = True,
) -> Signature:  # fmt: skip
    """Rows were copied: they are always aligned, and described where the target has descriptors.

    grad: the type of the scores' gradient, which becomes that of the products, in float32. is_split: from parts of
    float32.
    """
    title, dtype = _triton.NAMES[dtype], torch.bfloat16 if is_split else dtype
    name, is_rbf = _triton.NAMES[dtype], metric == "rbf"
    is_described = arch in _triton.DESCRIPTORS and dtype.itemsize == 2 and not is_rbf
    sizes = dict.fromkeys(("B", "M", "N", "D", "T_X", "T_Y", "stride_x", "stride_y", "tiles"), INT)
    types = {"X": f"*{name}", "Y": f"*{name}", "INVERSE_X": REAL, "INVERSE_Y": REAL, **sizes, "gamma": "fp32"}
    types |= {"S": REAL, "GRAD": f"*{grad}"} if grad else {"S": f"*{title}"}
    types |= TABLES if is_packed else {}
    if is_described:
        types["X"] = f"tensordesc<{name}[{launch.BLOCK_M}, {launch.BLOCK_D}]>"
        types["Y"] = f"tensordesc<{name}[{launch.BLOCK_N}, {launch.BLOCK_D}]>"
    constants = {
        **({} if is_packed else NONE), **({} if grad else {"GRAD": None}), "METRIC": metric, "HAS_GRAD": grad != "",
        "IS_PACKED": is_packed, "IS_DESCRIBED": is_described, "IS_SPLIT": is_split, "BAND": 8, **launch.blocks,
    }  # fmt: skip
    rows = () if is_described else ("X", "Y", "stride_x", "stride_y")
    return Signature(
        f"score_tiles {title}{label}", kernels.score_tiles, types, constants, (*aligned, "D", *rows), launch.options,
        has_matrix=dtype.itemsize == 2 and not is_rbf, has_wide_loads=has_wide_loads, targets=(arch,),
    )  # fmt: skip


def _tiles(arch: str) -> Iterator[Signature]:
    float32, bfloat16, float16 = torch.float32, torch.bfloat16, torch.float16
    for dtype in (float32, bfloat16):
        yield _tile(dtype, "", arch, _triton.LARGE[dtype.itemsize][arch])
        yield _tile(dtype, " packed", arch, _triton.SMALL[dtype.itemsize], is_packed=True)
    for label, launch in (("", split.LARGE.get(arch)), (", few", split.SMALL)):
        if launch is not None and arch in split.LARGE:
            yield _tile(float32, f" from parts{label}", arch, launch, is_split=True)
    yield _tile(float16, ", gradient of clamped", arch, _triton.CONSUMED[arch], metric="clamped_cosine", grad="fp16")
    yield _tile(
        float32, ", gradient of clamped, unaligned", arch, _triton.SMALL[4], metric="clamped_cosine", grad="fp32",
        aligned=(),
    )  # fmt: skip
    # A program subtracts one feature of its rows at a time: 64 numbers, fewer than its threads could load 16 bytes of.
    yield _tile(float32, " of rbf", arch, _triton.SMALL[4], metric="rbf", has_wide_loads=False)
    yield _tile(
        bfloat16, ", gradient of rbf", arch, _triton.SMALL[4], metric="rbf", grad="bf16", has_wide_loads=False
    )  # fmt: skip


def _group(
    kernel: Any, dtype: torch.dtype, block: int, label: str = "", *, is_packed: bool = True, has_y: bool = False,
    is_aligned: bool = True, targets: tuple[str, ...] = _triton.TARGETS,
) -> Signature:  # fmt: skip
    """Scores of small groups, or their gradient."""
    name, is_pull = _triton.NAMES[dtype], kernel is small.pull_groups
    written = ("DX", *(("DY",) if has_y else ())) if is_pull else ("S",)
    pointers = ("X", "Y", *written, *(("W",) if is_pull else ()))
    strides = [f"stride_{side}{axis}" for side in "xy" for axis in "bm"]
    types = dict.fromkeys(pointers, f"*{name}") | dict.fromkeys(("B", "M", "N", "D", *strides), INT)
    types |= dict.fromkeys(("OFFSETS", "CELLS"), "*i64") if is_packed else {}
    none = ("OFFSETS", "CELLS", "DY")
    parts = {"HAS_PARTS": has_parts(dtype, targets[0])} if is_pull else {}
    constants = {
        **{name: None for name in none if name not in types}, "METRIC": "cosine", "HAS_Y": has_y, **parts,
        "BLOCK": block, "stride_xd": 1, "stride_yd": 1,
    }  # fmt: skip
    aligned = (*pointers, "D", *strides) if is_aligned else written
    return Signature(
        f"{kernel.fn.__name__} {name} of {block}{label}", kernel, types, constants, aligned, FUSED,
        group_launch(block, dtype.itemsize, has_y, is_pull), has_matrix=dtype.itemsize == 2,
        has_wide_loads=is_aligned, targets=targets,
    )  # fmt: skip


def _groups() -> Iterator[Signature]:
    float32, bfloat16, float16 = torch.float32, torch.bfloat16, torch.float16
    for dtype in (float32, bfloat16):
        for kernel in (small.score_groups, small.pull_groups):
            yield from (_group(kernel, dtype, block) for block in (16, 32))
            yield _group(kernel, dtype, 32, ", unaligned", is_aligned=False)
            yield _group(kernel, dtype, 32, " with others", is_packed=False, has_y=True)
    yield _group(small.score_groups, float16, 16)
    for targets in (NVIDIA, AMD):
        yield _group(small.pull_groups, float16, 16, targets=targets)


def _pull(
    dtype: torch.dtype, label: str = "", *, weights: str = "", targets: tuple[str, ...] = _triton.TARGETS,
    beside: tuple[str, ...] = ("stride_wn", "stride_xd", "stride_yd"), has_wide_loads: bool = True,
    aligned: tuple[str, ...] = ("W", "M", "N", "T"), **constants: bool,
) -> Signature:  # fmt: skip
    """beside: the strides that are 1. Rows are a copy, which is aligned."""
    name, is_packed = _triton.NAMES[dtype], constants.get("IS_PACKED", False)
    strides = [f"stride_{of}" for of in ("wm", "wn", "xt", "xd", "yt", "yd") if f"stride_{of}" not in beside]
    types = {"W": f"*{weights or name}", "X": f"*{name}", "Y": f"*{name}", "INVERSE_Y": REAL, "G": REAL}
    types |= (
        dict.fromkeys(("B", "M", "N", "E", "T", *strides), INT) | {"factor": "fp32"} | (TABLES if is_packed else {})
    )
    parts = {"HAS_PARTS": has_parts(dtype, targets[0])}
    flags = {**dict.fromkeys(("IS_PACKED", "IS_SELF", "IS_RBF"), False), **parts, **constants}
    given = {**({} if is_packed else NONE), **dict.fromkeys(beside, 1), **flags}
    rows = [stride for stride in strides if aligned or not stride.startswith("stride_w")]
    return Signature(
        f"pull_rows {name}{label}", kernels.pull_rows, types, given,
        ("X", "Y", "INVERSE_Y", "G", "E", *rows, *aligned), FUSED, pull_launch(dtype, flags["IS_SELF"]),
        has_matrix=parts["HAS_PARTS"], has_wide_loads=has_wide_loads, targets=targets,
    )  # fmt: skip


def _pulls() -> Iterator[Signature]:
    float32, bfloat16, float16 = torch.float32, torch.bfloat16, torch.float16
    by_feature = ("stride_wn", "stride_xt", "stride_yt")
    turned = ("stride_wm", "stride_xd", "stride_yd")
    # gfx942 loads the inverse lengths number by number, a tenth of the bytes and more of a tile with few others.
    for targets, is_wide in ((NVIDIA, True), (AMD, False)):
        yield _pull(float32, targets=targets, has_wide_loads=is_wide)
        yield _pull(bfloat16, " turned", beside=turned, targets=targets, has_wide_loads=is_wide)
    yield _pull(float32, " of itself, rbf", beside=by_feature, IS_SELF=True, IS_RBF=True)
    yield _pull(bfloat16)
    yield _pull(bfloat16, " of itself, float32 weights", weights="fp32", IS_SELF=True)
    yield _pull(bfloat16, " packed", aligned=(), has_wide_loads=False, IS_SELF=True, IS_PACKED=True)
    # As tf32 the weights are laid out as sm_90's matrix instruction takes them from registers: 8 bytes at a time.
    yield _pull(float16, targets=tuple(arch for arch in NVIDIA if arch != "sm_90"))
    yield _pull(float16, targets=("sm_90",), has_wide_loads=False)
    yield _pull(float16, targets=AMD, has_wide_loads=False)


def _parts() -> Signature:
    return Signature(
        "split_rows", split.split_rows, {"A": REAL, "P": "*bf16", "count": INT}, {"BLOCK": split.BLOCK},
        ("A", "P", "count"), {"num_warps": split.WARPS, "enable_fp_fusion": False}, has_wide_loads=True,
    )  # fmt: skip


SIGNATURES = (
    *_rows(), _parts(), *(signature for arch in _triton.TARGETS for signature in _tiles(arch)), *_groups(), *_pulls()
)  # fmt: skip
