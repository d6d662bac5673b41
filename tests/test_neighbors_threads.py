"""The compiled search as a guest of a process: instruction sets, threads, forks, Ctrl-C, several callers, memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mrtkern import _dispatch
from mrtkern.ops.neighbors.deduplicate import deduplicate
from mrtkern.ops.neighbors.op import neighbors
from mrtkern.ops.neighbors.problem import Inputs, Problem
from tests import lists, oracle

CPU = _dispatch.load("neighbors", "cpu")
pytestmark = pytest.mark.skipif(isinstance(CPU, str), reason=f"compiled kernels: {CPU}")
ROOT = Path(__file__).parent.parent
GIB = 2**30


def test_threads_and_instruction_sets_change_nothing() -> None:
    """All calls with one answer, 1 to 16 threads, every path of this machine: one digest a call."""
    from mrtkern import _C

    program = [sys.executable, "-m", "tests.lists", "cpu", "1", "2", "4", "16"]
    lines: set[str] = set()
    for isa in _C.isas():
        environment = {**os.environ, "MRTKERN_ISA": isa}
        done = subprocess.run(program, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        assert done.stderr.strip() == isa
        lines |= set(done.stdout.splitlines())
    runnable = [name for name, arguments in lists.calls() if lists.why_not("cpu", arguments) is None]
    assert len(lines) == len(runnable) + len(lists.HARD)


def test_float32_has_the_same_bits_for_every_number_of_threads(threads: Any) -> None:
    x, y = lists.normal(300, 40), lists.normal(900, 40, 1)
    found = set()
    for count in (1, 2, 4, 16):
        threads(count)
        found.add(lists.digest(neighbors(x, 20, y=y, precision="float32", backend="cpu")))
        found.add(lists.digest(neighbors(y, 20, precision="float32", backend="cpu")))
    assert len(found) == 2


@pytest.mark.parametrize("kind", ["rectangle", "self graph", "deduplicate"])
def test_more_threads_than_cores_do_not_collapse(kind: str, threads: Any) -> None:
    x = lists.normal(3000, 64)
    call = {
        "rectangle": lambda: neighbors(x, 16, y=x, backend="cpu"),
        "self graph": lambda: neighbors(x, 16, backend="cpu"),
        "deduplicate": lambda: deduplicate(x, 0.6, backend="cpu"),
    }[kind]
    best: dict[int, float] = {}
    for count in (1, 2, 4, 16) * 5:
        threads(count)
        start = time.perf_counter()
        call()
        best[count] = min(best.get(count, float("inf")), time.perf_counter() - start)
    assert best[16] < 1.5 * max(best[1], best[2], best[4])


def test_workers_are_rebuilt_after_a_fork(threads: Any) -> None:
    """The parent's threads do not exist in the child. Kernels only: torch's own do not survive a fork either."""
    threads(4)
    inputs = Inputs(lists.normal(500, 16), None, 5, "cosine", 1.0, "exact", True, None, None)
    expected = CPU.forward(inputs)[0].tolist()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if CPU.forward(inputs)[0].tolist() == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert CPU.forward(inputs)[0].tolist() == expected


def test_eight_concurrent_callers_get_their_own_answers(threads: Any) -> None:
    threads(2)
    rows = [lists.normal(200 + 10 * i, 12, i) for i in range(8)]
    expected = [lists.digest(neighbors(x, 6, backend="cpu")) for x in rows]
    found: dict[int, list[str]] = {}

    def call(i: int) -> None:
        found[i] = [lists.digest(neighbors(rows[i], 6, backend="cpu")) for _ in range(20)]

    callers = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert found == {i: [expected[i]] * 20 for i in range(8)}


def test_concurrent_callers_hear_of_their_own_progress_only() -> None:
    told: dict[int, list[float]] = {0: [], 1: []}
    callers = [
        threading.Thread(target=lambda i=i: neighbors(lists.normal(2000, 16), 4, progress=told[i].append)) for i in told
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert all(fractions == sorted(fractions) and fractions.count(1.0) == 1 for fractions in told.values())


INTERRUPTED = """
import os, signal, threading, time, torch
from mrtkern.ops.neighbors.deduplicate import deduplicate
from mrtkern.ops.neighbors.op import neighbors
torch.set_num_threads({threads})
x = torch.randn(100_000, 256)
neighbors(x[:100], 2, backend="cpu")
pressed = []
def press():
    time.sleep(0.3)
    pressed.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=press).start()
