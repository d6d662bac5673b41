"""The compiled search as a guest of a process: threads, forks, Ctrl-C, several callers, memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from mrtkern import _dispatch
from mrtkern.ops.neighbors.deduplicate import deduplicate
from mrtkern.ops.neighbors.op import neighbors
from mrtkern.ops.neighbors.problem import Inputs, Problem
from tests.tools import lists, oracle, process

CPU = _dispatch.load("neighbors", "cpu")
pytestmark = pytest.mark.skipif(isinstance(CPU, str), reason=f"compiled kernels: {CPU}")
GIB = 2**30


def test_every_number_of_threads_gives_the_same_bits(threads: Any) -> None:
    """All calls with one answer: those of one thread are the reference's, test_neighbors.py says."""
    found: dict[int, list[str]] = {}
    for count in (1, 2, 4, 16):
        threads(count)
        runnable = [arguments for _, arguments in lists.calls() if lists.why_not("cpu", arguments) is None]
        answers = [neighbors(**arguments, backend="cpu") for arguments in runnable]
        kept = [deduplicate(rows(), 0.9, backend="cpu") for rows in lists.HARD.values()]
        found[count] = [lists.digest(answer) for answer in (*answers, *kept)]
    assert found[2] == found[1] and found[4] == found[1] and found[16] == found[1]


def test_float32_has_the_same_bits_for_every_number_of_threads(threads: Any) -> None:
    x, y = lists.normal(300, 40), lists.normal(900, 40, 1)
    found = set()
    for count in (1, 2, 4, 16):
        threads(count)
        found.add(lists.digest(neighbors(x, 20, y=y, precision="float32", backend="cpu")))
        found.add(lists.digest(neighbors(y, 20, precision="float32", backend="cpu")))
    assert len(found) == 2


@pytest.mark.timed
@pytest.mark.parametrize("kind", ["rectangle", "self graph", "deduplicate"])
def test_more_threads_than_cores_do_not_collapse(kind: str) -> None:
    x = lists.normal(3000, 64)
    call = {
        "rectangle": lambda: neighbors(x, 16, y=x, backend="cpu"),
        "self graph": lambda: neighbors(x, 16, backend="cpu"),
        "deduplicate": lambda: deduplicate(x, 0.6, backend="cpu"),
    }[kind]
    process.assert_more_threads_than_cores_do_not_collapse(call)


def test_workers_are_rebuilt_after_a_fork(threads: Any) -> None:
    """The parent's threads do not exist in the child. Kernels only: torch's own do not survive a fork either."""
    threads(4)
    inputs = Inputs(lists.normal(500, 16), k=5)
    expected = CPU.forward(inputs)[0].tolist()
    assert process.holds_in_a_fork(lambda: CPU.forward(inputs)[0].tolist() == expected)
    assert CPU.forward(inputs)[0].tolist() == expected


def test_eight_concurrent_callers_get_their_own_answers(threads: Any) -> None:
    threads(2)
    rows = [lists.normal(200 + 10 * i, 12, i) for i in range(8)]
    expected = [lists.digest(neighbors(x, 6, backend="cpu")) for x in rows]
    found: dict[int, list[str]] = {}

    def call(i: int) -> None:
        found[i] = [lists.digest(neighbors(rows[i], 6, backend="cpu")) for _ in range(20)]

    process.at_once(partial(call, i) for i in range(8))
    assert found == {i: [expected[i]] * 20 for i in range(8)}


def test_concurrent_callers_hear_of_their_own_progress_only() -> None:
    told: dict[int, list[float]] = {0: [], 1: []}
    x = lists.normal(2000, 16)
    process.at_once(partial(neighbors, x, 4, progress=told[i].append) for i in told)
    assert all(fractions == sorted(fractions) and fractions.count(1.0) == 1 for fractions in told.values())


