"""The compiled kernels on every instruction set of this machine: each passes the tests of the widest."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.tools import process
from tests.tools.repository import ROOT

C = pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")


NEAR = "avx512" if "avx512_bf16" in C.isas() else None  # differs from the widest only in products of bfloat16
ABOVE = ("benchmarks", "cli", "house", "integrations", "science")  # none of them calls a kernel by itself


def chosen(isa: str) -> str:
    os.environ["MRTKERN_ISA"] = isa
    return C.isa()


@pytest.mark.parametrize("isa", C.isas())
def test_the_cap_chooses_the_instruction_set(isa: str) -> None:
    assert process.in_child(chosen, isa) == isa


@pytest.mark.isa
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", [16, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("isa", [isa for isa in C.isas()[1:] if isa != NEAR])
def test_kernels_pass_their_tests_on_narrower_instruction_sets(isa: str, part: int) -> None:
    """The choice is made once per process, so each gets processes of its own. Every test function runs, on a sixteenth
    of its cases unless time does not matter."""
    passes(isa, part, "tests", *(f"--ignore=tests/{folder}" for folder in ABOVE))


@pytest.mark.isa
@pytest.mark.full
@pytest.mark.skipif(NEAR is None, reason="this machine has no bfloat16 instructions")
def test_heads_pass_their_tests_without_bfloat16_instructions() -> None:
    """In products of bfloat16 alone the two instruction sets differ."""
    assert NEAR is not None
    passes(NEAR, 1, "tests/linear_cross_entropy", "tests/digest")


def passes(isa: str, part: int, *tests: str) -> None:
    """The tests that name the cpu backend pass on an instruction set."""
    workers = ["-n", "2", "--dist", "loadfile"] if part == 1 else []  # each collects for as long as few tests run
    command = [
        sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *workers,
        "-k", process.KERNEL_TESTS, f"--part={part}", *tests,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "MRTKERN_ISA": isa}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:]
