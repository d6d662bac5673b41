"""budget: variance components, the best K and the dealing out of responses, as claims."""

from __future__ import annotations

import itertools
import math
import pickle
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from mrtkern import budget
from mrtkern.budget import allocate_k, optimal_k, prompts_bought, variance_components
from tests.tools import oracle

SIZES = [3, 1, 0, 5, 2, 9]  # unequal, one row, no row


def offsets_of(sizes: list[int]) -> torch.Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


def anova(values: torch.Tensor, sizes: list[int]) -> tuple[float, float]:
    """Raw between and within, group by group, in long double."""
    groups = [np.atleast_2d(g.double().numpy().astype(np.longdouble)) for g in values.split(sizes) if len(g)]
    groups = [g if values.ndim == 2 else g.reshape(-1, 1) for g in groups]
    T, B = sum(len(g) for g in groups), len(groups)
    grand = np.concatenate(groups).mean(0)
    msw = sum(((g - g.mean(0)) ** 2).sum() for g in groups) / (T - B)
    msb = sum(len(g) * ((g.mean(0) - grand) ** 2).sum() for g in groups) / (B - 1)
    k0 = (T - sum(len(g) ** 2 for g in groups) / np.longdouble(T)) / (B - 1)
    return float((msb - msw) / k0), float(msw)


def agree(got: float, truth: float, steps: int, magnitude: float) -> None:
    oracle.assert_summed(torch.tensor(got).double(), torch.tensor(truth).double(), steps, magnitude)


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_components_are_those_of_the_definition(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    between, within = anova(values, SIZES)
    v = variance_components(values, offsets_of(SIZES))
    steps = 8 * values.numel()  # sums over all entries, each of a handful of operations
    agree(v.within, within, steps, within)
    agree(v.between_raw, between, steps, abs(between) + within)
    assert v.between == max(v.between_raw, 0.0)
    assert v.num_groups == 5


def test_components_of_vectors_add_up_over_features() -> None:
    values = torch.randn(20, 4, dtype=torch.float64)
    whole = variance_components(values, offsets_of(SIZES))
    parts = [variance_components(column, offsets_of(SIZES)) for column in values.T]
    agree(whole.within, math.fsum(part.within for part in parts), 8 * 80, whole.within)
    raw = math.fsum(part.between_raw for part in parts)
    agree(whole.between_raw, raw, 8 * 80, abs(raw) + whole.within)


def test_blocks_of_columns_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(20, 9)
    whole = variance_components(values, offsets_of(SIZES))
    monkeypatch.setattr(budget, "COLUMN_BYTES", 2 * 8 * 20)  # two columns at a time
    blocks = variance_components(values, offsets_of(SIZES))
    agree(blocks.within, whole.within, 16 * 180, whole.within)
    agree(blocks.between_raw, whole.between_raw, 16 * 180, abs(whole.between_raw) + whole.within)


def test_a_large_common_part_costs_no_digits() -> None:
    values = torch.randint(0, 8, (20,), generator=torch.Generator().manual_seed(3)).double()
    near, far = (variance_components(values + shift, offsets_of(SIZES)) for shift in (0.0, 2.0**40))
    steps = 8 * 20 + 2**8  # the mean itself is rounded at 2**40, which moves no deviation by more than 2**-12
    assert abs(far.within - near.within) <= steps * 2.0**-24 * near.within


@pytest.mark.parametrize("exponent", [505, 500, -500])  # of float64's 1024: variances fit, sums of squares may not
def test_components_of_huge_and_tiny_values_are_those_of_the_definition(exponent: int) -> None:
    values = torch.randint(-99, 100, (20,), generator=torch.Generator().manual_seed(4)).double()
    unscaled = variance_components(values, offsets_of(SIZES))
    scaled = variance_components(values * 2.0**exponent, offsets_of(SIZES))
    assert scaled.within == unscaled.within * 2.0 ** (2 * exponent)  # powers of two are exact
    assert scaled.between_raw == unscaled.between_raw * 2.0 ** (2 * exponent)


@pytest.mark.parametrize("size", [1e300, torch.finfo(torch.float64).max])
def test_variances_that_float64_cannot_hold_are_refused(size: float) -> None:
    values = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64) * size
    sentence = r"^variance_components: values must have variances below 2\*\*1024, got [\d.]+ \* 2\*\*\d+$"
    with pytest.raises(ValueError, match=sentence):
        variance_components(values, torch.tensor([0, 2, 4]))


