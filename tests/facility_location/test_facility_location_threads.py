"""The compiled kernels as guests of a process: forks, Ctrl-C, several callers, float modes and memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mrtkern import _dispatch
from mrtkern.ops.facility_location.ground import Groups
from mrtkern.ops.facility_location.op import facility_location
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import Rule
from mrtkern.select import METHODS, select_responses
from tests.tools import process, selections

CPU = _dispatch.load("facility_location", "cpu")
pytestmark = pytest.mark.skipif(isinstance(CPU, str), reason="mrtkern._C is not installed")


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
        Prompts(), num_workers=2, batch_size=None, multiprocessing_context="fork", timeout=process.LONGEST
    )
    assert list(loader) == [expected] * 6
    assert _select() == expected


def test_workers_are_rebuilt_after_a_fork(threads):
    """The parent's threads do not exist in the child. Kernels only: torch's own do not survive a fork either."""
    x, offsets, _ = selections.inputs(selections.SMALL[0])
    k, key = offsets.diff().clamp(max=3), torch.arange(len(offsets) - 1)
    ground = Groups(x=x, metric="shifted_cosine", offsets=offsets, largest=int(offsets.diff().max()))
    rule = Rule(k=k, total=int(k.sum()), group_key=key, fill="index", seed=0)

    def ids() -> list[int]:
        return CPU.forward(Problem.of(ground, rule), ground, rule).ids.tolist()

    threads(4)
    expected = ids()
    assert process.holds_in_a_fork(lambda: ids() == expected)
    assert ids() == expected


def test_eight_concurrent_callers_get_their_own_answers(threads):
    threads(2)
    expected, found = _select(), []
    process.at_once([lambda: found.extend(_select() for _ in range(20))] * 8)
    assert found == [expected] * 160


def groups_of_4096(groups: int, count: int) -> Callable[[], Any]:
    torch.set_num_threads(count)
    x = torch.randn(4096, 4096)
    x, offsets = x.repeat(groups, 1), torch.arange(groups + 1) * 4096
    facility_location(x[:10], 2, offsets=torch.tensor([0, 10]), backend="cpu")
    return lambda: facility_location(x, 4000, offsets=offsets, backend="cpu")


@pytest.mark.timed
@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_returns_within_half_a_second(count):
    process.assert_ctrl_c_returns_within_half_a_second(groups_of_4096, 3, count)


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


@pytest.mark.timed
def test_more_threads_than_cores_do_not_collapse():
    x = torch.randn(160 * 64, 128)
    offsets = torch.arange(161) * 64
    process.assert_more_threads_than_cores_do_not_collapse(
        lambda: facility_location(x, 16, offsets=offsets, backend="cpu")
    )


def groups_of_equal_size(B: int, N: int, method: str) -> Callable[[], Any]:
    warnings.simplefilter("ignore")  # quality_diversity says that it runs dry
    x, offsets, reward = torch.randn(B * N, 8), torch.arange(B + 1) * N, torch.rand(B * N)
    select_responses(x[: 4 * N], offsets[:5], 4, method=method, reward=reward[: 4 * N])
    return lambda: select_responses(x, offsets, 4, method=method, reward=reward)


@process.needs_peak
@pytest.mark.parametrize(
    ("B", "N"),
    [
        (75_000, 4),  # both of more rows than are worked on at a time, twice
        (1_200, 256),
        pytest.param(1_000_000, 4, marks=pytest.mark.full),
        pytest.param(6_000, 256, marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_memory_beyond_outputs_stays_under_64_mib(method, B, N):
    """Of prompts of 4 responses and of 256: beyond outputs nothing grows with the number of prompts."""
    assert process.peak(groups_of_equal_size, B, N, method) <= 64 * 2**20


def a_large_group() -> Callable[[], Any]:
    torch.set_num_threads(1)
    x, offsets = torch.randn(4096, 1024), torch.tensor([0, 4096])
    facility_location(x[:64], 4, offsets=torch.tensor([0, 64]), backend="cpu")
    return lambda: facility_location(x, 64, offsets=offsets, backend="cpu")


@process.needs_peak
def test_memory_of_a_large_group_is_what_the_docstring_says():
    """The stated bytes, and a MiB for results and pages; and not less than half of them, or the formula is idle."""
    stated = CPU.groups.memory(Problem(Groups, 4096, 1024, 1, torch.float32, "cpu", 4096), 1)
    assert stated / 2 <= process.peak(a_large_group) <= stated + 2**20


def test_what_cannot_fit_is_refused_up_front():
    x = torch.zeros(1, 1).expand(4096, 10**10)
    with pytest.raises(MemoryError, match=r"facility_location: x must leave room for [0-9]{15} bytes"):
        facility_location(x, 2)