try:
    {call}
    print("finished")
except KeyboardInterrupt:
    print(time.monotonic() - pressed[0])
"""


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "call",
    [
        'neighbors(x, 10, backend="cpu")',
        'neighbors(x, 10, y=x, precision="float32", backend="cpu")',
        'neighbors(torch.ones(100_000, 256), 10, backend="cpu")',  # every list overflows
        'deduplicate(x, 0.9, backend="cpu")',
    ],
)
def test_ctrl_c_returns_within_half_a_second(call: str, count: int) -> None:
    program = INTERRUPTED.format(call=call, threads=count)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() != "finished", "the call is too short to be interrupted"
    assert float(done.stdout) < 0.5


def test_the_callers_float_modes_do_not_reach_the_kernels() -> None:
    x = lists.normal(60, 8) * 1e-41
    expected = lists.digest(neighbors(x, 4, backend="cpu"))
    assert torch.set_flush_denormal(True)
    try:
        assert lists.digest(neighbors(x, 4, backend="cpu")) == expected
    finally:
        torch.set_flush_denormal(False)


# Memory


def test_a_million_rows_fit_in_four_gib_beside_the_input() -> None:
    assert CPU.memory(Problem(10**6, None, 64, 384, torch.float32)) <= 4 * GIB
    assert CPU.memory(Problem(10**6, None, 0, 384, torch.float32, kind="components")) <= 4 * GIB


MEMORY = """
import resource, torch
from mrtkern.ops.neighbors.deduplicate import deduplicate
from mrtkern.ops.neighbors.op import neighbors
torch.set_num_threads(2)
x, y = torch.randn({M}, {D}), torch.randn({N}, {D})
neighbors(x[:64], 4, backend="cpu")
neighbors(x[:64], 4, y=y[:64], backend="cpu")
deduplicate(x[:64], 0.9, backend="cpu")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
def high():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
before = high()
found = {call}
outputs = sum(v.nbytes for v in (found.ids, found.scores)) if hasattr(found, "ids") else 8 * {M}
print(high() - before - outputs)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory cannot be reset here")
@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ('neighbors(x, 64, backend="cpu")', Problem(40_000, None, 64, 64, torch.float32)),
        ('neighbors(x, 64, metric="dot", backend="cpu")', Problem(12_000, None, 64, 256, torch.float32, metric="dot")),
        ('neighbors(x, 9, y=y, backend="cpu")', Problem(3_000, 60_000, 9, 128, torch.float32)),
        (
            'neighbors(x, 9, y=y, precision="float32", backend="cpu")',
            Problem(3_000, 60_000, 9, 128, torch.float32, precision="float32"),
        ),
        ('deduplicate(x, 0.9, backend="cpu")', Problem(40_000, None, 0, 128, torch.float32, kind="components")),
    ],
)
def test_memory_is_what_the_formula_says(call: str, problem: Problem) -> None:
    """At most the stated bytes, and two MiB for pages and stacks; and not less than half of them, or it is idle."""
    program = MEMORY.format(M=problem.M, N=problem.N or 64, D=problem.D, call=call)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    stated = CPU.memory(problem)
    assert stated / 2 <= int(done.stdout) <= stated + 2**21


# Size


def test_more_pairs_than_32_bits_count() -> None:
    x, y = lists.normal(50_000, 8), lists.normal(60_000, 8, 1)
    got = neighbors(x, 5, y=y, backend="cpu")
    rows = torch.tensor([0, 1, 21_000, 42_949, 42_950, 49_999])  # around pair number 2^31
    scores = oracle.neighbor_scores(x[rows], y)
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    assert np.array_equal(got.ids[rows].numpy(), ids)


@pytest.mark.full
def test_bytes_beyond_32_bits_are_addressed_by_strides() -> None:
    """Rows 2^20 bytes apart: the last begins beyond 2^31."""
    base = torch.zeros(2100, 2**19, dtype=torch.bfloat16)
    base[:, :8] = lists.normal(2100, 8).bfloat16()
    view = base[:, :8]
    a, b = neighbors(view, 5, backend="cpu"), neighbors(view.clone(), 5, backend="cpu")
    assert torch.equal(a.ids, b.ids) and torch.equal(a.scores, b.scores)


def test_rows_of_one_address_are_as_many_as_their_count() -> None:
    x = lists.normal(1, 6).expand(3000, 6)
    got = neighbors(x, 3, y=x, backend="cpu")
    assert bool((got.ids == torch.arange(3)).all())