def test_between_is_clipped_at_zero_and_reported_raw() -> None:
    v = variance_components(torch.tensor([-1.0, 1.0, -1.0, 1.0]), torch.tensor([0, 2, 4]))
    assert (v.between, v.between_raw, v.within) == (0.0, -1.0, 2.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [[3, 7], [1, 0, 6, 3]], ids=str)
def test_values_that_do_not_differ_have_a_variance_of_exactly_nothing(sizes: list[int], dtype: torch.dtype) -> None:
    """A tenth has no exact sum of three: means and squares alone leave 1e-34."""
    for values in (torch.full((10,), 0.1, dtype=dtype), torch.tensor([0.1, 1e3, 1 / 3], dtype=dtype).expand(10, 3)):
        v = variance_components(values, offsets_of(sizes))
        assert (v.within, v.between, v.between_raw) == (0.0, 0.0, 0.0)
    per_group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)).to(dtype) / 3 + 0.1
    v = variance_components(per_group, offsets_of(sizes))
    assert v.within == 0.0 and v.between == v.between_raw > 0
    other = per_group.clone()
    other[-1] += 1
    assert variance_components(other, offsets_of(sizes)).within > 0


def test_components_keep_neither_graph_nor_caller_data() -> None:
    values = torch.randn(20, 3, requires_grad=True)
    before = values.detach().clone()
    v = variance_components(values, offsets_of(SIZES))
    assert type(v.between) is float
    assert torch.equal(values, before)


def test_values_without_features_have_no_variance() -> None:
    v = variance_components(torch.ones(20, 0), offsets_of(SIZES))
    assert (v.between, v.within) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(20,), (20, 3)])
def test_the_row_that_is_not_finite_is_named(shape: tuple[int, ...], bad: float) -> None:
    values = torch.ones(shape)
    values[17] = bad
    with pytest.raises(ValueError, match=f"^variance_components: values must be finite, got {bad} in row 17$"):
        variance_components(values, offsets_of(SIZES))


