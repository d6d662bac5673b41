"""The benchmark of the products inside linear heads: it accepts its competitors and refuses wrong answers."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import __main__, head_products
from bench.harness import WrongAnswer
from bench.worker import Worker
from mrtkern.ops.linear_cross_entropy.problem import Case, Problem
from tests.tools.linear_heads import needs_cpu_backend

pytestmark = needs_cpu_backend  # what is timed

F32, BF16 = torch.float32, torch.bfloat16
every_part = pytest.mark.parametrize("part", head_products.PARTS)
every_type = pytest.mark.parametrize("dtype", [F32, BF16], ids=["float32", "bfloat16"])


def small(part: str, dtype: torch.dtype) -> Any:
    """More rows, or in the gradient of the weight more classes, than are compared at a time."""
    problem = Problem(300, 40, 270, dtype, dtype, dtype, needs=(False,) * 3)
    return head_products.make_inputs(Case("300 x 270 x 40", problem, frozenset({part})))


@every_part
@every_type
def test_it_accepts_all_its_competitors(part: str, dtype: torch.dtype) -> None:
    inputs = small(part, dtype)
    competitors = [*head_products.own(inputs), *head_products.others(inputs)]
    answers = {one.name: head_products.answer(inputs, one.run()) for one in competitors}
    assert head_products.check(inputs, answers).keys() == answers.keys()
    assert head_products.FLOAT32 not in answers or answers[head_products.FLOAT32].dtype == F32
    assert all(limit.run() is None for limit in head_products.limits(inputs))


@every_part
@every_type
@pytest.mark.parametrize("name", ["mrtkern", head_products.TORCH])
def test_it_refuses_one_wrong_number_anywhere(part: str, dtype: torch.dtype, name: str) -> None:
    """By a hundred roundings of the largest."""
    inputs = small(part, dtype)
    competitors = [*head_products.own(inputs), *head_products.others(inputs)]
    right = {one.name: head_products.answer(inputs, one.run()) for one in competitors}
    wrong = right[name].clone()
    wrong.flatten()[-1] += 100 * torch.finfo(wrong.dtype).eps * wrong.abs().max()
    with pytest.raises(WrongAnswer, match=f"the {part} of {name} is off by"):
        head_products.check(inputs, {**right, name: wrong})
    with pytest.raises(WrongAnswer, match="off by nan"):
        head_products.check(inputs, {**right, name: wrong.fill_(torch.nan)})


def test_a_float32_product_of_rounded_factors_is_refused() -> None:
    """The limits of float32 are those of its sums, whatever their length."""
    inputs = small("hidden_gradient", F32)
    a, b = (factor.bfloat16().float() for factor in head_products.factors(inputs))
    with pytest.raises(WrongAnswer, match="the hidden_gradient of torch is off by"):
        head_products.check(inputs, {"torch": a @ b.T})


def test_torch_without_amx_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    inputs = small("logits", BF16)
    assert head_products.apart(small("logits", F32)) == []
    (wanted,) = head_products.apart(inputs)
    with ExitStack() as stack:
        (competitor,), answers = __main__.apart(head_products, inputs, stack, [wanted])
        assert competitor.name == head_products.MASKED and competitor.clock is not None and competitor.clock() > 0
        assert head_products.check(inputs, answers).keys() == {head_products.MASKED}
    torch.save(inputs, tmp_path / "inputs")
    with Worker(head_products.OP, tmp_path / "inputs", environment=wanted.environment) as child:
        environment = Path(f"/proc/{child.process.pid}/environ")
        if environment.exists():
            assert b"ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16\0" in environment.read_bytes()


def test_every_part_is_timed_in_both_types_and_every_product_has_a_target() -> None:
    cases = head_products.cases()
    for part in head_products.PARTS:
        types = {case.problem.product for case in cases if head_products.part_of(case) == part}
        assert types == {F32, BF16}
    aims = {target.case: target.against for target in head_products.TARGETS}
    products = [case for case in cases if head_products.part_of(case) != "log_prob"]
    against = {F32: head_products.TORCH, BF16: head_products.MASKED}
    assert aims == {case.name: against[case.problem.product] for case in products}


@every_part
def test_bytes_and_operations_are_those_of_the_call(part: str) -> None:
    """By counting what the call reads and writes."""
    case = next(
        case for case in head_products.cases() if head_products.part_of(case) == part and case.problem.T <= 1536
    )
    nbytes, flops = head_products.work(case)
    T, V, D = case.problem.T, case.problem.V, case.problem.D
    moved = {
        "logits": T * D + V * D + T * V,
        "hidden_gradient": T * V + V * D + T * D,
        "weight_gradient": T * V + T * D + V * D,
        "log_prob": T * D + V * D + T,
    }
    assert (nbytes, flops) == (4 * moved[part], 2 * T * V * D)
