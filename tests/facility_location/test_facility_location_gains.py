"""Gains of candidates on tensor cores: the very integers of the reference, whatever is weighed and covered already."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mrtkern import lattice
from mrtkern.ops.facility_location import reference
from mrtkern.ops.facility_location.ground import METRICS
from tests.tools import lists

rows_of = pytest.importorskip("mrtkern._triton.rows", reason="needs Triton 3.4 or later")
from mrtkern.ops.facility_location import gains as kernel  # noqa: E402

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpret), pytest.param("cuda", marks=pytest.mark.gpu)]
every_device = pytest.mark.parametrize("device", DEVICES)
every_metric = pytest.mark.parametrize("metric", METRICS)


def both(
    x: Tensor, y: Tensor, best: Tensor, metric: str, device: str, weight: Tensor | None = None,
    quality: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gains of the kernel and of the reference; best [M] in steps."""
    similar, scale = reference.similarities(y, x, metric)
    w = torch.ones(len(x)) if weight is None else weight
    a = torch.ones(len(y)) if quality is None else quality
    maximum = float(w.double().max() * a.double().max())
    t = reference.fixed_point(similar, scale, w, a, maximum)
    truth = (t - best[:, None]).clamp(min=0).sum(dim=0)

    unit = (w.double() * lattice.STEPS / (scale * maximum)).float()
    base = lattice.unit_square(x.shape[1]) if metric == "shifted_cosine" else 0
    q, p = (
        rows_of.on_lattice(rows, lattice.square_root(rows_of.squares(rows)))[0] for rows in (x.to(device), y.to(device))
    )
    on_device = (best.to(torch.int16), unit, quality)
    best_, unit_, quality_ = (None if value is None else value.to(device) for value in on_device)
    return kernel.gains(q, p, best_, unit_, base, quality_).cpu(), truth


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