@pytest.mark.parametrize(
    ("rows", "offsets", "sentence"),
    [
        (4, [0, 4], "offsets must have at least two groups with rows, got 1"),
        (0, [0], "offsets must have at least two groups with rows, got 0"),
        (4, [0, 4, 4], "offsets must have at least two groups with rows, got 1"),
        (2, [0, 1, 1, 2], "offsets must have a group with at least two rows, got 2 groups of one row each"),
        (4, [0, 3], "offsets must end with the number of rows 4, got 3"),
    ],
)
def test_too_little_data_is_refused(rows: int, offsets: list[int], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^variance_components: {sentence}$"):
        variance_components(torch.ones(rows), torch.tensor(offsets))


def test_values_must_be_vectors_or_rows() -> None:
    with pytest.raises(ValueError, match=r"^variance_components: values must be \[T\] or \[T, D\], got \[2, 2, 2\]$"):
        variance_components(torch.ones(2, 2, 2), torch.tensor([0, 2]))


def test_components_stay_within_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "COLUMN_BYTES", 2**20)
    T, B = 4096, 256
    values = torch.randn(T, 512)
    peak, _ = oracle.peak_bytes(lambda: variance_components(values, torch.arange(0, T + 1, T // B)))
    assert 0 < peak <= 4 * 2**20 + 40 * T + 48 * B


def test_integer_k_is_the_best_of_all_integers() -> None:
    generator = torch.Generator().manual_seed(4)
    for between, within, prompt_cost, response_cost in torch.rand(200, 4, generator=generator).pow(3).tolist():
        c = optimal_k(between, within, prompt_cost=prompt_cost, response_cost=response_cost, max_k=64)
        assert c.k == min(range(1, 65), key=c.variance)


def test_variance_is_that_of_the_prompts_the_budget_buys() -> None:
    c = optimal_k(2.0, 8.0, prompt_cost=3.0, response_cost=1.0, budget=700.0)
    assert c.variance(4) == (2.0 + 8.0 / 4) / 100  # 100 prompts at 3 + 4
    assert c.continuous == math.sqrt(12.0)
    assert c.ratio == c.variance(1) / c.variance(c.k)


def test_k_stays_below_the_pool() -> None:
    assert optimal_k(0.187, 1.329, prompt_cost=4, response_cost=1, max_k=3).k == 3
    assert optimal_k(0.0, 1.0, prompt_cost=4, response_cost=1, max_k=7).k == 7


@pytest.mark.parametrize(("between", "within", "prompt_cost"), [(1.0, 0.0, 4.0), (1.0, 1.0, 0.0), (0.0, 0.0, 4.0)])
def test_one_response_is_enough_when_more_buy_nothing(between: float, within: float, prompt_cost: float) -> None:
    c = optimal_k(between, within, prompt_cost=prompt_cost, response_cost=1.0)
    assert (c.k, c.continuous, c.ratio) == (1, 0.0, 1.0)


def test_with_the_prompts_fixed_k_is_what_the_budget_buys() -> None:
    costs = {"prompt_cost": 100.0, "response_cost": 10.0, "num_prompts": 800}
    assert optimal_k(1.0, 1.0, **costs, budget=800 * 149.0).k == 4
    c = optimal_k(1.0, 1.0, **costs, budget=800 * 150.0)
    assert (c.k, c.continuous) == (5, 5.0)
    assert c.variance(5) == (1.0 + 1.0 / 5) / 800
    assert optimal_k(1.0, 1.0, **costs, budget=800 * 150.0, max_k=3).k == 3


def test_a_budget_for_exactly_k_buys_k_whatever_the_rounding() -> None:
    for n, k in itertools.product((3, 7, 800), range(1, 30)):
        exactly = n * (0.1 + k * 0.3)
        c = optimal_k(1.0, 1.0, prompt_cost=0.1, response_cost=0.3, num_prompts=n, budget=exactly)
        assert c.k == k


def test_a_budget_buys_what_it_buys_in_decimals() -> None:
    """Of costs and budgets of up to three digits, and of budgets that floats computed from such costs."""
    draw = random.Random(5)
    for _ in range(500):
        prompt, response = (Decimal(draw.randint(1, 999)).scaleb(-draw.randint(0, 3)) for _ in range(2))
        n, K = draw.randint(1, 50), draw.randint(1, 40)
        exact = n * (prompt + K * response)
        costs = {"prompt_cost": float(prompt), "response_cost": float(response), "num_prompts": n}
        less = float(exact - Decimal("0.0001"))
        for paid, k in ((float(exact), K), (n * (float(prompt) + K * float(response)), K), (less, K - 1)):
            if k:
                assert optimal_k(1.0, 1.0, **costs, budget=paid).k == k
        if n > 1:
            bought = [prompts_bought(paid, float(prompt), float(response), K) for paid in (float(exact), less)]
            assert bought == [n, n - 1]
    assert optimal_k(1.0, 1.0, prompt_cost=0.1, response_cost=0.2, num_prompts=1, budget=0.3).continuous == 1.0


@pytest.mark.parametrize("budget", [None, 0.1, 720.0, 1e-300, 1e308])
@pytest.mark.parametrize("scale", [1.0, 0.1, 1 / 3, 1e308 / 12, 1e-310])
def test_of_two_equally_good_k_the_smaller_is_taken_whatever_the_budget(budget: float | None, scale: float) -> None:
    """(1 + 6 / K) (1 + K) is 12 for K = 2 and 3, (1 + 12 / K) (1 + K) is 20 for 3 and 4."""
    for within, k in ((6, 2), (12, 3)):
        c = optimal_k(scale, within * scale, prompt_cost=1.0, response_cost=1.0, budget=budget)
        assert c.k == k


def test_variances_of_any_size_are_chosen_for_and_those_beyond_float64_are_infinite() -> None:
    c = optimal_k(1e308, 1e308, prompt_cost=4.0, response_cost=1.0)
    assert (c.k, c.continuous, c.variance(1), c.variance(2)) == (2, 2.0, math.inf, math.inf)
    agree(c.ratio, 10 / 9, 8, 2.0)
    c = optimal_k(1e308, 1e308, prompt_cost=4.0, response_cost=1.0, budget=100.0)
    agree(c.variance(2) / 1e307, 0.9, 8, 1.0)
    c = optimal_k(1e308, 1e308, prompt_cost=4.0, response_cost=1.0, budget=1e308, num_prompts=100, max_k=5)
    agree(c.variance(5) / 1e306, 1.2, 8, 2.0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"between": -1.0}, "between must be finite and not negative, got -1.0"),
        ({"within": math.nan}, "within must be finite and not negative, got nan"),
        ({"prompt_cost": math.inf}, "prompt_cost must be finite and not negative, got inf"),
        ({"response_cost": 0.0}, "response_cost must be positive and finite, got 0.0"),
        ({"budget": 0.0}, "budget must be positive and finite, got 0.0"),
        ({"max_k": 0}, "max_k must be at least 1, got 0"),
        ({"between": 0.0}, "max_k must be given when the variance between prompts is 0, got None"),
        ({"num_prompts": 10}, "budget must be given with num_prompts, got None"),
        ({"num_prompts": 0, "budget": 1.0}, "num_prompts must be at least 1, got 0"),
        (
            {"num_prompts": 1, "budget": 1e308, "response_cost": 1e-300},
            "max_k must be given when float64 cannot hold the best number, got None",
        ),
        ({"num_prompts": 10, "budget": 29.0}, "budget must buy one response per prompt, at least 30.0, got 29.0"),
    ],
)
def test_numbers_without_meaning_are_refused(changes: dict[str, Any], sentence: str) -> None:
    arguments = {"between": 1.0, "within": 1.0, "prompt_cost": 2.0, "response_cost": 1.0, **changes}
    with pytest.raises(ValueError, match=f"^optimal_k: {sentence}$"):
        optimal_k(arguments.pop("between"), arguments.pop("within"), **arguments)


