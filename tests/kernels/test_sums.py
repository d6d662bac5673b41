"""What torch would share out among its threads, it does not: the same bits for every number of them, everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mrtkern import _sums, cross_entropy, linear_log_prob, neighbors, variance_components
from tests.tools import bounds, oracle

SHARED = 100_003  # numbers, of which torch shares out a sum; odd


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def of_logits(dtype: torch.dtype, T: int, V: int) -> tuple[Tensor, ...]:
    """Loss, gradient and details."""
    logits = normal(T, V, dtype=dtype).requires_grad_()
    targets, offsets = torch.arange(T) % V, torch.arange(T + 1)
    found = cross_entropy(
        logits, targets, label_smoothing=0.1, return_details=True, offsets=offsets, prompt=torch.arange(T) % 3,
        backend="reference",
    )  # fmt: skip
    gradient = torch.autograd.grad(found.loss, logits)
    return found.loss, *gradient, found.prompt_loss, found.within_variance, found.between_variance, found.entropy


def of_a_head() -> tuple[Tensor, ...]:
    hidden, weight = normal(1, 4).requires_grad_(), normal(SHARED, 4)
    logp, entropy = linear_log_prob(hidden, weight, torch.tensor([7]), backend="reference")
    return logp, entropy


def of_components() -> tuple[Tensor, ...]:
    values, offsets = normal(SHARED, dtype=torch.float64).mul(3).exp(), torch.tensor([0, 5, 70_000, SHARED])
    found = variance_components(values, offsets)
    return (torch.tensor([found.within, found.between_raw], dtype=torch.float64),)


def of_lists() -> tuple[Tensor, ...]:
    found = neighbors(normal(64, 384), 5, precision="float32", backend="reference")
    return found.ids, found.scores


CALLS: dict[str, Callable[[], tuple[Tensor, ...]]] = {
    "a row of many classes": lambda: of_logits(torch.float32, 1, SHARED),
    "many rows": lambda: of_logits(torch.float32, SHARED, 3),
    "many rows in float64": lambda: of_logits(torch.float64, SHARED, 3),
    "a row of a head": of_a_head,
    "components of many rows": of_components,
    "lists in float32": of_lists,
}


@pytest.mark.parametrize("name", CALLS)
def test_same_bits_for_every_number_of_threads(name: str, threads: Any) -> None:
    found = []
    for count in (1, 2, 3, 8):
        threads(count)
        found.append(CALLS[name]())
    for other in found[1:]:
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("n", [0, 1, _sums.BLOCK, _sums.BLOCK + 1, 3 * _sums.BLOCK, _sums.BLOCK**2 // 8 + 5])
def test_a_sum_is_that_of_its_numbers(n: int) -> None:
    """None, one, a block, one more, blocks without a rest, more blocks than a block holds half of."""
    x = normal(2, n)
    truth = x.double().sum(1)
    bound = bounds.roundings(n) * oracle.roundoff(torch.float32) * x.double().abs().sum(1)
    oracle.assert_within(_sums.along_rows(x), truth, 2 * bound)
    assert torch.equal(_sums.total(x[0]), _sums.along_rows(x)[0])
