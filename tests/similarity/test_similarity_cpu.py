"""similarity's compiled kernels against float64 truth: every layout, metric, type, instruction set and thread count."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mrtkern import _dispatch
from mrtkern.ops.similarity.op import similarity
from mrtkern.ops.similarity.problem import CASES, METRICS, Case, Packed, Problem
from tests.tools import bounds, oracle, process

CPU = _dispatch.load("similarity", "cpu")
pytestmark = pytest.mark.skipif(isinstance(CPU, str), reason=f"compiled kernels: {CPU}")

TEST_CASES = [case for case in CASES if "test" in case.tags and case.problem.dtype != torch.float64]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (M, N, D), N None: with itself. Rows around a panel of 16 and around 32, up to which groups are not packed; features
# around a panel and around 64, from which they are not; blocks of 256 others; sizes that all threads share.
SIZES = [
    (1, 1, 1), (15, 17, 16), (16, 16, 63), (17, 15, 65), (31, 33, 15), (257, 255, 17), (900, 500, 33),
    (1, None, 1), (15, None, 64), (16, None, 63), (17, None, 65), (31, None, 80), (32, None, 64), (33, None, 64),
    (257, None, 15), (700, None, 33),
]  # fmt: skip

every_metric = pytest.mark.parametrize("metric", METRICS)
every_case = pytest.mark.parametrize("case", TEST_CASES, ids=lambda case: case.name)
every_size = pytest.mark.parametrize(("M", "N", "D"), SIZES)


def run(inputs: dict[str, Any], backend: str, upstream: Tensor) -> list[Tensor]:
    """Scores and the gradients of x and y."""
    rows = {name: inputs[name].detach().clone().requires_grad_() for name in ("x", "y") if name in inputs}
    s = similarity(**{**inputs, **rows}, backend=backend)
    return [s.detach(), *torch.autograd.grad(s, list(rows.values()), upstream.to(s.dtype))]


def assert_bounded(inputs: dict[str, Any]) -> None:
    """Scores and gradients are within the bound of their sums."""
    generator, shape = torch.Generator().manual_seed(3), similarity(**inputs, backend="cpu").shape
    upstream = torch.randn(shape, generator=generator).to(inputs["x"].dtype)
    for got, truth in zip(run(inputs, "cpu", upstream), bounds.similarity(upstream, **inputs), strict=True):
        bounds.assert_bounded(got, truth)


@every_metric
@every_case
def test_cases_are_within_the_bound_of_their_sums(case: Case, metric: str) -> None:
    assert_bounded(replace(case.problem, metric=metric, gamma=0.05).make_inputs())


@every_metric
@every_size
def test_sizes_are_within_the_bound_of_their_sums(M: int, N: int | None, D: int, metric: str) -> None:
    assert_bounded(Problem("dense", 1, M, N, D, torch.float32, metric=metric, gamma=1 / D).make_inputs())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [None, 20])
def test_batches_are_within_the_bound_of_their_sums(N: int | None, dtype: torch.dtype) -> None:
    assert_bounded(Problem("batched", 5, 17, N, 70, dtype).make_inputs())


def digests(problem: Problem) -> list[Tensor]:
    inputs = problem.make_inputs()
    upstream = torch.randn(problem.pairs, generator=torch.Generator().manual_seed(3))
    return run(inputs, "cpu", upstream.view(similarity(**inputs, backend="cpu").shape))


@pytest.mark.parametrize("metric", ["cosine", "rbf"])
@pytest.mark.parametrize("N", [None, 300])
def test_every_number_of_threads_gives_the_same_bits(N: int | None, metric: str, threads: Any) -> None:
    """A matrix that is shared when there are few of them, and a batch of which each thread takes its own."""
    dense = Problem("dense", 1, 700, N, 40, torch.float32, metric=metric, gamma=0.1)
    batch = replace(dense, kind="batched", B=70, M=90, N=None if N is None else 33)
    long = replace(dense, kind="batched", B=17, M=1100, N=None if N is None else 1030, D=2)  # beyond 64 panels
    for problem in (dense, batch, long):
        found = []
        for count in (1, 2, 4, 16):
            threads(count)
            found.append(digests(problem))
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_matrix_with_itself_is_symmetric_to_the_bit() -> None:
    for M, D in ((31, 70), (700, 40)):
        s = similarity(torch.randn(M, D), backend="cpu")
        assert torch.equal(s, s.T)


def test_a_matrix_with_itself_is_what_it_is_with_a_copy_of_itself() -> None:
    x = torch.randn(700, 40)
    assert torch.equal(similarity(x, backend="cpu"), similarity(x, x.clone(), backend="cpu"))


def test_groups_may_differ_in_size_by_orders() -> None:
    """Empty, single, small, one beyond all tiles: each takes another path."""
    sizes = torch.tensor([0, 1, 20, 2100, 0, 33, 3])
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    x = torch.randn(int(sizes.sum()), 72)
    s = similarity(x, offsets=offsets, backend="cpu").split(sizes.square().tolist())
    for part, rows in zip(s, x.split(sizes.tolist()), strict=True):
        dense = similarity(rows, backend="cpu") if len(rows) else torch.empty(0)
        assert torch.equal(part, dense.flatten())


@pytest.mark.parametrize("D", [1, 8192])
def test_few_and_many_features_are_summed_within_the_bound(D: int) -> None:
    x, y = torch.randn(18, D), torch.randn(5, D)
    for other in (None, y):
        truth = oracle.similarity(x, other)
        oracle.assert_summed(similarity(x, other, backend="cpu"), truth.value, oracle.similarity_steps(D), 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [20, 40])  # not packed, packed
@pytest.mark.parametrize("size", ["largest", "smallest"])
def test_lengths_neither_overflow_nor_vanish(size: str, rows: int, dtype: torch.dtype) -> None:
    """Rows of the largest numbers, of subnormals, of both zeros, and ordinary ones, in one group."""
    info = torch.finfo(dtype)
    scale = info.max / 2 if size == "largest" else info.smallest_normal * info.eps
    signs = torch.randint(0, 2, (rows, 70)) * 2.0 - 1
    x = (signs * 2 * scale).to(dtype)
    x[::3] = signs[::3].to(dtype)
    x[1] = 0.0
    x[4] = -0.0
    offsets = torch.tensor([0, rows])
    truth = oracle.similarity(x, offsets=offsets)
    s = similarity(x, offsets=offsets, backend="cpu")
    oracle.assert_summed(s, truth.value, oracle.similarity_steps(70), 1.0)
    assert not s.view(rows, rows)[[1, 4]].any()


@pytest.mark.parametrize("shape", [(50, 70), (4, 12, 70), (900, 70)])
@pytest.mark.parametrize("name", ["x", "y"])
def test_a_row_that_is_not_finite_is_named(name: str, shape: tuple[int, ...]) -> None:
    x, y = torch.ones(shape), torch.ones(shape)
    rows = (x if name == "x" else y).view(-1, 70)
    rows[37, 3], rows[41, 69] = -torch.inf, torch.nan
    with pytest.raises(ValueError, match=f"^similarity: {name} must be finite, got -inf in row 37$"):
        similarity(x, y, backend="cpu")
    if name == "x":
        with pytest.raises(ValueError, match=r"^similarity: x must be finite, got -inf in row 37$"):
            similarity(x, backend="cpu")


@pytest.mark.parametrize("shape", [(20, 70), (700, 33), (3, 20, 70)])
def test_strides_do_not_matter(shape: tuple[int, ...]) -> None:
    dense = torch.randn(shape)
    *outer, M, D = shape
    every_second = torch.empty(*outer, 2 * M, 2 * D)[..., ::2, ::2].copy_(dense)
    turned = dense.mT.contiguous().mT
    batch_last = dense.movedim(0, -1).contiguous().movedim(-1, 0)
    upstream = torch.randn(*outer, M, M)
    expected = run({"x": dense}, "cpu", upstream)
    for view in (every_second, turned, batch_last):
        x = view.detach().requires_grad_()
        s = similarity(x, backend="cpu")
        (gradient,) = torch.autograd.grad(s, x, upstream.mT.contiguous().mT)
        assert torch.equal(s, expected[0])
        assert torch.equal(gradient, expected[1])
    same = dense[..., :1, :].expand(shape)
    assert torch.equal(similarity(same, backend="cpu"), similarity(same.contiguous(), backend="cpu"))


def test_numpy_arrays_of_negative_strides_never_arrive() -> None:
    with pytest.raises(ValueError, match="negative"):
        torch.from_numpy(np.ones((4, 3), np.float32)[::-1])


def test_rows_at_an_odd_address_are_refused_by_the_kernels_and_run_by_the_reference() -> None:
    x = torch.randn(6, 5)
    odd = torch.frombuffer(bytearray(b"\0" + x.numpy().tobytes()), dtype=torch.float32, offset=1).view(6, 5)
    assert odd.data_ptr() % 4
    with pytest.raises(ValueError, match="cannot run this: needs rows that begin at a multiple of the size"):
        similarity(odd, backend="cpu")
    assert torch.equal(similarity(odd), similarity(x, backend="reference"))


def test_rows_may_lie_further_apart_than_two_to_the_31_elements() -> None:
    """In a mapping of which only the pages that hold rows exist."""
    apart = 2**31 + 7
    with mmap.mmap(-1, 2 * (2 * apart + 70)) as memory:
        far = torch.frombuffer(memory, dtype=torch.bfloat16, count=2 * apart + 70).as_strided((3, 70), (apart, 1))
        far.copy_(torch.randn(3, 70))
        batch = far.as_strided((3, 1, 70), (apart, apart, 1))
        s, t = similarity(far, backend="cpu"), similarity(batch, far[:1].expand(3, 2, 70), backend="cpu")
        expected = similarity(far.contiguous(), backend="cpu")
        del far, batch
    assert torch.equal(s, expected)
    assert torch.equal(t[:, 0, 0], expected[:, 0])


@pytest.mark.full
def test_results_may_hold_more_than_two_to_the_31_scores() -> None:
    """46,500 rows: 4.3 GB of bfloat16."""
    x = torch.randn(46_500, 2).bfloat16()
    s = similarity(x, backend="cpu")
    for rows in (slice(0, 3), slice(46_180, 46_190), slice(46_497, 46_500)):  # before, around and beyond 2**31
        truth = oracle.similarity(x[rows], x)
        oracle.assert_summed(s[rows], truth.value, oracle.similarity_steps(2), 1.0)


def test_a_forked_child_computes_too(threads: Any) -> None:
    """Kernels only: torch's own threads, which fill new memory in tests, do not survive a fork."""
    x = Problem("dense", 1, 700, None, 40, torch.float32).make_inputs()["x"]
    threads(4)
    torch.utils.deterministic.fill_uninitialized_memory = False
    expected = CPU.forward(x, None, None, "cosine", 1.0).numpy().tobytes()
    assert process.holds_in_a_fork(lambda: CPU.forward(x, None, None, "cosine", 1.0).numpy().tobytes() == expected)


