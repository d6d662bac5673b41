"""Whatever mode of floating-point arithmetic the caller is in, results have the same bits, and the mode stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from mrtkern import _dispatch, cross_entropy, facility_location, neighbors, similarity

C = _dispatch.load("similarity", "cpu")
TINY = torch.finfo(torch.float32).tiny
pytestmark = [
    pytest.mark.skipif(isinstance(C, str), reason=f"compiled kernels: {C}"),
    pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush subnormal numbers"),
]
Call = Callable[[], list[Tensor]]


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32) * scale


@contextmanager
def mode(flushes: bool, threads: int) -> Iterator[None]:
    """torch's own mode; it must be the same at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(flushes)
    try:
        yield
        assert bool(torch.tensor([TINY], dtype=torch.float32) / 2 == 0) == flushes
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


def products() -> Call:
    """Products and a gradient below the smallest normal number."""
    x, upstream = normal(40, 17, scale=2.0**-64).requires_grad_(), torch.full((40, 40), 2.0**-66)

    def call() -> list[Tensor]:
        s = similarity(x, metric="dot", backend="cpu")
        return [s.detach(), *torch.autograd.grad(s, x, upstream)]

    assert all((value.abs() < TINY).any() for value in call())
    return call


def cosines() -> Call:
    """Of rows that consist of subnormal numbers."""
    x, offsets = normal(48, 33, scale=2.0**-130), torch.arange(0, 49, 16)
    return lambda: [similarity(x, offsets=offsets, backend="cpu")]


def lists() -> Call:
    x = normal(70, 9, scale=2.0**-130)
    return lambda: list(vars(neighbors(x, 5, backend="cpu")).values())[:2]


def picks() -> Call:
    x, offsets, quality = normal(64, 12, scale=2.0**-130), torch.arange(0, 65, 16), normal(64).abs() * 2.0**-90

    def call() -> list[Tensor]:
        found = facility_location(x, 4, offsets=offsets, quality=quality, backend="cpu")
        return [found.ids, found.gains]

    return call


def losses() -> Call:
    z, weight = normal(30, 50, scale=40.0).requires_grad_(), torch.full((30,), 2.0**-100)

    def call() -> list[Tensor]:
        loss = cross_entropy(z, torch.arange(30), token_weight=weight, backend="cpu")
        return [loss.detach(), *torch.autograd.grad(loss, z)]

    assert ((call()[1].abs() < TINY) & (call()[1] != 0)).any()
    return call


@pytest.mark.parametrize("make", [products, cosines, lists, picks, losses])
def test_the_cpu_computes_the_same_bits_in_every_mode_of_its_caller(make: Callable[[], Call]) -> None:
    call = make()
    expected = call()
    for flushes, threads in ((True, 1), (True, 2), (True, 8), (False, 1), (False, 8)):
        with mode(flushes, threads):
            found = [value.view(torch.int32) for value in call()]
        assert all(torch.equal(one, other.view(torch.int32)) for one, other in zip(found, expected, strict=True))
