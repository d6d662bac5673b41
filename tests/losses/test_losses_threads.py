"""The losses as guests of a process: forks after use, Ctrl-C, several callers, float modes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mrtkern import cross_entropy, linear_cross_entropy, linear_log_prob
from mrtkern.ops.linear_cross_entropy.problem import Problem
from tests.tools import process
from tests.tools.linear_heads import CPU as LINEAR_CPU
from tests.tools.linear_heads import needs_cpu_backend
from tests.tools.losses import CPU, rows

pytestmark = needs_cpu_backend


def head(T: int, D: int, V: int) -> dict[str, Any]:
    inputs = Problem(T, D, V, *(torch.float32,) * 3).make_inputs()
    return {name: inputs[name] for name in ("hidden", "weight", "targets")}


# Forks


class Losses(torch.utils.data.Dataset[float]):
    """Scores in the worker that reads, as filters of data do."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> float:
        logits, given = rows(40, 3000, seed=index), head(20, 16, 3000)
        return float(cross_entropy(**logits, backend="cpu")) + float(linear_cross_entropy(**given, backend="cpu"))


def test_a_forked_dataloader_worker_computes_losses(threads: Any) -> None:
    threads(4)
    expected = [Losses()[i] for i in range(6)]
    loader = torch.utils.data.DataLoader(
        Losses(), num_workers=2, batch_size=None, multiprocessing_context="fork", timeout=process.LONGEST
    )
    assert list(loader) == expected


def test_workers_are_rebuilt_after_a_fork(threads: Any) -> None:
    """The parent's threads do not exist in the child. Kernels only: torch's own do not survive a fork either."""
    threads(4)
    inputs = rows(90, 3000)
    options = {"token_weight": None, "target_offsets": None, "gradient": None, "wants_details": False}
    linear = {**options, "token_weight": torch.ones(90)}

    def losses() -> list[float]:
        return [
            float(CPU.forward(**inputs, **options, options=CPU.Options()).loss),
            float(LINEAR_CPU.forward(inputs["logits"], inputs["targets"], options=CPU.Options(), **linear).loss),
        ]

    expected = losses()
    assert process.holds_in_a_fork(lambda: losses() == expected)
    assert losses() == expected


# Ctrl-C


def of_logits(inplace: bool) -> Callable[[], Any]:
    """A second of work: a row of 32,000 takes about 10 us, and every page of a new gradient as long as its numbers."""
    inputs = rows(1, 32_000, torch.bfloat16)
    logits = inputs["logits"].expand(100_000, 32_000)
    if inplace:
        logits = torch.empty(20_000, 32_000, dtype=torch.bfloat16).copy_(logits[:20_000])
    targets = inputs["targets"].expand(len(logits)).contiguous()
    return partial(cross_entropy, logits, targets, inplace=inplace, softcap=30.0, return_details=True,
                   offsets=torch.tensor([0, len(logits)]), backend="cpu")  # fmt: skip


def of_a_head(T: int, D: int, V: int) -> Callable[[], Any]:
    given = head(T, D, V)

    def train() -> None:
        loss = linear_cross_entropy(**given, backend="cpu")
        assert isinstance(loss, Tensor)
        loss.backward()

    return train


def log_prob_backward(T: int, D: int, V: int) -> Callable[[], Any]:
    given = head(T, D, V)
    logp, entropy = linear_log_prob(**given, backend="cpu")
    total = logp.sum() + entropy.sum()
    return total.backward


LONG: dict[str, tuple[Callable[..., Callable[[], Any]], tuple[Any, ...]]] = {
    "logits": (of_logits, (False,)),
    "logits in place": (of_logits, (True,)),
    "many rows of a head": (of_a_head, (4096, 1024, 32_000)),
    "a wide head": (of_a_head, (1024, 8192, 16_000)),
    "log-probabilities, backward": (log_prob_backward, (1024, 1024, 32_000)),
}


def long(name: str, count: int) -> Callable[[], Any]:
    torch.set_num_threads(count)
    cross_entropy(**rows(4, 100), backend="cpu")
    linear_cross_entropy(**head(4, 8, 100), backend="cpu")
    prepare, arguments = LONG[name]
    return prepare(*arguments)


@pytest.mark.timed
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_returns_within_half_a_second(name: str, count: int) -> None:
    process.assert_ctrl_c_returns_within_half_a_second(long, name, count)


# Callers


def test_concurrent_callers_of_a_head_get_their_own_answers(threads: Any) -> None:
    threads(2)
    given = [head(30 + i, 16, 500) for i in range(4)]

    def gradient(i: int) -> Tensor:
        loss = linear_cross_entropy(**given[i], backend="cpu")
        return torch.autograd.grad(loss, given[i]["weight"])[0]

    expected, found = [gradient(i) for i in range(4)], {}
    process.at_once(partial(lambda i: found.update({i: [gradient(i) for _ in range(5)]}), i) for i in range(4))
    assert all(torch.equal(value, expected[i]) for i in range(4) for value in found[i])


def test_the_callers_float_modes_do_not_reach_the_kernels() -> None:
    inputs = {"logits": torch.linspace(-95, 0, 3000).expand(3, 3000), "targets": torch.tensor([0, 1, 2])}
    given = {**inputs, "token_weight": torch.tensor([1e-37, 1e-42, -1e-40]), "backend": "cpu"}

    def bits() -> list[int]:
        logits = inputs["logits"].clone().requires_grad_()
        loss = cross_entropy(**{**given, "logits": logits})
        assert isinstance(loss, Tensor)
        return torch.autograd.grad(loss, logits)[0].view(torch.int32).tolist()

    expected = bits()
    assert torch.set_flush_denormal(True)
    try:
        assert bits() == expected
    finally:
        torch.set_flush_denormal(False)
