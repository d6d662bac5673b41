"""A thousand random shapes of every operation on a device in one process: what a call leaves behind meets the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mrtkern
from mrtkern.ops.cross_entropy.problem import Options
from mrtkern.ops.cross_entropy.problem import Problem as Logits
from mrtkern.ops.linear_cross_entropy.problem import Problem as Head
from mrtkern.ops.neighbors.problem import Problem as Lists
from mrtkern.ops.similarity.problem import Problem as Pairs
from tests.facility_location import test_facility_location_cuda
from tests.linear_cross_entropy import test_linear_log_prob as log_prob
from tests.neighbors.test_neighbors_triton import assert_bits_of_the_reference
from tests.similarity.test_similarity_triton import assert_bounded as assert_pairs_bounded
from tests.tools.linear_heads import assert_all_bounded, truth, with_gradients
from tests.tools.losses import NARROW, assert_bounded, details_of, with_gradient
from tests.tools.on_device import SHAPES, Draw, back, named, placed

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
# Every type and metric compiles kernels of its own: of these there are few, of sizes many.
METRICS = ("cosine", "rbf")


def sizes_of_groups(draw: Draw, most: int) -> tuple[int, ...]:
    """Up to twelve groups, some empty."""
    return tuple(draw.integer(0, 1) and draw.size(most) for _ in range(draw.integer(1, 12)))


def pairs(draw: Draw) -> Pairs:
    D, kind = draw.size(130), draw.one_of("dense", "batched", "packed")
    options: dict[str, Any] = {"metric": draw.one_of(*METRICS), "gamma": 0.05}
    if kind == "packed":
        sizes = sizes_of_groups(draw, 70)
        return Pairs(kind, len(sizes), sum(sizes), None, D, draw.one_of(*NARROW), sizes=sizes, **options)
    B, most = (1, 200) if kind == "dense" else (draw.integer(1, 9), 40)
    return Pairs(kind, B, draw.size(most), draw.one_of(None, draw.size(most)), D, draw.one_of(*NARROW), **options)


def test_shapes_of_similarity() -> None:
    draw = Draw(0)
    for seed in range(SHAPES):
        problem = pairs(draw)
        with named(problem):
            assert_pairs_bounded(problem.make_inputs(seed), "cuda")


def test_shapes_of_neighbors() -> None:
    draw = Draw(1)
    for seed in range(SHAPES):
        N = draw.one_of(None, draw.size(700))
        problem = Lists(
            draw.size(200), N, draw.integer(1, 20), draw.size(100), torch.float32,
            precision=draw.one_of("exact", "int16"), exclude_self=N is None,
        )  # fmt: skip
        with named(problem):
            assert_bits_of_the_reference("cuda", **problem.make_inputs(seed))


def test_shapes_of_deduplicate() -> None:
    draw = Draw(2)
    for seed in range(SHAPES):
        rows, D = draw.size(400), draw.size(80)
        x = torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))
        x[rows // 2 :] = x[: rows - rows // 2] + 0.1 * x[rows // 2 :]
        with named(f"{rows} x {D}"):
            found = mrtkern.deduplicate(x.cuda(), 0.97, backend="triton").cpu()
            assert torch.equal(found, mrtkern.deduplicate(x, 0.97, backend="reference"))


def test_shapes_of_facility_location() -> None:
    draw = Draw(3)
    for seed in range(SHAPES):
        sizes = list(sizes_of_groups(draw, 90))
        x = test_facility_location_cuda.hard_rows(sum(sizes), draw.size(400), seed).to(draw.one_of(*NARROW))
        k = torch.tensor(sizes).clamp(max=draw.integer(0, 9))
        with named(f"{sizes} x {x.shape[1]} {x.dtype}, k {k.tolist()}"):
            test_facility_location_cuda.assert_equal("cuda", x, k, sizes)


def test_shapes_of_cross_entropy() -> None:
    draw = Draw(4)
    for seed in range(SHAPES):
        options = draw.one_of(Options(), Options(label_smoothing=0.1, z_loss=1e-3, softcap=5.0))
        T, V, dtype, has_weight = draw.size(40), draw.size(5000), draw.one_of(*NARROW), draw.one_of(False, True)
        problem = Logits(T, V, dtype, options=options, has_weight=has_weight)
        inputs = problem.make_inputs(seed)
        there = placed(inputs)
        with named(problem):
            details = details_of(there, backend="triton")
            assert_bounded(details, with_gradient(there, backend="triton")[1], inputs)


def test_shapes_of_linear_cross_entropy() -> None:
    draw = Draw(5)
    for seed in range(SHAPES):
        sizes = draw.size(150), draw.size(70), draw.size(600)
        more = {"ignored": draw.one_of(0.0, 0.3), "has_bias": draw.one_of(False, True)}
        problem = Head(*sizes, *(torch.float32,) * 3, needs=(True, True, more["has_bias"]), **more)
        inputs = problem.make_inputs(seed)
        with named(problem):
            found = with_gradients(placed(inputs), backend="triton")
            assert_all_bounded(back(found), truth(inputs))


def test_shapes_of_linear_log_prob() -> None:
    draw = Draw(6)
    for _ in range(SHAPES):
        T, D, V = draw.size(100), draw.size(40), draw.size(400)
        inputs, (a, c) = log_prob.make_inputs(T, D, V, torch.float32), log_prob.upstream(T)
        there = placed({**inputs, "a": a, "c": c})
        options = {"temperature": 1.3}
        with named(f"{T} x {D} x {V}"):
            found = log_prob.with_gradients(
                mrtkern.linear_log_prob, {name: there[name] for name in inputs}, there["a"], there["c"], **options,
                backend="triton",
            )  # fmt: skip
            assert_all_bounded(back(found), log_prob.truth(inputs, a, c, **options))
