"""The compiled kernels as guests of a process: forks, Ctrl-C, several callers, float modes and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from mrtkern import _dispatch
from mrtkern.ops.facility_location.op import facility_location
from mrtkern.ops.facility_location.problem import CASES, Inputs, Problem
from mrtkern.select import METHODS
from tests import selections

CPU = _dispatch.load("facility_location", "cpu")
pytestmark = pytest.mark.skipif(isinstance(CPU, str), reason="mrtkern._C is not installed")
ROOT = Path(__file__).parent.parent


def _select() -> str:
    x, offsets, _ = selections.inputs(selections.SMALL[0])
    return selections.digest(facility_location(x, 4, offsets=offsets, backend="cpu"))


class Prompts(torch.utils.data.Dataset):
    """Selects in the worker that reads."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> str:
        return _select()


def test_a_forked_dataloader_worker_selects(threads):
    threads(4)
    expected = _select()
    loader = torch.utils.data.DataLoader(
        Prompts(), num_workers=2, batch_size=None, multiprocessing_context="fork", timeout=60
    )
    assert list(loader) == [expected] * 6
    assert _select() == expected


def test_workers_are_rebuilt_after_a_fork(threads):
    """The parent's threads do not exist in the child. Kernels only: torch's own do not survive a fork either."""
    x, offsets, _ = selections.inputs(selections.SMALL[0])
    k, key = offsets.diff().clamp(max=3), torch.arange(len(offsets) - 1)
    inputs = Inputs("grouped", x, offsets, k, *[None] * 7, key, "shifted_cosine", 1.0, "index", 0, 0, "x")  # fmt: skip
    threads(4)
    expected = CPU.forward(inputs).ids.tolist()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if CPU.forward(inputs).ids.tolist() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert CPU.forward(inputs).ids.tolist() == expected


def test_eight_concurrent_callers_get_their_own_answers(threads):
    threads(2)
    expected, found = _select(), []
    callers = [threading.Thread(target=lambda: found.extend(_select() for _ in range(20))) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert found == [expected] * 160


INTERRUPTED = """
import os, signal, threading, time, torch
from mrtkern.ops.facility_location.op import facility_location
torch.set_num_threads({threads})
x = torch.randn(4096, 4096)
x = x.repeat({groups}, 1) if {groups} > 1 else x
offsets = torch.arange({groups} + 1) * 4096
facility_location(x[:10], 2, offsets=torch.tensor([0, 10]), backend="cpu")
pressed = []
def press():
    time.sleep(0.3)
    pressed.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=press).start()
try:
    facility_location(x, 4000, offsets=offsets, backend="cpu")
    print("finished")
except KeyboardInterrupt:
    print(time.monotonic() - pressed[0])
"""


@pytest.mark.parametrize(("groups", "count"), [(3, 1), (3, 2)])
def test_ctrl_c_returns_within_half_a_second(groups, count):
    program = INTERRUPTED.format(groups=groups, threads=count)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() != "finished", "the call is too short to be interrupted"
    assert float(done.stdout) < 0.5


def test_the_callers_float_modes_do_not_reach_the_kernels():
    """Subnormal rows with flushing on: the same picks as with it off."""
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)) * 1e-41
    offsets = torch.tensor([0, 12])
    expected = selections.digest(facility_location(x, 4, offsets=offsets, backend="cpu"))
    assert torch.set_flush_denormal(True)
    try:
        assert selections.digest(facility_location(x, 4, offsets=offsets, backend="cpu")) == expected
    finally:
        torch.set_flush_denormal(False)


def test_more_threads_than_cores_do_not_collapse(threads):
    x = torch.randn(160 * 64, 128)
    offsets = torch.arange(161) * 64
    best = {}
    for count in (1, 2, 4, 16) * 5:
        threads(count)
        start = time.perf_counter()
        facility_location(x, 16, offsets=offsets, backend="cpu")
        best[count] = min(best.get(count, float("inf")), time.perf_counter() - start)
    assert best[16] < 1.5 * max(best[1], best[2], best[4])


MEMORY = """
import resource, torch
from mrtkern.select import select_responses
B, N, D = {B}, {N}, 8
x, offsets, reward = torch.randn(B * N, D), torch.arange(B + 1) * N, torch.rand(B * N)
select_responses(x[: 4 * N], offsets[:5], 4, method={method!r}, reward=reward[: 4 * N])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
def high():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
before = high()
found = select_responses(x, offsets, 4, method={method!r}, reward=reward)
outputs = sum(v.numel() * v.element_size() for v in vars(found).values() if v is not None)
print(high() - before - outputs)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory cannot be reset here")
@pytest.mark.parametrize("method", METHODS)
def test_memory_beyond_outputs_stays_under_64_mib(method):
    """A million prompts of 4 responses, and 6,000 of 256: beyond outputs nothing grows with the number of prompts."""
    for B, N in ((1_000_000, 4), (6_000, 256)):
        program = MEMORY.format(B=B, N=N, method=method)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) <= 64 * 2**20, f"{B} prompts of {N}: {int(done.stdout) / 2**20:.0f} MiB"


LARGE_GROUP = """
import torch
from mrtkern.ops.facility_location.op import facility_location
torch.set_num_threads(1)
x, offsets = torch.randn(4096, 1024), torch.tensor([0, 4096])
facility_location(x[:64], 4, offsets=torch.tensor([0, 64]), backend="cpu")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
def high():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
before = high()
facility_location(x, 64, offsets=offsets, backend="cpu")
print(high() - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory cannot be reset here")
def test_memory_of_a_large_group_is_what_the_docstring_says():
    """The stated bytes, and a MiB for results and pages; and not less than half of them, or the formula is idle."""
    done = subprocess.run([sys.executable, "-c", LARGE_GROUP], cwd=ROOT, capture_output=True, text=True, check=True)
    stated = CPU.memory(Problem("grouped", 4096, 1024, 1, torch.float32, "cpu", 4096), 1)
    assert stated / 2 <= int(done.stdout) <= stated + 2**20


def test_what_cannot_fit_is_refused_up_front():
    case = next(case for case in CASES if "bench" in case.tags)
    huge = Problem("grouped", 4096, 10**10, 1, case.dtype, "cpu", 4096)
    assert CPU.memory(huge, 1) > 10**13
    assert "bytes of memory for its threads, this machine has" in _dispatch.why_not("facility_location", "cpu", huge)
