"""What candidates gain, by tiles of pairs on a device: the very integers of the reference, whatever is weighed and
covered already."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mrtkern import lattice
from mrtkern.ops.facility_location import reference
from mrtkern.ops.facility_location.ground import METRICS, Features
from mrtkern.ops.facility_location.rule import Rule
from tests.tools import lists

pytest.importorskip("mrtkern._triton.rows", reason="needs Triton 3.4 or later")
pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
from mrtkern.ops.facility_location.triton import launch, oracles

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
every_device = pytest.mark.parametrize("device", DEVICES)
every_metric = pytest.mark.parametrize("metric", METRICS)


class Held(NamedTuple):
    """A ground on a device, with something covered already, and the truth about it."""

    pairs: launch.Pairs
    best: Tensor  # there
    t: Tensor  # [M, N]
    covered: Tensor  # [M] steps

    @property
    def gains(self) -> Tensor:
        """Of all candidates."""
        return (self.t - self.covered[:, None]).clamp(min=0).sum(dim=0)


def held(
    x: Tensor | None, y: Tensor, best: Tensor, metric: str, device: str, weight: Tensor | None = None,
    quality: Tensor | None = None,
) -> Held:  # fmt: skip
    """Candidates y that cover x (None: themselves), and best [M] in steps."""
    M = len(y if x is None else x)
    w, a = torch.ones(M) if weight is None else weight, torch.ones(len(y)) if quality is None else quality
    maximum = float(w.double().max() * a.double().max())
    t = reference.fixed_point(*reference.similarities(y, x, metric), w, a, maximum)
    there = {
        name: None if value is None else value.to(device)
        for name, value in {"x": y, "targets": x, "weight": weight, "quality": quality}.items()
    }
    k = torch.ones(1, dtype=torch.int64, device=device)
    rule = Rule(k=k, total=1, group_key=k, fill="none", seed=0, weight=there["weight"], quality=there["quality"])
    ground = Features(x=there["x"], targets=there["targets"], metric=metric)
    made = oracles.Features(ground, rule, maximum, 0)
    made.best[:M] += best.to(device)
    return Held(made.pairs, made.best, t, best)


def both(*given: object, **named: object) -> tuple[Tensor, Tensor]:
    """Gains of the kernel and of the reference."""
    it = held(*given, **named)  # type: ignore[arg-type]
    return it.pairs.sums(it.best, launch.tiles(it.best.device).all).cpu(), it.gains


def covered(x: Tensor, seed: int) -> Tensor:
    """What earlier picks might have covered, from nothing to everything."""
    return torch.randint(0, lattice.STEPS + 1, (len(x),), generator=torch.Generator().manual_seed(seed))


@every_device
@every_metric
@pytest.mark.parametrize(
    ("M", "N", "D"),
    [
        (1, 1, 1),
        (70, 127, 63),  # one column less than a tile of candidates, one feature less than a step
        (129, 129, 65),  # one row and one candidate more than a tile, one feature more than a step
        (30, 40, 384),  # real embeddings
        (3, 5, 0),
    ],
)
def test_gains_are_those_of_the_reference(M: int, N: int, D: int, metric: str, device: str) -> None:
    x, y = lists.normal(M, D), lists.normal(N, D, 1)
    got, truth = both(x, y, covered(x, 2), metric, device)
    assert torch.equal(got, truth)
    got, truth = both(x, y, torch.zeros(M, dtype=torch.int64), metric, device)
    assert torch.equal(got, truth)


@every_device
@every_metric
def test_weights_and_quality_are_folded_in_before_rounding(metric: str, device: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x, y = lists.normal(150, 33), lists.normal(90, 33, 1)
    weight, quality = torch.rand(150, generator=generator) * 7, torch.rand(90, generator=generator) * 2.0**-90
    weight[::5], quality[::7] = 0, 0
    for given in ((weight, None), (None, quality), (weight, quality)):
        got, truth = both(x, y, covered(x, 4) // 9, metric, device, *given)
        assert torch.equal(got, truth)


@every_device
@pytest.mark.parametrize("name", lists.HARD)
def test_gains_of_hard_rows_are_those_of_the_reference(name: str, device: str) -> None:
    x = lists.HARD[name]()
    got, truth = both(x, x[:50], covered(x, 5), "shifted_cosine", device)
    assert torch.equal(got, truth)


@every_device
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_features_are_their_float32_values(dtype: torch.dtype, device: str) -> None:
    x = lists.normal(60, 40).to(dtype)
    got, truth = both(x, x, covered(x, 6), "shifted_cosine", device)
    assert torch.equal(got, truth)


# One tile, one row more than a tile of the device, and of the interpreter
ROWS = (50, 129, 300)


@every_device
@every_metric
@pytest.mark.parametrize("N", ROWS)
def test_both_sides_of_a_tile_gain_where_candidates_cover_themselves(N: int, metric: str, device: str) -> None:
    x = lists.normal(N, 20)
    x[::7], x[3] = x[5], 0.0
    values = torch.rand(2, N, generator=torch.Generator().manual_seed(8))
    for given in ((), (values[0], None), (None, values[1]), (values[0], values[1])):
        got, truth = both(None, x, covered(x, 7), metric, device, *given)
        assert torch.equal(got, truth)


@every_device
@pytest.mark.parametrize("has_targets", [False, True])
@pytest.mark.parametrize("N", ROWS)
def test_pairs_above_what_is_covered_are_counted_and_written(N: int, has_targets: bool, device: str) -> None:
    """Each once, those of closed candidates never, in whatever order a candidate's lie."""
    y = lists.normal(N, 20)
    x = lists.normal(70, 20, 1) if has_targets else None
    it = held(x, y, covered(y if x is None else x, 9), "shifted_cosine", device, None, torch.rand(N))
    is_open = (torch.arange(N) % 3 > 0).to(torch.uint8)
    is_above = it.t > it.covered[:, None]
    counts = it.pairs.sums(it.best, launch.tiles(it.best.device).all, is_counted=True).cpu()
    assert torch.equal(counts, is_above.sum(dim=0))
    counts *= is_open
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    rows = torch.empty(int(ends[-1]), dtype=torch.int32, device=device)
    t = torch.empty(int(ends[-1]), dtype=torch.int16, device=device)
    place = ends[:-1].to(device, copy=True)
    it.pairs.write(it.best, is_open.to(device), place, rows, t)
    assert torch.equal(place.cpu(), ends[1:])
    candidate = torch.repeat_interleave(counts)
    found = torch.zeros_like(it.t)
    found[rows.cpu().long(), candidate] = t.cpu().long()
    assert torch.equal(found, torch.where(is_above & (is_open > 0), it.t, 0))
    at = torch.tensor([N - 1, 1, 4, N // 2])
    gains = launch.Lists(ends.to(device), rows, t).gains(at.to(device), it.best).cpu()
    assert torch.equal(gains, it.gains[at] * is_open[at])


@every_device
@pytest.mark.parametrize("count", [1, 63, 64])  # a batch has 64
def test_candidates_cover_one_after_the_other(count: int, device: str) -> None:
    y, x = lists.normal(90, 20), lists.normal(300, 20, 1)
    it = held(x, y, covered(x, 10) // 3, "shifted_cosine", device)
    ids = torch.arange(90).flip(0)[:count]
    reached = torch.maximum(it.t[:, ids].cummax(dim=1).values, it.covered[:, None])
    gained = torch.cat([it.covered[:, None], reached], dim=1).diff(dim=1).sum(dim=0)
    batch = it.pairs.of_candidates(ids.to(device))
    quietly = it.best.clone()
    assert torch.equal(batch.sums(it.best, launch.tiles(it.best.device).few).cpu(), it.gains[ids])
    assert torch.equal(batch.take(it.best, True).cpu(), gained)
    batch.take(quietly, False)
    for best in (it.best, quietly):
        assert torch.equal(best[:300].cpu() - launch.NOTHING, reached[:, -1].float())
        assert bool((best[300:] == launch.EVERYTHING).all())


@every_device
@every_metric
@pytest.mark.parametrize("M", ROWS)
def test_the_first_of_the_most_similar_owns_a_row(M: int, metric: str, device: str) -> None:
    """Of more candidates than a tile has, with copies among them."""
    y, x = lists.normal(90, 6), lists.normal(M, 6, 1)
    y[70:80] = y[10:20]
    it = held(x, y, torch.zeros(M, dtype=torch.int64), metric, device)
    owner = torch.full(it.best.shape, -1, dtype=torch.int32, device=device)
    it.pairs.of_candidates(torch.arange(50, device=device)).reach(it.best, owner, 0)
    it.pairs.of_candidates(torch.arange(50, 90, device=device)).reach(it.best, owner, 50)
    most, who = it.t.max(dim=1)
    assert torch.equal(it.best[:M].cpu() - launch.NOTHING, most.float())
    assert torch.equal(owner[:M].cpu().long(), torch.where(most > 0, who, -1))