def test_choices_do_not_depend_on_the_unit() -> None:
    """Of variances, of costs and of the budget: a product of two may be beyond float64, or 0 in it."""
    plain = optimal_k(2.0, 8.0, prompt_cost=3.0, response_cost=1.0, budget=1.0)
    for variance, cost, paid in ((2.0**1018, 1.0, 1.0), (2.0**-1060, 2.0**-1000, 1.0), (2.0**-60, 1.0, 2.0**1023)):
        moved = {"prompt_cost": 3 * cost, "response_cost": cost, "budget": paid}
        c = optimal_k(2 * variance, 8 * variance, **moved)
        assert (c.k, c.continuous, c.ratio) == (plain.k, plain.continuous, plain.ratio)
    costs = {"prompt_cost": 1.0, "response_cost": 1e-300, "num_prompts": 1, "budget": 1e300}
    assert optimal_k(1.0, 1.0, **costs, max_k=5).k == 5
    assert optimal_k(1e-300, 1e300, prompt_cost=1.0, response_cost=1e-300, max_k=5).k == 5


def dealt_one_by_one(score: torch.Tensor, total: int, low: list[int], high: list[int]) -> list[int]:
    """The definition: one response at a time to the largest gain, equal gains to the lower index."""
    K = list(low)
    for _ in range(total - sum(low)):
        b = max((b for b in range(len(K)) if K[b] < high[b]), key=lambda b: (float(score[b]) / (K[b] * (K[b] + 1)), -b))
        K[b] += 1
    return K


