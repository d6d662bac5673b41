"""The definition of `facility_location`: naive greedy on exact integers, one problem at a time. Slow, runs anywhere."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrtkern import _check, _device, _random, lattice
from mrtkern.ops.facility_location import chance, units
from mrtkern.ops.facility_location.admission import Admission, Tried
from mrtkern.ops.facility_location.ground import Features, Graph, Ground, Groups, Matrix
from mrtkern.ops.facility_location.limits import Limits
from mrtkern.ops.facility_location.problem import Problem
from mrtkern.ops.facility_location.rule import Rule
from mrtkern.ops.facility_location.selection import Picks
from mrtkern.ops.facility_location.units import fixed_point


def why_not(problem: Problem) -> str | None:
    return "writes no checkpoint" if "checkpoint" in problem.options else None


def similarities(x: Tensor, targets: Tensor | None, metric: str) -> tuple[Tensor, float]:
    """Integer similarities [M, N] of rows to cover (x itself without targets) with all candidates, and their scale."""
    q = lattice.quantise(x)
    dots = lattice.dots(q if targets is None else lattice.quantise(targets), q)
    one = lattice.unit_square(x.shape[1])
    return (dots + one, 2.0 * one) if metric == "shifted_cosine" else (dots, float(one))


def cover(t: Tensor, bonus: Tensor, ids: Tensor) -> int:
    """F of the set `ids`, in steps."""
    return int(bonus[ids].sum() + t[:, ids].amax(dim=1).sum()) if len(ids) else 0


SWAP_BATCH = 64  # candidates of which the best swap is made, as csrc/facility_location/swaps.cpp has it


class Greedy:
    """Greedy picks on t [M, N] with a bonus [N] per candidate; `is_open` [N] marks who may still be picked."""

    def __init__(self, t: Tensor, bonus: Tensor, is_open: Tensor, taken: list[int]) -> None:
        self.t, self.bonus, self.is_open = t, bonus, is_open
        self.best = t[:, taken].amax(dim=1) if taken else t.new_zeros(t.shape[0])

    def gains(self) -> Tensor:
        gains = self.bonus + (self.t - self.best[:, None]).clamp(min=0).sum(dim=0)
        return torch.where(self.is_open, gains, -1)

    def take(self, j: int) -> None:
        self.best = torch.maximum(self.best, self.t[:, j])
        self.is_open[j] = False


class Case(NamedTuple):
    """One problem: pairs [M, N], with weights and without, a bonus [N] per candidate, and the rest of its rule."""

    t: Tensor
    plain: Tensor
    bonus: Tensor
    k: int
    start: list[int]
    picks: list[int] | None
    mask: Tensor
    fill: str
    key: Tensor  # [2, N] rank keys: of what fills up, of the draws of chance
    sample: tuple[Tensor, float]  # of chance.sampled
    least: int = 0  # steps that a pick gains at least,
    fraction: float = 0.0  # or this part of what the first gained
    enough: float = math.inf  # steps of covered rows that suffice
    limits: Limits | None = None
    polish: int = 0  # swaps at most, -1: until none helps
    tried: Tried | None = None  # of stochastic greedy

    def admission(self) -> Admission:
        """Nothing taken."""
        return Admission(self.limits, self.k, len(self.bonus))


def select(case: Case) -> dict[str, Any]:
    """Greedy, or the picks that are given. Result keyed as in Picks."""
    t, bonus, start, picks = case.t, case.bonus, case.start, case.picks
    k, fill, greedy, admission = case.k, case.fill, Greedy(t, bonus, case.mask.clone(), start), case.admission()
    greedy.is_open[start] = False
    ids, gains = list(start), [0] * len(start)
    kept = torch.tensor(start, dtype=torch.int64, device="cpu")
    value = cover(t, bonus, kept)
    covered = value - int(bonus[kept].sum())
    bound, effective = math.inf, 0
    for step in range(k + 1):
        gain = greedy.gains()
        j = -1
        if step < k:
            j = admission.leader(gain, case.tried, step) if picks is None else picks[step]
        if step in (0, k) or step & (step - 1) == 0 or j < 0:
            bound = min(bound, value + admission.most(gain, k))
        if step == k:
            break
        found = int(gain[j]) if j >= 0 else 0
        least = max(case.least, case.fraction * gains[len(start)] if step else 0.0)
        if picks is None and (covered >= case.enough or found < least):
            k, fill = step, "none"
            bound = min(bound, value + admission.most(gain, k))
            break
        if j < 0:
            break
        greedy.take(j)
        admission.take(j)
        ids.append(j)
        gains.append(found)
        value, covered, effective = value + found, covered + found - int(bonus[j]), effective + (found > 0)
    if picks is None:
        ids += filled(case, greedy, admission, ids, k - effective, fill)
    gains += [0] * (len(ids) - len(gains))
    random = chance.value(
        lambda among, rows: cover(t[rows], torch.zeros_like(bonus), among), bonus,
        chance.draws(case.key[1], case.mask, kept, lambda order: case.admission().admitted(order, k)), *case.sample,
    )  # fmt: skip
    return {
        "ids": ids,
        "gains": gains,
        "value": value,
        "bound": bound,
        "random": random,
        "effective_k": effective,
        "k": k,
    }


def filled(case: Case, greedy: Greedy, admission: Admission, ids: list[int], missing: int, fill: str) -> list[int]:
    """What follows the picks once no candidate gains: `missing` more ids by the rule `fill`."""
    more: list[int] = []
    if fill == "coverage":
        rest = Greedy(case.plain, torch.zeros_like(greedy.bonus), greedy.is_open, ids)
        while len(more) < missing and (j := admission.leader(rest.gains(), None, 0)) >= 0:
            more.append(j)
            rest.take(j)
            admission.take(j)
    if fill == "none" or len(more) == missing:
        return more
    open_ids = greedy.is_open.nonzero()[:, 0]
    if fill != "index":
        open_ids = open_ids[case.key[0][open_ids].sort(stable=True).indices]
    return more + admission.admitted(open_ids, missing - len(more)).tolist()


def polished(case: Case, answer: dict[str, Any]) -> dict[str, Any]:
    """Swaps of a kept candidate for another one, the best of SWAP_BATCH candidates at a time, round and round; then
    greedy among what is kept, and what gains nothing."""
    ids = answer["ids"]
    t, bonus, num_fixed, N = case.t, case.bonus, len(case.start), len(case.bonus)
    admission, kept, next_, idle, made = case.admission(), list(ids), 0, 0, 0
    for j in kept[num_fixed:]:
        admission.take(j)
    while made != case.polish:
        coming = [j % N for j in range(next_, next_ + N) if bool(case.mask[j % N]) and j % N not in kept]
        batch = coming[: min(SWAP_BATCH, len(coming) - idle)]
        if not batch or len(kept) == num_fixed:
            break
        next_, idle = (batch[-1] + 1) % N, idle + len(batch)
        value = cover(t, bonus, torch.tensor(kept, dtype=torch.int64, device="cpu"))
        best = (0, 0, 0)
        for j in sorted(batch):
            for place in range(num_fixed, len(kept)):
                if admission.admits_instead(j, kept[place]):
                    other = torch.tensor([*kept[:place], j, *kept[place + 1 :]], dtype=torch.int64, device="cpu")
                    gain = cover(t, bonus, other) - value
                    best = (gain, j, place) if gain > best[0] else best
        if best[0] > 0:
            admission.swap(best[1], kept[best[2]])
            kept[best[2]], idle, made = best[1], 0, made + 1
    greedy = Greedy(t, bonus, torch.zeros_like(case.mask), kept[:num_fixed])
    greedy.is_open[kept[num_fixed:]] = True
    ordered, gains = kept[:num_fixed], [0] * num_fixed
    while len(ordered) < len(kept) and int((gain_of := greedy.gains()).max()) > 0:
        ordered.append(int(gain_of.argmax()))
        gains.append(int(gain_of.max()))
        greedy.take(ordered[-1])
    rest = [j for j in kept if j not in ordered]
    final = cover(t, bonus, torch.tensor(kept, dtype=torch.int64, device="cpu"))
    effective = sum(gain > 0 for gain in gains)
    return answer | {"ids": ordered + rest, "gains": gains + [0] * len(rest), "value": final, "effective_k": effective}


def best_of(case: Case) -> dict[str, Any]:
    """With a budget the better of two: the largest gain a cost leads, and the largest gain; the first of equal ones."""
    if case.limits is None or case.limits.cost is None:
        return select(case)
    first, second = (
        select(case._replace(limits=dataclasses.replace(case.limits, is_by_ratio=by_ratio)))
        for by_ratio in (True, False)
    )
    best = second if second["value"] > first["value"] else first
    # a bound is one of as many picks as its selection could make; of fewer it is none of the other's
    return best | {"bound": min(each["bound"] for each in (first, second) if each["k"] >= best["k"])}


def owners(plain: Tensor, ids: list[int], covers_itself: bool) -> Tensor:
    """The kept id most similar to each row, -1 where that similarity is 0; kept rows own themselves."""
    kept = torch.tensor(sorted(ids), dtype=torch.int64, device="cpu")
    owner = torch.full((plain.shape[0],), -1, dtype=torch.int64, device="cpu")
    if len(ids) and plain.shape[0]:
        best, column = plain[:, kept].max(dim=1)  # the first of equal similarities
        owner = torch.where(best > 0, kept[column], -1)
        if covers_itself:
            owner[kept] = kept
    return owner


def memory(problem: Problem) -> int:
    """Bytes beyond inputs and results: a few matrices of 64-bit numbers of the largest problem."""
    return 64 * problem.M * (problem.largest or 0)


def forward(problem: Problem, ground: Ground, rule: Rule) -> Picks:
    _device.fits(ground.caller.subject, memory(problem), rule.k.device)
    if isinstance(ground, (Features, Groups)):
        ground.refuse_not_finite()
    if isinstance(ground, Features) and ground.targets is not None:
        _check.finite_rows(f"{ground.caller.op}: targets", ground.targets)
    with rule.k.device:  # where new tensors are made
        return _packed([_one(problem, ground, rule, b) for b in range(problem.B)])


def _pairs(ground: Ground, first: int, last: int) -> tuple[Tensor, float]:
    """Similarities [M, N] with candidates first … last - 1, and their scale."""
    if isinstance(ground, Graph):
        ground = ground.dense()
    if isinstance(ground, Matrix):
        return ground.s.double() / ground.scale, 1.0
    targets = ground.targets if isinstance(ground, Features) else None
    return similarities(ground.x[first:last], targets, ground.metric)


def _one(problem: Problem, ground: Ground, rule: Rule, b: int) -> dict[str, Any]:
    """Problem b, with ids of the whole input."""
    first, last = ground.offsets[b : b + 2].tolist()
    s, scale = _pairs(ground, first, last)
    M, N = s.shape
    rows = slice(first, last) if isinstance(ground, Groups) else slice(0, M)
    ones, none = s.new_ones(max(M, N), dtype=torch.float32), s.new_zeros(N, dtype=torch.float32)
    weight = ones[:M] if rule.weight is None else rule.weight[rows]
    quality = ones[:N] if rule.quality is None else rule.quality[first:last]
    bonus = none if rule.bonus is None else rule.bonus[first:last]
    maximum = (float(weight.double().max() * quality.double().max()) if M and N else 0.0) or 1.0
    t = fixed_point(s, scale, weight, quality, maximum)
    plain = fixed_point(s, scale, ones[:M], ones[:N], 1.0)
    extra = torch.round(bonus.double() * lattice.STEPS / (maximum * ground.scale)).long()
    group_key = rule.group_key[b].cpu()
    key = torch.stack([chance.keys(rule.seed, draw, group_key, N) for draw in (_random.KEPT, _random.CHANCE)])
    sample = chance.sampled(None if rule.weight is None else weight, M, rule.seed, group_key)
    start = [] if rule.start is None else rule.start.tolist()
    mask = torch.ones(N, dtype=torch.bool, device="cpu") if rule.mask is None else rule.mask[first:last]
    before, k = int(rule.k[:b].sum()), int(rule.k[b])
    first_id = first + ground.first_row
    picks = None if rule.picks is None else (rule.picks[before : before + k] - first_id).tolist()
    limits = None if rule.limits is None else rule.limits.of(slice(first, last), slice(b, b + 1))
    tried = None if rule.method == "lazy" else Tried(rule.seed, group_key, rule.epsilon)
    case = Case(
        t, plain, extra, k, start=start, picks=picks, mask=mask, fill=rule.fill, key=key, sample=sample,
        least=units.least_steps(rule.stop_gain or 0.0, maximum * ground.scale / lattice.STEPS),
        fraction=rule.stop_fraction or 0.0, enough=units.enough_steps(rule, M), limits=limits, tried=tried,
        polish=rule.polish,
    )  # fmt: skip
    answer = best_of(case)
    answer = polished(case, answer) if case.polish else answer
    owner = owners(plain, answer["ids"], covers_itself=problem.covered is None)
    answer["share"] = [int((owner == j).sum()) / M if M else 0.0 for j in answer["ids"]]
    answer["owner"] = torch.where(owner >= 0, owner + first_id, -1).tolist()
    answer["ids"] = [first_id + j for j in answer["ids"]]
    return answer


def _packed(answers: list[dict[str, Any]]) -> Picks:
    def flat(name: str, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor([entry for answer in answers for entry in answer[name]], dtype=dtype, device="cpu")

    def each(name: str) -> Tensor:
        return torch.tensor([answer[name] for answer in answers], dtype=torch.int64, device="cpu")

    sizes = torch.tensor([0, *(len(answer["ids"]) for answer in answers)], dtype=torch.int64, device="cpu")
    return Picks(
        ids=flat("ids"),
        gains=flat("gains"),
        offsets=sizes.cumsum(0),
        value=each("value"),
        bound=each("bound"),
        random=each("random"),
        effective_k=each("effective_k"),
        owner=flat("owner"),
        share=flat("share", torch.float32),
    )