def test_the_whole_is_heard_once_at_the_end() -> None:
    """A single block of rows, under way for a second: every list overflows with equal scores."""
    told: list[float] = []
    neighbors(torch.ones(16, 64), 4, y=torch.ones(1, 64).expand(400_000, 64), progress=told.append, backend="cpu")
    assert len(told) > 1 and told.index(1.0) == len(told) - 1


INTERRUPTED: dict[str, Callable[[torch.Tensor], Any]] = {
    "self graph": lambda x: neighbors(x, 10, backend="cpu"),
    "rectangle in float32": lambda x: neighbors(x, 10, y=x, precision="float32", backend="cpu"),
    "every list overflows": lambda x: neighbors(torch.ones_like(x), 10, backend="cpu"),
    "deduplicate": lambda x: deduplicate(x, 0.9, backend="cpu"),
}


def interrupted(name: str, count: int) -> Callable[[], Any]:
    torch.set_num_threads(count)
    x = torch.randn(100_000, 256)
    neighbors(x[:100], 2, backend="cpu")
    return lambda: INTERRUPTED[name](x)


@pytest.mark.timed
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", INTERRUPTED)
def test_ctrl_c_returns_within_half_a_second(name: str, count: int) -> None:
    process.assert_ctrl_c_returns_within_half_a_second(interrupted, name, count)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_callers_float_modes_change_nothing(backend: str) -> None:
    x = lists.normal(60, 8) * 1e-41
    expected = lists.digest(neighbors(x, 4, backend=backend))
    assert torch.set_flush_denormal(True)
    try:
        assert lists.digest(neighbors(x, 4, backend=backend)) == expected
    finally:
        torch.set_flush_denormal(False)


# Memory


def test_a_million_rows_fit_in_four_gib_beside_the_input() -> None:
    assert CPU.memory(Problem(10**6, None, 64, 384, torch.float32)) <= 4 * GIB
    assert CPU.memory(Problem(10**6, None, 0, 384, torch.float32, kind="components")) <= 4 * GIB


MEASURED: dict[str, tuple[Callable[..., Any], Problem]] = {
    "self graph": (
        lambda x, y: neighbors(x, 64, backend="cpu"),
        Problem(40_000, None, 64, 64, torch.float32),
    ),
    "products": (
        lambda x, y: neighbors(x, 64, metric="dot", backend="cpu"),
        Problem(12_000, None, 64, 256, torch.float32, metric="dot"),
    ),
    "rectangle": (
        lambda x, y: neighbors(x, 9, y=y, backend="cpu"),
        Problem(3_000, 60_000, 9, 128, torch.float32),
    ),
    "distances": (
        lambda x, y: neighbors(x, 64, metric="rbf", backend="cpu"),
        Problem(12_000, None, 64, 256, torch.float32, metric="rbf"),
    ),
    "rectangle in float32": (
        lambda x, y: neighbors(x, 9, y=y, precision="float32", backend="cpu"),
        Problem(3_000, 60_000, 9, 128, torch.float32, precision="float32"),
    ),
    "deduplicate": (
        lambda x, y: deduplicate(x, 0.9, backend="cpu"),
        Problem(40_000, None, 0, 128, torch.float32, kind="components"),
    ),
}


def measured(name: str) -> Callable[[], Any]:
    call, problem = MEASURED[name]
    torch.set_num_threads(2)
    x, y = torch.randn(problem.M, problem.D), torch.randn(problem.N or 64, problem.D)
    call(x[:64], y[:64])
    return lambda: call(x, y)


@process.needs_peak
@pytest.mark.parametrize("name", MEASURED)
def test_memory_is_what_the_formula_says(name: str, threads: Any) -> None:
    """At most the stated bytes, and two MiB for pages and stacks; and not less than half of them, or it is idle."""
    threads(2)
    stated = CPU.memory(MEASURED[name][1])
    assert stated / 2 <= process.peak(measured, name) <= stated + 2**21


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
