"""Pairs of large sets, consumed tile by tile: sums, gains, maxima and kept pairs are those of the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mrtkern import lattice
from mrtkern.ops.facility_location import reference

C = pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")

# one row; around a panel of 16; around the 192 units that are multiplied at a time; more than a block of rows
SIZES = [(1, 1, 1), (15, 17, 3), (16, 33, 16), (70, 40, 385), (1100, 130, 8)]
METRICS = ("shifted_cosine", "clamped_cosine")


def make(N: int, M: int, D: int) -> dict[str, Any]:
    """Candidates [N, D], rows to cover [M, D], and what is reached already."""
    g = torch.Generator().manual_seed(N)
    x, y = torch.randn(N, D, generator=g), torch.randn(M, D, generator=g)
    x[N // 2] = 0  # a row without a direction
    weight, quality = torch.rand(M, generator=g), torch.rand(N, generator=g)
    best = torch.randint(0, 16000, (M,), generator=g).to(torch.uint16)
    return {"x": x, "y": y, "weight": weight, "quality": quality, "best": best}


def stream(want: str, metric: str, threads: int, x: Tensor, y: Tensor, **given: Tensor) -> tuple[Tensor, ...]:
    """What the kernels make of all pairs."""
    candidates, covered = (
        C.Features(
            data=v.data_ptr(), dtype="float32", row_stride=v.stride(0), column_stride=v.stride(1), columns=v.shape[1]
        )
        for v in (x, y)
    )
    t = torch.zeros(x.shape[0], -(-y.shape[0] // 16) * 16, dtype=torch.uint16)
    out = torch.zeros(x.shape[0], dtype=torch.uint16 if want == "largest" else torch.int64)
    maximum = float(given["weight"].double().max() * given["quality"].double().max())
    problem = C.StreamProblem(
        candidates=candidates,
        covered=covered,
        N=x.shape[0],
        M=y.shape[0],
        metric=metric,
        radius=lattice.radius(x.shape[1]),
        weight=given["weight"].data_ptr(),
        quality=given["quality"].data_ptr(),
        maximum=maximum,
    )
    *bad, offsets, ids, values = C.stream_pairs(
        problem, best=given["best"].data_ptr(), want=want, t=t.data_ptr(), out=out.data_ptr(), threads=threads
    )
    assert bad == [-1, -1]
    return t, out, torch.tensor(offsets), torch.tensor(ids, dtype=torch.int64), torch.tensor(values, dtype=torch.int64)


def table(metric: str, x: Tensor, y: Tensor, weight: Tensor, quality: Tensor, **_: Tensor) -> Tensor:
    """The reference's t [M, N]."""
    s, scale = reference.similarities(x, y, metric)
    return reference.fixed_point(s, scale, weight, quality, float(weight.double().max() * quality.double().max()))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("threads", [1, 2])
def test_cpu_pairs_are_those_of_the_reference(sizes: tuple[int, int, int], metric: str, threads: int) -> None:
    given = make(*sizes)
    t = table(metric, **given)
    excess = (t - given["best"].long()[:, None]).clamp(min=0)
    stored, gains, *_ = stream("table", metric, threads, **given)
    assert torch.equal(stored[:, : len(t)].long(), t.T) and not stored[:, len(t) :].any()
    assert torch.equal(gains, t.sum(0))
    assert torch.equal(stream("gains", metric, threads, **given)[1], excess.sum(0))
    assert torch.equal(stream("largest", metric, threads, **given)[1].long(), t.amax(0))
    _, _, offsets, ids, values = stream("sparse", metric, threads, **given)
    j, i = (excess.T > 0).nonzero(as_tuple=True)  # by candidates, rows ascending
    assert torch.equal(ids, i) and torch.equal(values, t.T[j, i])
    assert torch.equal(offsets, torch.cat([offsets.new_zeros(1), (excess > 0).sum(0).cumsum(0)]))


def test_a_row_that_is_not_finite_is_named() -> None:
    given = make(40, 30, 5)
    given["y"][17, 2] = torch.nan
    with pytest.raises(AssertionError, match="17"):
        stream("gains", METRICS[0], 1, **given)
