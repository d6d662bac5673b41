"""How many responses per prompt: variance components, the best K, and responses dealt out to prompts.

The estimator is the mean over n prompts of the mean over K responses each; its variance is V_x / n + V_yx / (n K), with
V_x the variance between prompts and V_yx the variance within a prompt (traces of covariances when values are vectors).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from mrtkern import _check, _sums
from mrtkern._check import Array

COLUMN_BYTES = 2**26  # float64 copy of values made at a time: bounds the memory, large enough to stream
ROUNDING = Fraction(1, 10**12)  # a budget computed as n (c_p + K c_r) may fall short of K by some roundings


@dataclass(frozen=True)
class VarianceComponents:
    """Variance between and within groups, floats in the square of the unit of values.

    between: variance of the groups' means, cut off at 0.
    within: variance of the rows of a group.
    between_raw: the unbiased estimate of between, which may be negative.
    num_groups: an int, groups with at least one row.
    """

    between: float
    within: float
    between_raw: float
    num_groups: int


def variance_components(values: Array, offsets: Array) -> VarianceComponents:
    """Variance between and within groups of unequal sizes, by analysis of variance.

        MSW = sum |v - m_b|^2 / (T - B)              MSB = sum n_b |m_b - G|^2 / (B - 1)
        within = MSW                                 between = max((MSB - MSW) / k0, 0)
        k0 = (T - sum n_b^2 / T) / (B - 1)           m_b, G: mean of group b, of all rows

    Arguments
    ---------
    values : [T] or [T, D], any floating type
        Squares add up over D.
    offsets : int64 [B + 1]
        Group b owns rows offsets[b]:offsets[b + 1]. Empty groups do not count.

    Returns
    -------
    VarianceComponents
        between_raw and within are unbiased when group sizes do not depend on the values. within is 0 exactly where no
        two rows of a group differ, and both are where no rows do. No gradient.

    Raises
    ------
    ValueError
        For NaN or infinity (naming the row), fewer than two groups with rows, no group with two rows, a variance that
        float64 cannot hold.

    Memory
    ------
    Beyond inputs: 256 MiB, or 48 bytes per row and 48 per group if that is more.

    Determinism
    -----------
    The same bits for every number of threads; sums in float64.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> found = mk.variance_components(torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([0, 2, 4]))
    >>> found.within, found.between
    (2.0, 7.0)

    Source
    ------
    arXiv 2606.00544; the unequal-groups estimator: Searle, Casella, McCulloch, Variance Components, 1992, 3.6.
    """
    op = "variance_components"
    values = _check.floating(op, "values", values)
    if values.ndim not in (1, 2):
        _check.fail(op, "values", "be [T] or [T, D]", _check.shape(values))
    T = values.shape[0]
    offsets = _check.offsets(op, offsets, values.device, "values")
    _check.offsets_values(op, offsets, T)
    sizes = offsets.diff()
    group = torch.repeat_interleave(sizes)  # [T]: the group of each row
    n = sizes.double()
    B = int((sizes > 0).sum())
    if B < 2:
        _check.fail(op, "offsets", "have at least two groups with rows", B)
    if T == B:
        _check.fail(op, "offsets", "have a group with at least two rows", f"{B} groups of one row each")
    _check.finite_rows(f"{op}: values", values)
    exponent = _exponent(values)  # of the largest value: squares of scaled values neither overflow nor vanish
    half = exponent // 2  # in two steps: 2.0**-exponent alone can overflow
    inside = outside = 0.0
    first = offsets[:-1].clamp(max=T - 1)[group]  # [T]: the first row of each row's group
    has_spread = differs = False  # inside a group, anywhere: exactly, where sums of squares leave rounding
    columns = values.detach() if values.ndim == 2 else values.detach()[:, None]
    for block in columns.split(max(1, COLUMN_BYTES // (8 * T)), dim=1):
        has_spread = has_spread or not torch.equal(block, block[first])
        differs = differs or bool((block != block[:1]).any())
        wide = block.to(torch.float64, copy=True).mul_(2.0**-half).mul_(2.0 ** (half - exponent))
        wide -= _sums.along_rows(wide.mT) / T  # so that a large common part costs no digits
        means = torch.segment_reduce(wide, "sum", offsets=offsets, axis=0) / n.clamp(min=1)[:, None]
        outside += float(_sums.total(means.square().sum(1) * n))
        inside += float(_sums.total((wide - means[group]).square_()))
    within = inside / (T - B) if has_spread else 0.0
    outside = outside if differs else 0.0
    k0 = (T - float(n.square().sum()) / T) / (B - 1)
    between = (outside / (B - 1) - within) / k0
    within, between = (_unscaled(op, number, 2 * exponent) for number in (within, between))
    return VarianceComponents(max(between, 0.0), within, between, B)


def _exponent(values: Tensor) -> int:
    """The power of two just above the largest magnitude."""
    if not values.numel():
        return 0
    low, high = values.detach().aminmax()
    return math.frexp(max(-float(low), float(high)))[1]


def _unscaled(op: str, number: float, exponent: int) -> float:
    """number · 2**exponent, refused where float64 has no such number."""
    if math.frexp(number)[1] + exponent > 1024:
        _check.fail(op, "values", "have variances below 2**1024", f"{number:.3g} * 2**{exponent}")
    return math.ldexp(number, exponent)


@dataclass(frozen=True)
class KChoice:
    """The best number of responses per prompt.

    k: an int, the best number.
    continuous: a float, the best number if it had not to be an integer; may be below 1, or infinite.
    ratio: a float, variance(1) / variance(k): how many times the budget K = 1 needs for the same variance.
    variance: variance(K), a float, is that of the estimator with K responses per prompt, K a number above 0; infinite
        where it is beyond float64.
    """

    k: int
    continuous: float
    ratio: float
    variance: Callable[[float], float] = field(repr=False)


@dataclass(frozen=True)
class _Variance:
    """variance(K) of the prompts that a budget buys. A class and not a closure, so that a KChoice pickles.

    A given number n of prompts is a budget of n for prompts that cost 1, and responses nothing.
    """

    between: float
    within: float
    prompt_cost: float
    response_cost: float
    budget: float

    def __call__(self, K: float) -> float:
        value, exponent = self.scaled(K)
        try:
            return math.ldexp(value, exponent)
        except OverflowError:
            return math.inf

    def scaled(self, K: float) -> tuple[float, int]:
        """A number near 1, and the exponent of the power of two that it is to be multiplied by."""
        (between, within), up = _near_one(self.between, self.within)
        (prompt, response), by = _near_one(self.prompt_cost, self.response_cost)
        (budget,), down = _near_one(self.budget)
        return (between + within / K) * (prompt + K * response) / budget, up + by - down

    def ratio(self, k: int) -> float:
        """variance(1) / variance(k), also where both are beyond float64, or 0 in it."""
        several = self.scaled(k)[0]
        return self.scaled(1)[0] / several if several else 1.0


def _near_one(*numbers: float) -> tuple[list[float], int]:
    """Numbers over the power of two above the largest, and its exponent."""
    exponent = math.frexp(max(numbers))[1]
    return [math.ldexp(number, -exponent) for number in numbers], exponent


def optimal_k(
    between: float,
    within: float,
    *,
    prompt_cost: float,
    response_cost: float,
    num_prompts: int | None = None,
    budget: float | None = None,
    max_k: int | None = None,
) -> KChoice:
    """The number of responses per prompt that gives the least variance for a budget.

        Var(K) = between / n + within / (n K),   n (prompt_cost + K response_cost) = budget
        K* = sqrt(within prompt_cost / (between response_cost)),   k = the better of floor and ceil, in 1 … max_k

    Arguments
    ---------
    between, within : float, not negative
        Variances, as from `variance_components`.
    prompt_cost, response_cost : float
        Of a prompt (>= 0) and of one response to it (> 0), in the unit of budget (tokens, seconds).
    num_prompts : int, optional
        n is fixed; then k is simply what the budget buys, continuous = (budget / n - prompt_cost) / response_cost,
        rounded down: of the decimals that the floats print as, and of a budget short by 1e-12 of itself as well.
    budget : float, optional
        None: variance(K) is that of a budget of 1.
    max_k : int, optional
        Responses available; needed when between is 0.

    Returns
    -------
    KChoice
        Variances that are equal up to rounding go to the smaller k. No gradient.

    Raises
    ------
    ValueError
        For a negative or non-finite number, num_prompts without budget, a budget that is too small.

    Memory
    ------
    None to speak of.

    Determinism
    -----------
    The same numbers on every run.

    Example
    -------
    >>> import mrtkern as mk
    >>> mk.optimal_k(between=1.0, within=4.0, prompt_cost=4.0, response_cost=1.0).k
    4

    Source
    ------
    arXiv 2606.00544.
    """
    op = "optimal_k"
    between, within, prompt_cost = _numbers(op, between=between, within=within, prompt_cost=prompt_cost)
    response_cost = _positive(op, "response_cost", response_cost)
    budget = None if budget is None else _positive(op, "budget", budget)
    limit = math.inf if max_k is None else _counted(op, "max_k", max_k)
    if num_prompts is not None:
        num_prompts = _counted(op, "num_prompts", num_prompts)
        if budget is None:
            _check.fail(op, "budget", "be given with num_prompts", None)
        continuous = _rounded(_paid_for(budget, prompt_cost, response_cost, num_prompts))
        best: float = _bought(op, prompt_cost, response_cost, num_prompts, budget)
        variance = _Variance(between, within, 1.0, 0.0, num_prompts)
    else:
        continuous = _root(within, prompt_cost, between, response_cost)
        best = _best(within, prompt_cost, between, response_cost)
        variance = _Variance(between, within, prompt_cost, response_cost, 1.0 if budget is None else budget)
    if limit == math.inf and (continuous == math.inf or best == math.inf):
        reason = "the variance between prompts is 0" if between == 0 else "float64 cannot hold the best number"
        _check.fail(op, "max_k", f"be given when {reason}", None)
    k = int(min(best, limit))
    return KChoice(k, continuous, variance.ratio(k), variance)


def _numbers(op: str, **numbers: float) -> list[float]:
    for name, value in numbers.items():
        _check.number(op, name, value)
        if not 0 <= value < math.inf:
            _check.fail(op, name, "be finite and not negative", value)
    return [float(value) for value in numbers.values()]


def _positive(op: str, name: str, value: float) -> float:
    _check.number(op, name, value)
    if not 0 < value < math.inf:
        _check.fail(op, name, "be positive and finite", value)
    return float(value)


def _counted(op: str, name: str, value: int) -> int:
    counted = _check.integer(op, name, value)
    if counted < 1:
        _check.fail(op, name, "be at least 1", counted)
    return counted


def _root(within: float, prompt_cost: float, between: float, response_cost: float) -> float:
    """sqrt(within prompt_cost / (between response_cost)), whose parts may exceed float64."""
    if within == 0 or prompt_cost == 0:
        return 0.0
    if between == 0:
        return math.inf
    (w, p, b, r), (i, j, k, m) = zip(*map(math.frexp, (within, prompt_cost, between, response_cost)), strict=True)
    exponent = i + j - k - m
    half = exponent // 2
    try:
        return math.ldexp(math.sqrt(math.ldexp(w / b * (p / r), exponent - 2 * half)), half)
    except OverflowError:
        return math.inf


def _best(within: float, prompt_cost: float, between: float, response_cost: float) -> float:
    """The smallest K with Var(K) <= Var(K + 1), which is K (K + 1) >= within prompt_cost / (between response_cost)."""
    if within == 0 or prompt_cost == 0:
        return 1
    if between == 0:
        return math.inf
    square = Fraction(within) * Fraction(prompt_cost) / (Fraction(between) * Fraction(response_cost))
    least = math.ceil(square * (1 - ROUNDING))
    K = (math.isqrt(4 * least + 1) - 1) // 2  # the largest with K (K + 1) <= least
    return max(1, K + (least > K * (K + 1)))


def _decimal(number: float) -> Fraction:
    """What a float prints as, exactly: 0.1 is a tenth to whoever wrote it, and 0.1 + 0.2 costs 0.3."""
    return Fraction(repr(float(number)))


def _rounded(number: Fraction) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _paid_for(budget: float, prompt_cost: float, response_cost: float, num_prompts: int) -> Fraction:
    """The K with num_prompts (prompt_cost + K response_cost) = budget."""
    return (_decimal(budget) / num_prompts - _decimal(prompt_cost)) / _decimal(response_cost)


def responses_bought(budget: float, prompt_cost: float, response_cost: float, num_prompts: int = 1) -> int:
    """The most responses K of each prompt with num_prompts (prompt_cost + K response_cost) <= budget; below 1: none."""
    K = math.floor(_paid_for(budget, prompt_cost, response_cost, num_prompts))
    next_costs = num_prompts * (_decimal(prompt_cost) + (K + 1) * _decimal(response_cost))
    return K + (next_costs <= _decimal(budget) * (1 + ROUNDING))


def prompts_bought(budget: float, prompt_cost: float, response_cost: float, K: int) -> int:
    """The most prompts n with n (prompt_cost + K response_cost) <= budget."""
    total, each = _decimal(budget), _decimal(prompt_cost) + K * _decimal(response_cost)
    n = math.floor(total / each)
    return n + ((n + 1) * each <= total * (1 + ROUNDING))


def _bought(op: str, prompt_cost: float, response_cost: float, num_prompts: int, budget: float) -> int:
    """Responses per prompt that the budget pays for: with the prompts fixed, variance only falls with K."""
    k = responses_bought(budget, prompt_cost, response_cost, num_prompts)
    if k < 1:
        least = float(num_prompts * (_decimal(prompt_cost) + _decimal(response_cost)))
        _check.fail(op, "budget", f"buy one response per prompt, at least {least}", budget)
    return k


def allocate_k(score: Array, total: int, *, min_k: int | Array = 1, max_k: int | Array | None = None) -> Tensor:
    """Deal `total` responses out to prompts so that the sum of score_b / K_b is least.

        K = min_k everywhere;  then, total - sum(min_k) times:  K[argmax(score / (K (K + 1)), where K < max_k)] += 1

    The greedy is optimal: each further response lowers score / K by less.

    Arguments
    ---------
    score : [B], not negative
        The variance within each prompt.
    total : int
        Responses in all.
    min_k, max_k : int for all prompts, or int64 [B]
        The fewest and the most responses of a prompt; min_k >= 1, max_k None: no limit.

    Returns
    -------
    K : int64 [B]
        Responses of each prompt, sum exactly total. No gradient.

    Raises
    ------
    ValueError
        For a score that is negative, NaN or infinite (naming the row), a total beyond the limits, and B times total
        from 2**63 on.

    Memory
    ------
    About 100 bytes per prompt.

    Devices
    -------
    torch.compile breaks its graph here (fullgraph is refused), because values of score are read.

    Determinism
    -----------
    Equal gains go to the lower index.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> mk.allocate_k(torch.tensor([1.0, 4.0, 16.0]), 14)
    tensor([2, 4, 8])

    Source
    ------
    arXiv 2606.00544, its budget applied prompt by prompt; the threshold is bisected over float64 bit patterns.
    """
    op = "allocate_k"
    score = _check.floating(op, "score", score)
    if score.ndim != 1:
        _check.fail(op, "score", "be a vector [B]", _check.shape(score))
    _check.finite_rows(f"{op}: score", score)
    if score.numel() and float(score.min()) < 0:
        _check.fail(op, "score", "not be negative", f"{float(score.min())} in row {int(score.argmin())}")
    total = _check.integer(op, "total", total)
    gain = score.detach().double()
    low = _limit(op, "min_k", min_k, score)
    if low.numel() and int(low.min()) < 1:
        _check.fail(op, "min_k", "be at least 1", int(low.min()))
    least = _sum(low)
    if total < least:
        _check.fail(op, "total", f"be at least the sum of min_k, {least}", total)
    if total * score.shape[0] >= 2**63:
        _check.fail(op, "total", "be below 2**63 over the number of prompts", total)
    high = low + (total - least)
    if max_k is not None:
        limit = _limit(op, "max_k", max_k, score)
        if bool((limit < low).any()):
            b = int((limit < low).int().argmax())
            _check.fail(op, "max_k", f"be at least min_k, {int(low[b])}", f"{int(limit[b])} for prompt {b}")
        high = torch.minimum(high, limit)
    if total > _sum(high):
        _check.fail(op, "total", f"be at most the sum of max_k, {_sum(high)}", total)
    return _dealt(gain, total, low, high)


def _sum(counts: Tensor) -> int:
    """Exact, also beyond int64: the sum of int64, none negative."""
    return (int((counts >> 31).sum()) << 31) + int((counts & (2**31 - 1)).sum())


def _limit(op: str, argument: str, value: int | Array, score: Tensor) -> Tensor:
    """min_k or max_k as int64 [B]."""
    if not _check.is_array(value):
        counted = _check.integer(op, argument, value)
        return torch.full(score.shape, counted, dtype=torch.int64, device=score.device)
    value = _check.vector(op, argument, _check.int64(op, argument, value), score.shape[0], "prompt")
    _check.same_device(op, score=score, **{argument: value})
    return value


def _dealt(gain: Tensor, total: int, low: Tensor, high: Tensor) -> Tensor:
    """K [B]: everything that gains more than the threshold, then what gains exactly as much, lower index first."""
    below, above = 0, _bits(float(gain.max()) if gain.numel() else 0.0) + 1
    while (
        above - below > 1
    ):  # the largest number that `total` responses reach; float64 >= 0 are ordered like their bits
        middle = (below + above) // 2
        if int(_reaching(gain, _number(middle), low, high).sum()) >= total:
            below = middle
        else:
            above = middle
    K = _reaching(gain, _number(above), low, high)
    equal = _reaching(gain, _number(below), low, high) - K
    left = total - int(K.sum())
    return K + torch.minimum(equal, (left - (equal.cumsum(0) - equal)).clamp(min=0))


def _reaching(score: Tensor, threshold: float, low: Tensor, high: Tensor) -> Tensor:
    """The largest K [B] in low … high whose last response still gains at least `threshold`."""
    if threshold == 0:
        return high
    root = (0.5 + (0.25 + score / threshold).sqrt()).floor()  # K (K - 1) <= score / threshold, up to rounding
    K = torch.minimum(torch.maximum(root, low.double()), high.double()).long()
    while True:  # mend the rounding with the very expression that the definition compares
        real = K.double()
        up = K.lt(high) & (score / (real * (real + 1)) >= threshold)
        down = K.gt(low) & (score / ((real - 1) * real) < threshold)
        if not bool((up | down).any()):
            return K
        K = K + up.long() - down.long()


def _bits(number: float) -> int:
    return int(torch.tensor(number, dtype=torch.float64, device="cpu").view(torch.int64))


def _number(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int64, device="cpu").view(torch.float64))
