"""Who may be picked next: the definition of limits and of the candidates that stochastic greedy tries, on the CPU."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from mrtkern import _random
from mrtkern.ops.facility_location.limits import Limits


def _number(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int64, device="cpu")


class Tried(NamedTuple):
    """Of stochastic greedy: each pick is the best of ceil(candidates / k * ln(1 / epsilon)) that are drawn for it."""

    seed: int
    group_key: Tensor  # 0-d
    epsilon: float

    def drawn(self, is_open: Tensor, from_: Tensor, k: int, step: int) -> Tensor:
        """The ids that a pick tries: positions in `from_`, who could be picked at the beginning, by hashes."""
        size = math.ceil(len(from_) / k * math.log(1 / self.epsilon))
        if size >= int(is_open.sum()):
            return is_open.nonzero()[:, 0]
        stream = _random.stream(self.seed, _random.TRIED, self.group_key)
        stream = _random.mix(stream ^ _random.mix(_number(step)))
        found: dict[int, None] = {}
        position = 0
        while len(found) < size:
            hashed = int(_random.at(stream, _number(position))) % 2**64  # as an unsigned number
            j = int(from_[hashed % len(from_)])
            if bool(is_open[j]):
                found[j] = None
            position += 1
        return torch.tensor(list(found), dtype=torch.int64, device="cpu")


class Admission:
    """What limits admit of one problem with N candidates, k of which are picked."""

    def __init__(self, limits: Limits | None, k: int, N: int) -> None:
        self.limits, self.k = limits, k
        self.spent, self.picked = 0, torch.zeros(N, dtype=torch.bool, device="cpu")
        self.from_: Tensor | None = None

    def take(self, j: int) -> None:
        """Pick j."""
        self.picked[j] = True
        if self.limits is not None and self.limits.cost is not None:
            self.spent += int(self.limits.cost[j])

    def swap(self, coming: int, going: int) -> None:
        """Pick one instead of another."""
        self.take(coming)
        self.picked[going] = False
        if self.limits is not None and self.limits.cost is not None:
            self.spent -= int(self.limits.cost[going])

    def admits_instead(self, coming: int, going: int) -> bool:
        """Whether one that is not picked may stand in for one that is."""
        limits = self.limits
        if limits is None:
            return True
        if limits.cost is not None and limits.budget is not None:
            cost = self.spent + int(limits.cost[coming] - limits.cost[going])
            if cost > int(limits.budget[0]):
                return False
        if limits.label is None or limits.cap is None:
            return True
        to, from_ = int(limits.label[coming]), int(limits.label[going])
        count = torch.bincount(limits.label[self.picked], minlength=len(limits.cap))
        least = 0 if limits.least is None else int(limits.least[from_])
        return to == from_ or (int(count[to]) < int(limits.cap[to]) and int(count[from_]) > least)

    def is_admitted(self) -> Tensor:
        """Who may still be picked, bool [N]; who is picked is not asked about."""
        limits, found = self.limits, torch.ones_like(self.picked)
        if limits is None:
            return found
        if limits.cost is not None and limits.budget is not None:
            found &= limits.cost <= int(limits.budget[0]) - self.spent
        if limits.label is not None and limits.cap is not None:
            count = torch.bincount(limits.label[self.picked], minlength=len(limits.cap))
            least = torch.zeros_like(count) if limits.least is None else limits.least
            has_spare = self.k > int(count.maximum(least).sum())
            found &= ((count < limits.cap) & ((count < least) | has_spare))[limits.label]
        return found

    def leader(self, gain: Tensor, tried: Tried | None, step: int) -> int:
        """The candidate that is picked next, -1: none of those admitted gains. gain [N], -1: may not be picked."""
        admitted = torch.where(self.is_admitted(), gain, -1)
        if tried is not None:
            self.from_ = (gain >= 0).nonzero()[:, 0] if self.from_ is None else self.from_
            sample = tried.drawn(gain >= 0, self.from_, self.k, step)
            among = torch.full_like(gain, -1).index_copy(0, sample, gain[sample])
            admitted = among if int(among.amax()) > 0 else admitted
        positive = (admitted > 0).nonzero()[:, 0].tolist()
        if not positive:
            return -1
        limits = self.limits
        if limits is None or limits.cost is None or not limits.is_by_ratio:
            return int(admitted.argmax())  # the first of equal gains
        cost, gains = limits.cost.tolist(), admitted.tolist()
        best: int = positive[0]
        for j in positive[1:]:
            left, right = gains[j] * cost[best], gains[best] * cost[j]
            if left > right or (left == right and gains[j] > gains[best]):
                best = j
        return best

    def admitted(self, order: Tensor, most: int) -> Tensor:
        """Of these, one after the other, those that are admitted when their turn comes, at most `most`."""
        if self.limits is None:
            return order[:most]
        found: list[int] = []
        for j in order.tolist():
            if len(found) < most and bool(self.is_admitted()[j]):
                found.append(j)
                self.take(j)
        return torch.tensor(found, dtype=torch.int64, device="cpu")

    def most(self, gain: Tensor, k: int) -> int:
        """No k candidates within the limits have a larger sum of gains."""
        limits, gain = self.limits, gain.clamp(min=0)
        within_budget: float = math.inf
        if limits is not None and limits.cost is not None and limits.budget is not None:
            budget = int(limits.budget[0])
            gain = torch.where(limits.cost <= budget, gain, 0)
            within_budget = fractional(gain.tolist(), limits.cost.tolist(), budget)
        if limits is not None and limits.label is not None and limits.cap is not None:
            parts = [gain[limits.label == g].sort(descending=True).values[:cap] for g, cap in enumerate(limits.cap)]
            gain = torch.cat([gain[:0], *parts])
        return int(min(within_budget, int(gain.sort(descending=True).values[:k].sum())))


def fractional(gain: list[int], cost: list[int], budget: int) -> int:
    """The fractional knapsack, rounded up."""
    order = sorted((j for j in range(len(gain)) if gain[j] > 0), key=lambda j: Fraction(cost[j], gain[j]))
    left, total = budget, 0
    for j in order:
        if cost[j] > left:
            return total + -(-gain[j] * left // cost[j])
        left -= cost[j]
        total += gain[j]
    return total
