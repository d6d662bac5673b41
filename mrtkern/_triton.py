"""The tile engine for Triton: what at least two operations use of launches, of tiles and of products.

A kernel walks tiles of an output in an order that keeps operands in the L2 cache (`grouped`), makes each by one
pipelined product (`product`, or `described_product` where the target has tensor descriptors) and hands it to its
epilogue. How large tiles are is read from one table by architecture, type and size class; nothing is tuned while a
program runs.

Float32 operands are multiplied as float32 ("ieee", no tf32), 16-bit operands on tensor cores; sums are float32. Fusing
of multiplication and addition is always stated: `Launch.options` turns it on, kernels whose bits are defined turn it
off.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from mrtkern import _check

DEVICES: tuple[str, ...] = ("cuda",)  # types of devices that kernels run on
TARGETS = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")  # what the report on machine code compiles for
SHARED = {  # bytes of shared memory that one program may use; sm_86 stands for sm_89 too
    arch: size << 10
    for arch, size in [("sm_80", 163), ("sm_86", 99), ("sm_90", 227), ("sm_100", 227), ("sm_120", 99), ("gfx942", 64)]
}
DESCRIPTORS = ("sm_90", "sm_100", "sm_120")  # architectures that copy tiles by tensor descriptor
INTERPRETED = "sm_90"  # what the interpreter stands for: all paths of the newer targets
NAMES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64",
    torch.int16: "i16", torch.int32: "i32", torch.int64: "i64", torch.uint16: "u16",
}  # fmt: skip


def why_not(device: str, capability: tuple[int, int] | None) -> str | None:
    """None when kernels run on a device of this type and compute capability (None: unknown), otherwise the reason."""
    if device not in DEVICES:
        return f"needs a CUDA tensor, got one on {device}"
    return _check.too_old(capability)


# Devices


@functools.cache
def arch(device: torch.device) -> str:
    """The row of the tables that a device takes: its own, or that of the closest older one."""
    if device.type == "cpu":
        return INTERPRETED
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if major == 8:
        return "sm_80" if minor == 0 else "sm_86"
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_120")


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many programs of the largest kind run at once."""
    if device.type == "cpu":
        return 2  # so that an interpreted program takes several tiles
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Launches inside go to this device, in torch's current stream."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def num_warps(arch: str, threads: int) -> int:
    """Warps of so many threads: 32 wide, 64 on AMD."""
    return max(1, threads // (64 if arch.startswith("gfx") else 32))


# Launch parameters


@dataclass(frozen=True)
class Launch:
    """Sizes of a tile [BLOCK_M, BLOCK_N], of a step BLOCK_D of the sum, warps, and steps in flight."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_D: int
    num_warps: int
    num_stages: int

    @property
    def blocks(self) -> dict[str, int]:
        """Constants of the kernel."""
        return {"BLOCK_M": self.BLOCK_M, "BLOCK_N": self.BLOCK_N, "BLOCK_D": self.BLOCK_D}

    @property
    def options(self) -> dict[str, Any]:
        """Options of the compiler."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}

    def tiles(self, M: int, N: int) -> int:
        """Tiles of an [M, N] output."""
        return -(-M // self.BLOCK_M) * -(-N // self.BLOCK_N)


# Bytes of an operand -> tile of a product where there are many, by architecture, and where there are few. Operands in
# flight stay within SHARED; accumulators take at most 128 registers of a thread, on sm_100 64, where they pass through
# tensor memory.
LARGE = {
    2: {
        "sm_80": Launch(128, 128, 64, 8, 3),
        "sm_86": Launch(128, 128, 32, 8, 3),
        "sm_90": Launch(128, 256, 64, 8, 3),
        "sm_100": Launch(128, 128, 64, 8, 4),
        "sm_120": Launch(128, 128, 32, 8, 3),
        "gfx942": Launch(128, 128, 64, 8, 2),
    },
    4: dict.fromkeys(SHARED, Launch(128, 128, 16, 8, 2)),
}
# Tiles of 16-bit products that are consumed and not just stored: small enough for two programs on a multiprocessor, if
# threads do with 128 registers, so that one's epilogue hides behind the other's products, which are short.
CONSUMED = {
    "sm_80": Launch(128, 128, 32, 8, 4),
    "sm_86": Launch(128, 128, 32, 8, 3),
    "sm_90": Launch(128, 128, 64, 8, 3),
    "sm_100": Launch(128, 128, 64, 8, 3),
    "sm_120": Launch(128, 128, 32, 8, 3),
    "gfx942": Launch(128, 128, 64, 8, 2),
}
CONSUMERS = (("sm_80", "gfx942"), ("sm_90", "sm_100"), ("sm_120",))  # targets whose kernels take the same arguments
SMALL = {2: Launch(64, 64, 64, 4, 3), 4: Launch(64, 64, 16, 4, 2)}


def product_launch(
    arch: str, dtype: torch.dtype, M: int, N: int, B: int = 1, programs: int = 1, is_stored: bool = True
) -> Launch:
    """The tile of B products of [M, D] and [N, D]: the large one where there are enough for `programs` at once."""
    large = LARGE[dtype.itemsize][arch] if is_stored or dtype.itemsize == 4 else CONSUMED[arch]
    return large if B * large.tiles(M, N) >= programs else SMALL[dtype.itemsize]


# The report on machine code


@dataclass(frozen=True)
class Signature:
    """One way a kernel is launched, compiled without a device for `targets` and held to limits.

    types: argument -> Triton type ("*bf16", "i32", "tensordesc<bf16[128, 64]>"), without the constants; aligned:
    arguments that are multiples of 16, as addresses and sizes of aligned inputs are. launch: further constants and
    options that depend on the architecture. has_matrix: 16-bit products, which must run on matrix units.
    has_wide_loads: inputs are aligned, so that hot loops must load 16 bytes at a time.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    launch: Callable[[str], Launch] | None = None
    has_matrix: bool = False
    has_wide_loads: bool = False
    targets: tuple[str, ...] = TARGETS


# Tiles


@triton.jit
def grouped(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Tile number -> (m, n): GROUP rows of tiles column by column, so that neighbours in time share operands."""
    band = tile // (GROUP * tiles_n)
    rows = min(tiles_m - band * GROUP, GROUP)
    inside = tile % (GROUP * tiles_n)
    return band * GROUP + inside % rows, inside // rows


@triton.jit
def product(
    X, Y, m, n, M, N, D, stride_x, stride_y,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scores [BLOCK_M, BLOCK_N] float32 of rows m.. of X [M, D] with rows n.. of Y [N, D]; features lie side by side.

    What lies outside counts as 0. Sums: steps of BLOCK_D ascending, each added to the tile.
    """
    rows_x = m + tl.arange(0, BLOCK_M)
    rows_y = n + tl.arange(0, BLOCK_N)
    steps = tl.arange(0, BLOCK_D)
    x = X + rows_x.to(tl.int64)[:, None] * stride_x + steps[None, :]
    y = Y + rows_y.to(tl.int64)[:, None] * stride_y + steps[None, :]
    is_x, is_y = (rows_x < M)[:, None], (rows_y < N)[:, None]
    s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for d in tl.range(0, D, BLOCK_D):
        is_d = (steps < D - d)[None, :]
        a = tl.load(x + d, mask=is_x & is_d, other=0.0)
        b = tl.load(y + d, mask=is_y & is_d, other=0.0)
        s = tl.dot(a, b.T, s, input_precision="ieee")
    return s


@triton.jit
def described_product(
    X, Y, m, n, D,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`product` of two tensor descriptors with blocks [BLOCK_M, BLOCK_D] and [BLOCK_N, BLOCK_D]."""
    s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for d in tl.range(0, D, BLOCK_D):
        s = tl.dot(X.load([m, d]), Y.load([n, d]).T, s, input_precision="ieee")
    return s


def can_describe(x: torch.Tensor) -> bool:
    """Whether rows x [T, D] can be read by tensor descriptor: 16-byte aligned, features side by side, not empty."""
    width = x.element_size()
    is_aligned = x.data_ptr() % 16 == 0 and x.stride(0) * width % 16 == 0 and x.stride(0) >= x.shape[1]
    is_numbered = x.numel() > 0 and max(x.shape) < 2**31
    return is_numbered and x.stride(1) == 1 and is_aligned and arch(x.device) in DESCRIPTORS


def describe(x: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    """A descriptor of x [T, D] with blocks [rows, columns]; made on the host, so a CUDA graph keeps it."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [rows, columns])
