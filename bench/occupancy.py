"""How many programs of a kernel one multiprocessor holds at once: the fewest of what each of its resources allows.

    registers      a warp takes its registers a thread, rounded up to 8 (256 of NVIDIA's file), from one of 4 sides with
                   512 for each lane: vector registers of a SIMD on gfx942
    shared memory  what a program declares and NVIDIA's driver keeps for it (1 KiB), rounded up to 128 bytes; 512 of LDS
    tensor memory  columns of sm_100's 512
    places         for warps and for programs

tests/kernels/test_occupancy.py compares this with NVIDIA's own calculator and AMD's table.
"""

from __future__ import annotations

from dataclasses import dataclass

from mrtkern import _triton

SIDES = 4  # schedulers of a multiprocessor, each with registers of its own
LANES = 512  # registers that a side has for one lane of its warps
REGISTERS_UNIT = 8
TENSOR_COLUMNS = 512


@dataclass(frozen=True)
class Multiprocessor:
    """Places, and how shared memory is given away."""

    warps: int
    programs: int
    kept: int = 1 << 10  # bytes of shared memory for each program beside its own
    unit: int = 128  # bytes of shared memory


MULTIPROCESSORS = {
    "sm_80": Multiprocessor(64, 32),
    "sm_86": Multiprocessor(48, 16),
    "sm_90": Multiprocessor(64, 32),
    "sm_100": Multiprocessor(64, 32),
    "sm_120": Multiprocessor(48, 24),
    "gfx942": Multiprocessor(32, 32, kept=0, unit=512),
}
AMD_BARRIERS = 16  # programs of several warps, of which each takes one


def up(value: int, unit: int) -> int:
    """The next multiple of a unit."""
    return -(-value // unit) * unit


def resident(arch: str, *, registers: int, shared: int, warps: int, tensor_columns: int = 0) -> int:
    """Programs of so many registers a thread, bytes and warps, each on its own, on one multiprocessor."""
    processor = MULTIPROCESSORS[arch]
    most = LANES // up(max(registers, 1), REGISTERS_UNIT) * SIDES
    allowed = [min(most, processor.warps) // warps, processor.programs]
    if bytes_ := up(shared + processor.kept, processor.unit):
        allowed.append((_triton.SHARED[arch] + processor.kept) // bytes_)
    if tensor_columns:
        allowed.append(TENSOR_COLUMNS // tensor_columns)
    if arch.startswith("gfx") and warps > 1:
        allowed.append(AMD_BARRIERS)
    return min(allowed)


def occupancy(arch: str, resident: int, warps: int) -> float:
    """Share of the places for warps that so many programs take."""
    return round(resident * warps / MULTIPROCESSORS[arch].warps, 3)