def test_eight_concurrent_callers_get_their_own_answers(threads: Any) -> None:
    threads(2)
    matrices = [torch.randn(400, 40) for _ in range(8)]
    expected = [similarity(x, backend="cpu") for x in matrices]
    wrong: list[int] = []

    def call(i: int) -> None:
        wrong.extend(i for _ in range(10) if not torch.equal(similarity(matrices[i], backend="cpu"), expected[i]))

    process.at_once(partial(call, i) for i in range(8))
    assert wrong == []


def test_the_callers_float_modes_do_not_reach_the_kernels() -> None:
    x = torch.randn(20, 70) * 1e-41
    expected = similarity(x, backend="cpu")
    assert torch.set_flush_denormal(True)
    try:
        assert torch.equal(similarity(x, backend="cpu"), expected)
    finally:
        torch.set_flush_denormal(False)


def interrupted(kind: str, count: int) -> Callable[[], Any]:
    torch.set_num_threads(count)
    x = torch.ones(16384, 8192, dtype=torch.bfloat16)
    CPU.forward(x[:1000], None, None, "cosine", 1.0)
    if kind == "batched":
        x = x.view(32, 512, 8192)
    if kind == "gradient":
        grad = torch.ones(16384, 16384, dtype=torch.bfloat16)
        return lambda: CPU.backward(grad, x, None, None, "cosine", 1.0, True, False)
    return lambda: CPU.forward(x, None, None, "cosine", 1.0)