@pytest.mark.parametrize("seed", range(30))
def test_responses_go_where_the_definition_sends_them(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    B = 1 + seed % 7
    # Integers make ties between prompts and between steps, zeros make ties at gain 0.
    score = torch.randint(0, 13, (B,), generator=generator).double() if seed % 2 else torch.rand(B, generator=generator)
    low = torch.randint(1, 4, (B,), generator=generator)
    high = low + torch.randint(0, 9, (B,), generator=generator)
    for total in range(int(low.sum()), int(high.sum()) + 1):
        K = allocate_k(score, total, min_k=low, max_k=high)
        assert K.dtype == torch.int64
        assert K.tolist() == dealt_one_by_one(score, total, low.tolist(), high.tolist())


@pytest.mark.parametrize("fixed", [{}, {"num_prompts": 10, "budget": 100.0}])
def test_a_choice_goes_to_another_process(fixed: dict[str, Any]) -> None:
    c = optimal_k(1.0, 8.0, prompt_cost=3.0, response_cost=1.0, max_k=16, **fixed)
    assert pickle.loads(pickle.dumps(c)) == c
    assert pickle.loads(pickle.dumps(c)).variance(5) == c.variance(5)


def test_no_other_deal_has_less_variance() -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        score = torch.rand(4, generator=generator, dtype=torch.float64)
        deals = [deal for deal in itertools.product(range(1, 8), repeat=4) if sum(deal) == 13]
        best = min(float((score / torch.tensor(deal)).sum()) for deal in deals)
        agree(float((score / allocate_k(score, 13, max_k=7)).sum()), best, 8, best)


def test_without_max_k_everything_may_go_to_one_prompt() -> None:
    assert allocate_k(torch.tensor([0.0, 1.0, 0.0]), 100).tolist() == [1, 98, 1]
    assert allocate_k(torch.zeros(3), 10).tolist() == [8, 1, 1]  # all gains equal: lower index


def test_scores_of_any_size_are_dealt_out() -> None:
    score = torch.tensor([1e-300, 1e300, 1.0], dtype=torch.float64)
    assert allocate_k(score, 60).tolist() == dealt_one_by_one(score, 60, [1] * 3, [60] * 3)
    assert allocate_k(score * 0 + 1e-310, 60).tolist() == [20, 20, 20]


def test_totals_are_exact_for_many_prompts() -> None:
    score = torch.rand(200_000, generator=torch.Generator().manual_seed(6)).pow(4)
    high = torch.randint(1, 65, (200_000,), generator=torch.Generator().manual_seed(7))
    K = allocate_k(score, 1_234_567, max_k=high)
    assert int(K.sum()) == 1_234_567
    assert bool(((K >= 1) & (high >= K)).all())
    last, further = score.double() / ((K - 1) * K), score.double() / (K * (K + 1))
    assert last[K > 1].min() >= further[high > K].max()  # nothing dealt gains less than something that was not


def test_no_prompts_take_no_responses() -> None:
    assert allocate_k(torch.empty(0), 0).shape == (0,)


@pytest.mark.parametrize(
    ("score", "total", "limits", "sentence"),
    [
        ([1.0, 2.0], 1, {}, "total must be at least the sum of min_k, 2, got 1"),
        ([1.0, 2.0], 9, {"max_k": 4}, "total must be at most the sum of max_k, 8, got 9"),
        ([], 1, {}, "total must be at most the sum of max_k, 0, got 1"),
        ([1.0, 2.0], 4, {"min_k": 0}, "min_k must be at least 1, got 0"),
        ([1.0, 2.0], 9, {"min_k": 2, "max_k": [3, 1]}, "max_k must be at least min_k, 2, got 1 for prompt 1"),
        ([1.0, 2.0], 9, {"max_k": [3]}, r"max_k must have one entry per prompt, shape \[2\], got \[1\]"),
        ([1.0, -2.0], 4, {}, "score must not be negative, got -2.0 in row 1"),
        ([1.0, math.nan], 4, {}, "score must be finite, got nan in row 1"),
        ([1.0, 2.0], 2**62, {}, f"total must be below 2\\*\\*63 over the number of prompts, got {2**62}"),
        ([1.0, 2.0], 9, {"min_k": 2**62}, f"total must be at least the sum of min_k, {2**63}, got 9"),
        ([[1.0]], 4, {}, r"score must be a vector \[B\], got \[1, 1\]"),
    ],
)
def test_deals_that_cannot_be_are_refused(score: list[Any], total: int, limits: dict[str, Any], sentence: str) -> None:
    limits = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in limits.items()}
    with pytest.raises(ValueError, match=f"^allocate_k: {sentence}$"):
        allocate_k(torch.tensor(score), total, **limits)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: allocate_k(torch.ones(3), 4.5), "allocate_k: total must be an int, got float"),
        (
            lambda: optimal_k(1.0, 1.0, prompt_cost=1.0, response_cost=1.0, max_k=4.5),
            "optimal_k: max_k must be an int, got float",
        ),
        (
            lambda: optimal_k(1.0, 1.0, prompt_cost=1.0, response_cost=1.0, max_k=math.nan),
            "optimal_k: max_k must be an int, got float",
        ),
        (
            lambda: optimal_k(1.0, 1.0, prompt_cost=1.0, response_cost=1.0, num_prompts=2.5, budget=9.0),
            "optimal_k: num_prompts must be an int, got float",
        ),
        (lambda: allocate_k(torch.ones(3), 4, max_k=1.5), "allocate_k: max_k must be an int, got float"),
        (
            lambda: optimal_k("1", 1.0, prompt_cost=1.0, response_cost=1.0),
            "optimal_k: between must be a number, got str",
        ),
        (
            lambda: optimal_k(1.0, 1.0, prompt_cost=1.0, response_cost=None),
            "optimal_k: response_cost must be a number, got NoneType",
        ),
    ],
)
def test_what_is_no_number_is_named(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(TypeError, match=f"^{sentence}$"):
        call()
