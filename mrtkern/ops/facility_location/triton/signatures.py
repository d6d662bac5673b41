"""How the kernels of facility_location are launched, for the report on machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from mrtkern import _triton
from mrtkern._triton import Launch, Signature
from mrtkern._triton import rows as lattice_rows
from mrtkern.ops.facility_location.triton import kernels
from mrtkern.ops.facility_location.triton.launch import BAND, LISTED_AT_ONCE, ON_DEVICE

UNFUSED = {"enable_fp_fusion": False}
VALUES = {"BEST": "*fp32", "UNIT": "*fp32", "QUALITY": "*fp32"}
SIZES = dict.fromkeys(("M", "N", "columns"), "i32") | {"base": "fp32"}
STRIP = dict.fromkeys(("first", "tiles_m", "tiles_n"), "i32")
PAIRS = {"IS_OPEN": "*u8", "PLACE": "*i64", "ROWS": "*i32", "T": "*i16"}
LIST = {"IDS": "*i64", "ENDS": "*i64", "ROWS": "*i32", "T": "*i16", "BEST": "*fp32", "GAIN": "*i64", "parts": "i32"}


class Tiled(NamedTuple):
    """A kernel on tiles: its name, which tile it takes, its own arguments and constants."""

    name: str
    kernel: Any
    which: str
    types: dict[str, str]
    constants: dict[str, Any]
    has_quality: bool = False  # the caller's, wherever it begins; what depends on it

    def launch(self) -> Callable[[str], Launch]:
        return lambda arch: getattr(ON_DEVICE[arch], self.which)


def _sums(name: str, which: str, is_mirrored: bool, is_counted: bool, has_quality: bool) -> Tiled:
    constants = {"IS_MIRRORED": is_mirrored, "IS_COUNTED": is_counted, "IS_WEIGHED": has_quality, "BAND": BAND}
    return Tiled(f"sum_pairs {name}", kernels.sum_pairs, which, {"SUM": "*i64"} | STRIP, constants, has_quality)


TILED = (
    _sums("of all", "all", False, False, False),
    _sums("of all, with quality", "all", False, False, True),
    _sums("of all, mirrored", "all", True, False, False),
    _sums("of all, mirrored, with quality", "all", True, False, True),
    _sums("of all, mirrored, counted", "all", True, True, False),
    _sums("of a batch", "few", False, False, False),
    _sums("of a batch, with quality", "few", False, False, True),
    Tiled("write_pairs", kernels.write_pairs, "few", PAIRS | STRIP, {"BAND": BAND}),
    Tiled("write_pairs with quality", kernels.write_pairs, "few", PAIRS | STRIP, {"BAND": BAND}, True),
    Tiled("take_rows", kernels.take_rows, "few", {"TOTAL": "*i64"}, {"WANTS_TOTALS": False}),
    Tiled("take_rows with quality, totals", kernels.take_rows, "few", {"TOTAL": "*i64"}, {"WANTS_TOTALS": True}, True),
    Tiled("reach_rows", kernels.reach_rows, "few", {"OWNER": "*i32", "before": "i32"}, {}),
)


def _signature(way: Tiled, targets: tuple[str, ...]) -> Signature:
    """Lattice rows and what comes of them are made here: always aligned, their columns a multiple of 64."""
    tile, is_described = way.launch()(targets[0]), targets[0] in _triton.DESCRIPTORS
    sizes = {"X": tile.BLOCK_N, "Y": tile.BLOCK_M}
    rows = {
        key: f"tensordesc<fp16[{size}, {tile.BLOCK_D}]>" if is_described else "*fp16" for key, size in sizes.items()
    }
    types = VALUES | way.types
    ours = [key for key, type_ in types.items() if type_.startswith("*") and (key != "QUALITY" or not way.has_quality)]
    constants = {**way.constants, "IS_DESCRIBED": is_described, "HAS_QUALITY": way.has_quality}
    return Signature(
        f"{way.name}, {' '.join(targets)}", way.kernel, rows | types | SIZES, constants,
        (*ours, "columns", *(() if is_described else rows)), UNFUSED, way.launch(), has_matrix=True,
        has_wide_loads=not way.has_quality, targets=targets,
    )  # fmt: skip


def _lists(name: str, reaches: bool) -> Signature:
    """Ids are the caller's part of a tensor; all else begins where memory does."""
    aligned = tuple(key for key in LIST if key not in ("IDS", "parts"))
    constants = {"REACHES": reaches, "BLOCK": LISTED_AT_ONCE}
    return Signature(name, kernels.sum_lists, LIST, constants, aligned, UNFUSED, lattice_rows.threads(128))


SIGNATURES = (
    *(_signature(way, targets) for targets in _triton.CONSUMERS for way in TILED),
    _lists("sum_lists", False),
    _lists("sum_lists that reach", True),
)
