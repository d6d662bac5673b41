"""Occupancy as bench/occupancy.py counts it, against NVIDIA's own calculator and AMD's table of registers."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from bench import occupancy, static
from mrtkern import _triton

# Around the granules of registers and at all that a thread can have.
REGISTERS = (1, 24, 32, 33, 40, 41, 64, 65, 85, 100, 128, 129, 168, 169, 248, 255)
WARPS = (1, 2, 3, 4, 7, 8, 12, 16, 32)
CALCULATOR = r"""
#include <cstdio>
#include <cuda_occupancy.h>

int main() {
  int arch, registers, warps, most_warps;
  size_t shared, room;
  while (std::scanf("%d %d %zu %d %zu %d", &arch, &registers, &shared, &warps, &room, &most_warps) == 6) {
    cudaOccDeviceProp device{};
    device.computeMajor = arch / 10, device.computeMinor = arch % 10;
    device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = 32 * most_warps;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32, device.numSms = 1;
    device.sharedMemPerBlock = 48 << 10, device.sharedMemPerBlockOptin = room;
    device.reservedSharedMemPerBlock = 1 << 10, device.sharedMemPerMultiprocessor = room + (1 << 10);
    cudaOccFuncAttributes kernel{};
    kernel.maxThreadsPerBlock = 1024, kernel.numRegs = registers;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN, kernel.maxDynamicSharedSizeBytes = room;
    cudaOccDeviceState state{};
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result{};
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, 32 * warps, shared)) return 1;
    std::printf("%d\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


@pytest.mark.compile
def test_programs_are_counted_as_nvidia_counts_them(tmp_path: Path) -> None:
    source, program = tmp_path / "calculator.cpp", tmp_path / "calculator"
    source.write_text(CALCULATOR, encoding="utf-8")
    include = static.programs().parent / "include"
    subprocess.run(["g++", "-O1", f"-I{include}", source, "-o", program], check=True)
    cases = [
        (arch, registers, shared, warps)
        for arch in occupancy.MULTIPROCESSORS
        if arch.startswith("sm_")
        for room in (_triton.SHARED[arch],)
        for registers, shared, warps in itertools.product(REGISTERS, (0, 1, 1024, 4096, room // 2, room), WARPS)
    ]
    lines = (
        f"{arch[3:]} {registers} {shared} {warps} {_triton.SHARED[arch]} {occupancy.MULTIPROCESSORS[arch].warps}"
        for arch, registers, shared, warps in cases
    )
    printed = subprocess.run([program], input="\n".join(lines), capture_output=True, text=True, check=True).stdout
    ours = [occupancy.resident(a, registers=r, shared=s, warps=w) for a, r, s, w in cases]
    assert dict(zip(cases, ours, strict=True)) == dict(zip(cases, map(int, printed.split()), strict=True))


@pytest.mark.parametrize(
    ("registers", "waves"), [(64, 8), (65, 7), (72, 7), (80, 6), (96, 5), (128, 4), (168, 3), (256, 2), (257, 1)]
)
def test_wavefronts_are_counted_as_amd_counts_them(registers: int, waves: int) -> None:
    """Of a SIMD of gfx942, by the vector registers of a wavefront."""
    assert occupancy.resident("gfx942", registers=registers, shared=0, warps=1) == 4 * waves
    assert occupancy.occupancy("gfx942", 4 * waves, 1) == waves / 8


def test_local_memory_barriers_and_tensor_memory_hold_programs_back() -> None:
    assert occupancy.resident("gfx942", registers=32, shared=20_000, warps=4) == 3
    assert occupancy.resident("gfx942", registers=32, shared=0, warps=2) == 16
    assert occupancy.resident("sm_100", registers=64, shared=0, warps=4, tensor_columns=256) == 2
