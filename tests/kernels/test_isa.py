"""The compiled kernels on every instruction set of this machine: each passes the tests of the widest."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.tools import process
from tests.tools.repository import ROOT

C = pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")


ABOVE = ("benchmarks", "cli", "house", "integrations", "science")  # none of them calls a kernel by itself


def chosen(isa: str) -> str:
    os.environ["MRTKERN_ISA"] = isa
    return C.isa()


@pytest.mark.parametrize("isa", C.isas())
def test_the_cap_chooses_the_instruction_set(isa: str) -> None:
    assert process.in_child(chosen, isa) == isa


@pytest.mark.isa
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", [8, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("isa", C.isas()[1:])
def test_kernels_pass_their_tests_on_narrower_instruction_sets(isa: str, part: int) -> None:
    """The choice is made once per process, so each gets processes of its own. Every test function runs, on an eighth of
    its cases unless time does not matter. avx512 differs from avx512_bf16 in products of bfloat16 alone: there the
    tests of heads are enough."""
    tests = ["tests", *(f"--ignore=tests/{folder}" for folder in ABOVE)]
    if isa == "avx512" and "avx512_bf16" in C.isas():
        tests = ["tests/linear_cross_entropy/test_linear_log_prob.py", "tests/digest"]
    command = [
        sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "2", "--dist", "loadfile",
        "-k", process.KERNEL_TESTS, f"--part={part}", *tests,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "MRTKERN_ISA": isa}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:]
