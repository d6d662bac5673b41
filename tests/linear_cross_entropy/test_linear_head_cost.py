"""What a linear head costs: products, bytes, the size of its chunks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from bench import linear_cross_entropy as linear_cross_entropy_bench
from bench.harness import Competitor, WrongAnswer, interleave
from mrtkern.ops.linear_cross_entropy import reference
from mrtkern.ops.linear_cross_entropy.op import linear_cross_entropy
from mrtkern.ops.linear_cross_entropy.problem import CASES, LEAST_ROWS, LOGITS_BYTES, Case, Problem, chunk_rows, memory
from tests.tools import oracle
from tests.tools.linear_heads import CPU, leaves, needs_cpu_backend, product_flops, with_gradients


@needs_cpu_backend
@pytest.mark.parametrize("ignored", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("needs", [(True, True, False), (True, False, False), (False, True, False), (False,) * 3])
def test_three_products_at_most_and_only_of_rows_that_count(
    needs: tuple[bool, bool, bool], ignored: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = Problem(64, 24, 100, *(torch.float32,) * 3, needs=needs, ignored=ignored)
    inputs = problem.make_inputs()
    assert product_flops(lambda: linear_cross_entropy(**inputs, backend="cpu"), monkeypatch) == problem.flops
    zero = {**inputs, "token_weight": inputs["token_weight"] * (torch.arange(64) < 16)}
    kept = int(((inputs["targets"] != -100) & (torch.arange(64) < 16)).sum())
    found = product_flops(lambda: linear_cross_entropy(**zero, backend="cpu"), monkeypatch)
    assert found == replace(problem, T=kept, ignored=0.0).flops


@needs_cpu_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("needs", [(True, True, True), (True, False, False), (False,) * 3])
@pytest.mark.parametrize(("T", "D", "V"), [(1200, 16, 9000), (500, 300, 20000)])  # logits weigh, dW weighs
def test_memory_stays_within_the_formula(
    T: int, D: int, V: int, needs: tuple[bool, bool, bool], dtype: torch.dtype
) -> None:
    problem = Problem(T, D, V, dtype, dtype, dtype, needs=needs, has_bias=needs[2])
    inputs = problem.make_inputs()
    size, product = CPU.chunk_size(problem), CPU.multiplies(problem)
    peak, _ = oracle.peak_bytes(lambda: linear_cross_entropy(**inputs, backend="cpu"))
    gradients = sum(value.nbytes for value in leaves(inputs)) if dtype == torch.float32 else 0
    assert peak - gradients <= memory(problem, size, product, T) + CPU.memory(problem)
    assert size * V * 4 <= LOGITS_BYTES
    assert size < T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("needs", [(True, True, True), (False,) * 3])
def test_memory_of_the_reference_stays_within_its_formula(needs: tuple[bool, bool, bool], dtype: torch.dtype) -> None:
    problem = Problem(300, 16, 2000, dtype, dtype, dtype, needs=needs, has_bias=needs[2])
    inputs = problem.make_inputs()
    given = {"label_smoothing": 0.1, "softcap": 3.0, "backend": "reference"}
    peak, _ = oracle.peak_bytes(lambda: linear_cross_entropy(**inputs, **given))
    gradients = sum(value.nbytes for value in leaves(inputs)) if dtype != torch.bfloat16 else 0
    product = reference.multiplies(problem)
    assert peak - gradients <= memory(problem, 300, product, 300) + reference.memory(problem)


@pytest.mark.parametrize("case", [case for case in CASES if "bench" in case.tags], ids=lambda case: case.name)
def test_large_heads_need_at_most_256_mib_beyond_gradients_and_one_accumulator(case: Case) -> None:
    problem = case.problem
    accumulator = 4 * problem.V * problem.D if problem.weight != torch.float32 else 0
    needed = memory(problem, chunk_rows(problem), problem.product, problem.T) + CPU.memory(problem)
    assert needed - accumulator <= 256 << 20


def test_chunks_are_equal_and_within_their_bounds() -> None:
    for T in (1, 15, 16, 17, 1000, 2048, 100_000):
        for V in (10, 32_000, 10_000_000):
            problem = Problem(T, 64, V, *(torch.float32,) * 3)
            size = chunk_rows(problem)
            assert 1 <= size <= T
            assert size <= LEAST_ROWS or size * V * 4 <= LOGITS_BYTES
            assert T - size * (-(-T // size) - 1) > size - -(-T // size)  # the last is smaller by less than a row each


# Of the best time of a sweep. Where the model was fitted the chosen 1,024 rows took 1.02 of it, half as many 1.07, a
# quarter 1.17 (see `chunk_rows`): a chunk that is wrong by a factor of 4 does not pass.
NEAR = 1.12


@pytest.mark.full
@needs_cpu_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chosen_chunk_is_near_the_best_of_a_sweep(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the quickest of interleaved rounds, which other work on the machine disturbs least."""
    problem = Problem(2048, 1024, 16_000, *(dtype,) * 3)
    inputs, chosen = problem.make_inputs(), CPU.chunk_size(problem)

    def run(size: int) -> None:
        monkeypatch.setattr(CPU, "chunk_size", lambda problem: size)
        with_gradients(inputs, backend="cpu")

    sizes = {128, 256, 512, 1024, 2048, chosen}
    seconds = interleave([Competitor(str(size), partial(run, size)) for size in sorted(sizes)], 5)
    best = {int(name): min(times) for name, times in seconds.items()}
    assert best[chosen] <= NEAR * min(best.values()), best


# The benchmark


def small(dtype: torch.dtype) -> dict[str, Any]:
    return linear_cross_entropy_bench.make_inputs(Case("small", Problem(600, 24, 300, *(dtype,) * 3), frozenset()))


@needs_cpu_backend  # whose errors the limits are, and torch.compile needs a compiler, too
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_benchmark_accepts_all_its_competitors(dtype: torch.dtype) -> None:
    inputs = small(dtype)
    everyone = [*linear_cross_entropy_bench.own(inputs), *linear_cross_entropy_bench.others(inputs)]
    answers = {one.name: linear_cross_entropy_bench.answer(inputs, one.run()) for one in everyone}
    assert len(answers) == 4 + 2 * hasattr(torch.nn, "LinearCrossEntropyOptions")  # since torch 2.12
    assert linear_cross_entropy_bench.check(inputs, answers).keys() == answers.keys()


@pytest.mark.parametrize(("part", "error"), [("loss", 1e-4), ("rows", 1e-2), ("classes", 1e-2)])
def test_the_benchmark_refuses_wrong_answers(part: str, error: float) -> None:
    inputs = small(torch.float32)
    mine = linear_cross_entropy_bench.answer(inputs, linear_cross_entropy_bench.ours(inputs))
    mine[part] += error * mine[part].abs().max()
    with pytest.raises(WrongAnswer, match=f"^{part} of mrtkern errs by"):
        linear_cross_entropy_bench.check(inputs, {"mrtkern": mine})
