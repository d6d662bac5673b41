"""Greedy on a batch, the value of given picks, the draws of chance, and the rows that kept rows stand for."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mrtkern import _random
from mrtkern.objectives.batches import Batch, of_each
from mrtkern.objectives.kinds import MaxMin, Objective, Options
from mrtkern.ops.facility_location.selection import RANDOM_DRAWS


class Run(NamedTuple):
    """Of b problems, K the largest k."""

    places: Tensor  # [b, K] int64 within the problem, -1 after the last pick
    gains: Tensor  # [b, K] float64
    value: Tensor  # [b] float64
    bound: Tensor  # [b] float64


def largest(gains: Tensor, k: Tensor) -> Tensor:
    """Sum of the k [b] largest positive gains of each problem."""
    ordered = gains.clamp(min=0).sort(dim=1, descending=True).values
    counted = torch.arange(gains.shape[1], dtype=torch.int64, device=gains.device) < k[:, None]
    return (ordered * counted).sum(dim=1)


def run(kind: type[Objective], batch: Batch, options: Options, k: Tensor) -> Run:
    """Pick k [b] rows of each problem, each time the largest gain, the first of equals."""
    objective, is_open = kind(batch, options), batch.is_open.clone()
    b, K = len(k), int(k.max()) if len(k) else 0
    places = torch.full((b, K), -1, dtype=torch.int64, device=batch.device)
    gained = torch.zeros((b, K), dtype=torch.float64, device=batch.device)
    value = torch.zeros(b, dtype=torch.float64, device=batch.device)
    bound = torch.full_like(value, math.inf if kind.is_submodular else math.nan)
    for step in range(K + 1):
        if step == K and not kind.is_submodular:
            break
        gains = torch.where(is_open, objective.gains(), -math.inf)
        if kind.is_submodular and (step & (step - 1) == 0 or step == K):
            bound = bound.minimum(value + largest(gains, k))
        if step == K:
            break
        j, goes_on = torch.where(is_open, objective.decides(), -math.inf).argmax(dim=1), step < k
        gain = torch.where(goes_on, of_each(gains, j), 0.0)
        if kind is MaxMin:
            gain = gain * (step > 0)
            value = torch.where(goes_on, gain, value)
        else:
            value = value + gain
        places[:, step], gained[:, step] = torch.where(goes_on, j, -1), gain
        objective.take(j, goes_on)
        is_open[torch.arange(b, dtype=torch.int64, device=j.device)[goes_on], j[goes_on]] = False
    if not kind.is_submodular:
        bound = objective.bound_of_value(value, k)
    return Run(places, gained, value, bound.maximum(value))  # which roundings may lift above it; NaN stays


def draws(batch: Batch, k: Tensor, seed: int, group_key: Tensor) -> Tensor:
    """[RANDOM_DRAWS, b, K] places of sets of k [b] rows, -1 behind them: as facility_location draws them, windows of
    one random order of the rows that may be picked."""
    place = torch.arange(batch.rows.shape[1], dtype=torch.int64, device=batch.device)
    key = _random.keys(seed, _random.CHANCE, group_key[:, None], place)
    order = key.sort(dim=1, stable=True).indices
    order = order.gather(
        1, (~batch.is_open.gather(1, order)).long().sort(dim=1, stable=True).indices
    )  # open ones first
    count = batch.is_open.sum(dim=1)[:, None]
    step = torch.arange(int(k.max()) if len(k) else 0, dtype=torch.int64, device=batch.device)
    found = []
    for r in range(RANDOM_DRAWS):
        window = (r * count // RANDOM_DRAWS + step) % count.clamp(min=1)
        found.append(torch.where(step < k[:, None], order.gather(1, window), -1))
    return torch.stack(found)


def chance_value(
    kind: type[Objective], batch: Batch, options: Options, k: Tensor, seed: int, group_key: Tensor
) -> Tensor:
    """[b] mean value of RANDOM_DRAWS sets of as many rows, NaN where no skill is told."""
    if not kind.is_submodular or not batch.rows.shape[1]:
        return torch.full(k.shape, math.nan if not kind.is_submodular else 0.0, dtype=torch.float64, device=k.device)
    objective = kind(batch, options)
    return torch.stack([objective.value(places) for places in draws(batch, k, seed, group_key)]).mean(dim=0)


def owners(batch: Batch, places: Tensor) -> Tensor:
    """[b, n] the place of the kept row that is most similar to each row, the lower of equals; -1 where none is."""
    best = torch.zeros_like(batch.quality)
    owner = torch.full_like(batch.rows, -1)
    for j in places.sort(dim=1).values.unbind(dim=1):  # ascending: the first of equals is the lower
        similar = batch.similar(j.clamp(min=0)) * (j >= 0)[:, None]
        is_nearer = similar > best
        best, owner = torch.where(is_nearer, similar, best), torch.where(is_nearer, j[:, None], owner)
    for j in places.unbind(dim=1):
        own = torch.arange(len(j), dtype=torch.int64, device=j.device)[j >= 0]
        owner[own, j[j >= 0]] = j[j >= 0]
    return torch.where(batch.is_row, owner, -1)
