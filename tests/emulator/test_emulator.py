"""The emulated device: what each primitive does, which limits it keeps, and that every planted fault is reported."""

from __future__ import annotations

import platform
from collections.abc import Callable

import pytest

from tests.kernels.test_sanitize import FAILED
from tests.tools.emulated import FAULTS, ORDERS, PLAIN, PRIMITIVES, Workshop, answer, run, said

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64", reason="needs Linux on x86-64"
)


def marked(sanitizer: str) -> pytest.MarkDecorator:
    return pytest.mark.emulator if sanitizer == PLAIN else pytest.mark.sanitize


@pytest.mark.parametrize(
    ("sanitizer", "order"),
    [
        *(pytest.param(PLAIN, order, marks=marked(PLAIN)) for order in (*ORDERS, "random:2")),
        pytest.param("address", "reverse", marks=marked("address")),
        pytest.param("thread", "random:1", marks=marked("thread")),
    ],
)
def test_every_primitive_does_what_cuda_says(workshop: Workshop, sanitizer: str, order: str) -> None:
    done = run(workshop.program(PRIMITIVES, sanitizer), order)
    assert (done.returncode, done.stdout) == (0, "0 failures\n")


@pytest.mark.emulator
def test_every_primitive_works_on_the_stacks_of_the_c_library(workshop: Workshop) -> None:
    """Hosts that are not x86-64 change stacks by swapcontext."""
    done = run(workshop.program(PRIMITIVES, PLAIN, "-DMRT_UCONTEXT"), "random:1")
    assert (done.returncode, done.stdout) == (0, "0 failures\n")


@pytest.mark.parametrize("fault", [pytest.param(fault, marks=marked(FAULTS[fault][0])) for fault in FAULTS])
def test_a_planted_fault_is_reported_and_its_absence_is_not(workshop: Workshop, fault: str) -> None:
    status, output = answer(workshop, fault, "mended")
    assert status == 0 and FAULTS[fault][1] not in output and "Sanitizer" not in output, output
    status, output = answer(workshop, fault, "planted")
    assert status == (0 if FAULTS[fault][0] == PLAIN else FAILED), output
    assert said(fault, output) is not None, output


@pytest.mark.emulator
def test_a_missing_barrier_shows_in_one_order_and_hides_in_another(workshop: Workshop) -> None:
    """Why kernels run in several orders: here the late half of a block reads what the early half has written."""
    program = workshop.program(("faults",), PLAIN)
    forward, reverse = (run(program, "missing_barrier", "planted", order).stdout for order in ("forward", "reverse"))
    mended = {run(program, "missing_barrier", "mended", order).stdout for order in ORDERS}
    assert forward != reverse and len(mended) == 1


@pytest.mark.emulator
def test_the_extension_runs_on_the_emulated_devices(emulated_cuda: Callable[[str], None]) -> None:
    from mrtkern import _cuda

    for order in ORDERS:
        emulated_cuda(order)
    assert _cuda.device_count() == 4
    assert _cuda.archs() == [80, 90, 100, 120]
    assert _cuda.runtime_version() == 0
