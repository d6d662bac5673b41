"""cross_entropy on the compiled kernels: against the reference, on every path, in every tail, within its memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mrtkern.ops.cross_entropy.op import cross_entropy
from mrtkern.ops.cross_entropy.problem import Case
from tests.tools import oracle, process
from tests.tools.losses import (
    KERNEL_CASES,
    NARROW,
    assert_bounded,
    details_of,
    every,
    needs_cpu_backend,
    rows,
    with_gradient,
)

# Against the reference


@needs_cpu_backend
@every(KERNEL_CASES)
def test_cpu_kernel_is_within_the_bound_of_its_sums(case: Case) -> None:
    inputs = case.make_inputs()
    got, same = (details_of(inputs, backend=backend) for backend in ("cpu", "reference"))
    assert_bounded(got, with_gradient(inputs, backend="cpu")[1], inputs)
    assert torch.equal(got.response_tokens, same.response_tokens)
    assert got.accuracy == same.accuracy


@needs_cpu_backend
@pytest.mark.parametrize("dtype", NARROW)
def test_cpu_kernel_of_realistic_rows_keeps_five_digits(dtype: torch.dtype) -> None:
    inputs = rows(64, 32000, dtype)
    weight = torch.randn(64, generator=torch.Generator().manual_seed(1))
    loss = cross_entropy(**inputs, token_weight=weight, backend="cpu")
    truth = cross_entropy(inputs["logits"].double(), inputs["targets"], token_weight=weight)
    assert abs(float(loss) / float(truth) - 1) < oracle.LOSS


@needs_cpu_backend
def test_cpu_kernel_exponential_is_right_over_its_whole_range() -> None:
    """Every 257th float32 from -0 to -90, in rows that also hold 0 twice: the gradient over that of 0 is exp."""
    last = int(torch.tensor(90.0).view(torch.int32))
    x = -torch.arange(0, last, 257, dtype=torch.int32).view(torch.float32)
    for part in x.split(2**20):
        z = torch.cat([torch.zeros(2), part])[None]
        _, gradient = with_gradient(
            {"logits": z, "targets": torch.tensor([0]), "token_weight": torch.tensor([2.0**21])}, backend="cpu"
        )
        got = gradient[0, 2:].double() / gradient[0, 1].double()
        truth = part.double().exp()
        is_normal = truth >= torch.finfo(torch.float32).smallest_normal
        error = (got / truth - 1).abs()[is_normal]
        assert float(error.max(initial=0) if not error.numel() else error.max()) <= (
            oracle.EXPONENTIAL + 1
        ) * oracle.roundoff(torch.float32)
        assert not got[part < -87.34].any()


@needs_cpu_backend
@every(KERNEL_CASES)
def test_cpu_kernel_gives_the_same_bits_for_every_number_of_threads(case: Case, threads: Any) -> None:
    T = 3 * case.problem.T + 2**17 // case.problem.V  # enough for several threads
    count = None if case.problem.num_targets is None else 2 * T
    inputs = replace(case.problem, T=T, num_targets=count).make_inputs()
    results = []
    for number in (1, 2, 4):
        threads(number)
        results.append(with_gradient(inputs, backend="cpu"))
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


@needs_cpu_backend
def test_concurrent_callers_get_their_own_answers(threads: Any) -> None:
    threads(2)
    inputs = {**rows(90, 3000), "token_weight": torch.rand(90)}
    expected = with_gradient(inputs, backend="cpu")
    found: list[Any] = []
    process.at_once([lambda: found.extend(with_gradient(inputs, backend="cpu") for _ in range(5))] * 4)
    assert len(found) == 20
    assert all(torch.equal(loss, expected[0]) and torch.equal(gradient, expected[1]) for loss, gradient in found)


@needs_cpu_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cpu_kernel_rounds_like_torch(dtype: torch.dtype) -> None:
    """With one class beside the target the gradient is w p, rounded once: all magnitudes, subnormals and infinity."""
    weight = torch.logspace(-30, 38, 4000) * torch.tensor([1.0, -1.0]).repeat(2000)
    z = torch.zeros(4000, 2, dtype=dtype)
    _, gradient = with_gradient(
        {"logits": z, "targets": torch.zeros(4000, dtype=torch.int64), "token_weight": weight}, backend="cpu"
    )
    assert torch.equal(gradient, torch.stack([-weight / 2, weight / 2], 1).to(dtype))


@needs_cpu_backend
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("V", [1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 2047, 2048, 2049, 2080])
def test_cpu_kernel_tails_are_whole(dtype: torch.dtype, V: int) -> None:
    """Around every register and the block; nothing beyond a row is read or written."""
    big = rows(5, V + 64, dtype)["logits"]
    big[:, V:] = torch.nan
    targets = torch.full((5,), V - 1)
    targets[2] = -100
    inputs = {"logits": big[:, :V], "targets": targets}
    _, gradient = with_gradient(inputs, backend="cpu")
    assert_bounded(details_of(inputs, backend="cpu"), gradient, inputs)
    before = big.clone()
    cross_entropy(big[:, :V], targets, inplace=True, backend="cpu")
    assert torch.equal(big[:, :V], gradient)
    assert torch.equal(big[:, V:].isnan(), before[:, V:].isnan())


@needs_cpu_backend
def test_more_than_two_to_the_31_logits() -> None:
    """By a stride of 0: 70,000 rows of one; and in place by a large stride, in pages that nobody touches."""
    V = 32768
    row = rows(1, V, torch.bfloat16)["logits"]
    targets = torch.arange(70_000) % V
    found = cross_entropy(row.expand(70_000, V), targets, backend="cpu")
    truth = row.double().logsumexp(1)[0] - row.double()[0, targets].mean()
    oracle.assert_summed(found, truth, oracle.cross_entropy_steps(), 20.0)
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (2**32 + 4 * V)), dtype=torch.bfloat16)
    logits = memory.as_strided((3, V), (2**31, 1))
    logits.copy_(row)
    _, expected = with_gradient({"logits": row.expand(3, V), "targets": targets[:3]}, backend="cpu")
    cross_entropy(logits, targets[:3], inplace=True, backend="cpu")
    assert torch.equal(logits, expected)


def measured(dtype: torch.dtype, inplace: bool) -> Callable[[], Any]:
    torch.set_num_threads(2)

    def call(T: int, V: int = 128256) -> Callable[[], Any]:
        z, y = torch.randn(T, V).to(dtype).requires_grad_(), torch.randint(0, V, (T,))
        if inplace:
            return lambda: cross_entropy(z.detach(), y, inplace=True)
        return lambda: torch.autograd.grad(cross_entropy(z, y), z)

    call(64)()
    return call(512)


@needs_cpu_backend
@process.needs_peak
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_one_gradient_or_in_place_a_row_per_thread(dtype: torch.dtype) -> None:
    """Beyond the gradient, which is the result: a twentieth of it; in place two MiB."""
    nbytes = 512 * 128256 * dtype.itemsize
    assert process.peak(measured, dtype, False) <= 0.05 * nbytes
    assert process.peak(measured, dtype, True) <= 2 * 2**20