@pytest.mark.timed
@pytest.mark.parametrize("kind", ["dense", "gradient", "batched"])
@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.full), 2])
def test_ctrl_c_returns_within_half_a_second(count: int, kind: str) -> None:
    process.assert_ctrl_c_returns_within_half_a_second(interrupted, kind, count)


@pytest.mark.timed
@pytest.mark.parametrize("problem", [Problem("dense", 1, 1500, None, 128, torch.float32), TEST_CASES[0].problem])
def test_more_threads_than_cores_do_not_collapse(problem: Problem) -> None:
    inputs = problem.make_inputs()

    def call() -> None:
        for _ in range(3):
            similarity(**inputs, backend="cpu")

    process.assert_more_threads_than_cores_do_not_collapse(call)


# The largest matrices and groups, which decide what threads keep.
MEASURED = {
    "dense with itself": Problem("dense", 1, 4096, None, 1024, torch.float32),
    "dense": Problem("dense", 1, 3000, 2000, 1024, torch.float32),
    "batched": Problem("batched", 64, 256, None, 1024, torch.float32),
    "packed": Problem("packed", 2000, 60000, None, 128, torch.float32, sizes=(30,) * 2000),
}


def measured(problem: Problem) -> Callable[[], Any]:
    inputs = problem.make_inputs()
    x, y, offsets = inputs["x"].detach(), inputs.get("y"), inputs.get("offsets")
    y = None if y is None else y.detach()
    groups, cut = (None, None) if offsets is None else (Packed(offsets), Packed(torch.tensor([0, 40])))
    small = (x[..., :40, :], None if y is None else y[..., :40, :], cut)

    def call(x: Tensor, y: Tensor | None, groups: Packed | None, grad: Tensor) -> Any:
        if problem.wants_grad:
            return CPU.backward(grad, x, y, groups, problem.metric, 1.0, True, y is not None)
        return CPU.forward(x, y, groups, problem.metric, 1.0)

    grads = [torch.zeros_like(CPU.forward(*given, problem.metric, 1.0)) for given in (small, (x, y, groups))]
    call(*small, grads[0])
    return lambda: call(x, y, groups, grads[1])


@process.needs_peak
@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("metric", ["rbf", pytest.param("cosine", marks=pytest.mark.full)])  # rbf packs all there is
@pytest.mark.parametrize("wants_grad", [False, True])
def test_memory_stays_within_the_formula(wants_grad: bool, metric: str, name: str) -> None:
    """The stated bytes, and a MiB for pages and the heap."""
    problem = replace(MEASURED[name], metric=metric, wants_grad=wants_grad)
    largest = max(problem.sizes or (problem.M,))
    assert process.peak(measured, problem) <= CPU.memory(problem, problem.pairs, largest) + 2**20
