"""neighbors: every backend against brute force in the defined order, ids included, and what the options mean."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mrtkern import _dispatch, lattice
from mrtkern.ops.neighbors import reference
from mrtkern.ops.neighbors.lists import Neighbors
from mrtkern.ops.neighbors.op import neighbors
from mrtkern.ops.neighbors.problem import METRICS, PRECISIONS, Case
from tests.tools import lists, oracle

CPU = _dispatch.load("neighbors", "cpu")
needs_cpu = pytest.mark.skipif(isinstance(CPU, str), reason=f"compiled kernels: {CPU}")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpu)]
COSINES = ("cosine", "shifted_cosine", "clamped_cosine")

every_backend = pytest.mark.parametrize("backend", BACKENDS)
also_interpreted = pytest.mark.parametrize("backend", [*BACKENDS, pytest.param("triton", marks=pytest.mark.interpret)])
every_case = pytest.mark.parametrize("case", lists.SMALL, ids=lambda case: case.name)
every_metric = pytest.mark.parametrize("metric", METRICS)


def found(backend: str, **arguments: Any) -> Neighbors:
    """What a backend answers; what it cannot run is skipped with its reason."""
    if reason := lists.why_not(backend, arguments):
        pytest.skip(reason)
    return neighbors(**arguments, backend=backend)


def excluded(inputs: dict[str, Any]) -> Any:
    """Pairs that are no neighbours, bool [M, N]."""
    rows, columns = len(inputs["x"]), len(inputs.get("y", inputs["x"]))
    pairs = np.zeros((rows, columns), bool)
    if "y" not in inputs and inputs.get("exclude_self") is not False:
        np.fill_diagonal(pairs, True)
    if (groups := inputs.get("exclude_group")) is not None:
        a, b = groups if isinstance(groups, tuple) else (groups, groups)
        pairs |= a.numpy()[:, None] == b.numpy()
    return pairs


def assert_brute_force(got: Neighbors, inputs: dict[str, Any]) -> None:
    """The very ids, and the float64 scores rounded once."""
    assert_nearest(got, *brute_force(inputs))


def brute_force(inputs: dict[str, Any]) -> tuple[Any, Any]:
    """ids and float64 scores [M, k]."""
    x = inputs["x"]
    scores = oracle.neighbor_scores(x, inputs.get("y", x), inputs.get("metric", "cosine"), inputs.get("gamma", 1.0))
    return oracle.nearest(scores, inputs["k"], excluded(inputs))


def assert_nearest(got: Neighbors, ids: Any, best: Any) -> None:
    assert torch.equal(got.ids, torch.from_numpy(ids))
    assert torch.equal(got.scores, torch.from_numpy(best.astype(np.float32)))


@functools.cache
def hard(name: str, metric: str) -> tuple[dict[str, Any], Any, Any]:
    """Inputs of hard rows and what is found by brute force, once for all backends."""
    inputs = {"x": lists.HARD[name](), "k": 9, "metric": metric}
    return inputs, *brute_force(inputs)


# The definition


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "rbf"])
@every_case
def test_exact_is_brute_force_in_float64(case: Case, metric: str) -> None:
    inputs = replace(case.problem, metric=metric).make_inputs()
    assert_brute_force(found("reference", **inputs), inputs)


@every_backend
@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "rbf"])
@pytest.mark.parametrize("name", lists.HARD)
def test_exact_is_brute_force_on_hard_rows(name: str, metric: str, backend: str) -> None:
    inputs, ids, best = hard(name, metric)
    assert_nearest(found(backend, **inputs), ids, best)


@every_case
def test_scores_are_similarities(case: Case) -> None:
    """Long-double scores of the neighbours, in every metric; rbf, whose exponential is the platform's, only here."""
    for metric in METRICS:
        inputs = replace(case.problem, metric=metric).make_inputs() | {"gamma": 0.01}
        truth = oracle.similarity(inputs["x"], inputs.get("y"), metric=metric, gamma=0.01)
        got = neighbors(**inputs, backend="reference")
        real, ids = got.ids >= 0, got.ids.clamp(min=0)
        value, magnitude = (torch.where(real, v.gather(1, ids), -torch.inf) for v in (truth.value, truth.magnitude))
        assert bool((got.scores[~real] == -torch.inf).all())
        # float64 sums, rounded once to float32; four roundings of float64 in units of float32 are less than one.
        oracle.assert_summed(got.scores[real], value[real], 1, magnitude[real])


def assert_smallest_distances(got: Neighbors, inputs: dict[str, Any]) -> None:
    """The ids of the smallest float64 distances, whose exponential is within one rounding of each score."""
    keys = oracle.neighbor_scores(inputs["x"], inputs.get("y", inputs["x"]), "distance")
    ids, best = oracle.nearest(keys, inputs["k"], excluded(inputs))
    assert torch.equal(got.ids, torch.from_numpy(ids))
    real, truth = got.ids >= 0, torch.from_numpy(np.exp(best * inputs["gamma"]))
    assert bool((got.scores[~real] == -torch.inf).all())
    oracle.assert_summed(got.scores[real], truth[real], 1, truth[real])


@every_backend
@every_case
def test_rbf_orders_by_float64_differences(case: Case, backend: str) -> None:
    inputs = replace(case.problem, metric="rbf").make_inputs() | {"gamma": 0.01}
    assert_smallest_distances(found(backend, **inputs), inputs)


@every_backend
@pytest.mark.parametrize("gamma", [0.01, 1e6])  # with the larger one most scores are 0, and still in order
@pytest.mark.parametrize("name", lists.HARD)
def test_rbf_orders_hard_rows_by_float64_differences(name: str, gamma: float, backend: str) -> None:
    inputs = {"x": lists.HARD[name](), "k": 9, "metric": "rbf", "gamma": gamma}
    assert_smallest_distances(found(backend, **inputs), inputs)


@every_backend
def test_distances_far_from_the_origin_are_told_apart(backend: str) -> None:
    """Squares of 1e8 whose differences are 1e-4: the products see nothing, float64 decides."""
    inputs = {"x": lists.normal(400, 6) * 1e-3 + 4096, "k": 5, "metric": "rbf", "gamma": 1.0}
    assert_smallest_distances(found(backend, **inputs), inputs)


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "rbf"])
@every_case
def test_int16_is_brute_force_on_the_lattice(case: Case, metric: str) -> None:
    if case.problem.dtype == torch.float64 and metric == "dot":
        pytest.skip("dot of float64 has precision exact only")
    inputs = replace(case.problem, metric=metric, precision="int16").make_inputs()
    x, y = (lattice.to_float32(inputs[name]) if name in inputs else None for name in ("x", "y"))
    assert x is not None
    products, worth = oracle.fine_products(x, x if y is None else y, metric, is_self=y is None)
    keys = np.maximum(products, 0) if metric == "clamped_cosine" else products
    ids, best = oracle.nearest(keys.astype(np.float64), inputs["k"], excluded(inputs))
    scores = best * worth[:, None]
    if metric != "dot":
        scores = np.where(ids >= 0, np.clip(scores, -1, 1), -np.inf)
    if metric == "shifted_cosine":
        scores = (1 + scores) / 2
    got = found("reference", **inputs)
    assert torch.equal(got.ids, torch.from_numpy(ids))
    assert torch.equal(got.scores, torch.from_numpy(scores.astype(np.float32)))


@every_backend
@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "rbf"])
@every_case
def test_float32_is_the_exact_answer_within_its_roundings(case: Case, metric: str, backend: str) -> None:
    if case.problem.dtype == torch.float64 and metric == "dot":
        pytest.skip("dot of float64 has precision exact only")
    inputs = replace(case.problem, metric=metric, precision="float32").make_inputs()
    got = found(backend, **inputs)
    x, y = inputs["x"], inputs.get("y", inputs["x"])
    scores = oracle.neighbor_scores(x, y, metric)
    _, best = oracle.nearest(scores, inputs["k"], excluded(inputs))
    real = got.ids >= 0
    assert torch.equal(real, torch.from_numpy(best > -np.inf))
    lengths = x.double().norm(dim=1, keepdim=True) * y.double().norm(dim=1).max() if metric == "dot" else 1.0
    magnitude = torch.as_tensor(lengths, dtype=torch.float64).expand(got.scores.shape)[real]
    roundings = oracle.similarity_steps(case.problem.D)
    own = torch.from_numpy(scores).gather(1, got.ids.clamp(min=0))
    oracle.assert_summed(got.scores[real], own[real], roundings, magnitude)
    oracle.assert_summed(got.scores[real], torch.from_numpy(best)[real], roundings, magnitude)
    assert not bool((got.ids.sort(dim=1).values.diff(dim=1) == 0)[real[:, 1:].flip(1)].any()), "an id twice in a row"


@needs_cpu
@pytest.mark.parametrize("arguments", [pytest.param(call, id=name) for name, call in lists.calls()])
def test_cpu_has_the_bits_of_the_reference(arguments: dict[str, Any]) -> None:
    mine = found("cpu", **arguments)
    assert lists.digest(mine) == lists.digest(neighbors(**arguments, backend="reference"))


@every_backend
def test_every_size_around_the_tiles(backend: str) -> None:
    """Rows, columns and features one off the 8, 16 and 48 of the tiles, all of them together."""
    for M, N, D in [
        (7, 9, 7),
        (8, 15, 9),
        (9, 47, 15),
        (15, 48, 16),
        (16, 49, 17),
        (17, 97, 47),
        (33, 16, 48),
        (1, 95, 49),
    ]:
        inputs = {"x": lists.normal(M, D), "y": lists.normal(N, D, 1), "k": 5}
        assert_brute_force(found(backend, **inputs), inputs)
        inputs = {"x": lists.normal(N, D, 2), "k": 5}
        assert_brute_force(found(backend, **inputs), inputs)


# Options


@also_interpreted
def test_a_row_finds_itself_only_when_asked_and_not_always_first(backend: str) -> None:
    x = lists.normal(20, 8)
    x[13] = x[4]
    with_self = found(backend, x=x, k=3, exclude_self=False)
    assert with_self.ids[13, :2].tolist() == [4, 13], "equal scores go to the lower index"
    without = found(backend, x=x, k=19)
    assert bool((without.ids != torch.arange(20)[:, None]).all())
    x[7] *= 100
    longest = found(backend, x=x, k=1, metric="dot", exclude_self=False).ids[:, 0]
    assert int((longest == torch.arange(20)).sum()) < 20, "with products the longest row wins"


@also_interpreted
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_of_equal_groups_are_no_neighbours(precision: str, backend: str) -> None:
    x, labels = lists.normal(90, 12), torch.arange(90) // 40  # groups of 40, 40 and 10 rows: larger than a tile
    got = found(backend, x=x, k=60, exclude_group=labels, precision=precision)
    assert bool((labels[got.ids.clamp(min=0)] != labels[:, None])[got.ids >= 0].all())
    assert (got.ids >= 0).sum(dim=1).tolist() == [50] * 80 + [60] * 10
    one = found(backend, x=x, k=2, exclude_group=torch.zeros(90, dtype=torch.int64), precision=precision)
    assert bool((one.ids == -1).all()) and bool((one.scores == -torch.inf).all())


@also_interpreted
def test_groups_of_two_matrices_are_compared_by_their_labels(backend: str) -> None:
    inputs = {"x": lists.normal(20, 6), "y": lists.normal(31, 6, 1), "k": 40}
    labels = (torch.arange(20) % 3 - 2**40, torch.arange(31) % 4 - 2**40)
    assert_brute_force(found(backend, **inputs, exclude_group=labels), inputs | {"exclude_group": labels})


@also_interpreted
@pytest.mark.parametrize("precision", PRECISIONS)
def test_clamped_cosines_tie_at_zero_by_index(precision: str, backend: str) -> None:
    x = torch.eye(6).repeat(2, 1)[:9]  # cosines 0 and 1
    x[5] *= -1
    got = found(backend, x=x, k=5, metric="clamped_cosine", precision=precision)
    assert got.ids[0].tolist() == [6, 1, 2, 3, 4]
    assert got.ids[5].tolist() == [0, 1, 2, 3, 4]
    assert got.scores[0].tolist() == [1, 0, 0, 0, 0]


@also_interpreted
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("metric", COSINES)
def test_zero_rows_have_cosine_zero_with_all(metric: str, precision: str, backend: str) -> None:
    x = lists.normal(40, 9)
    x[3] = x[17] = 0
    got = found(backend, x=x, k=39, metric=metric, precision=precision)
    zero = 0.5 if metric == "shifted_cosine" else 0.0
    assert got.ids[3].tolist() == [i for i in range(40) if i != 3]
    assert bool((got.scores[3] == zero).all())
    assert bool((got.scores[got.ids == 17] == zero).all())


@also_interpreted
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("metric", [*COSINES, "dot"])
def test_where_every_column_is_zero_the_first_are_the_neighbours(metric: str, precision: str, backend: str) -> None:
    got = found(backend, x=lists.normal(5, 9), y=torch.zeros(600, 9), k=3, metric=metric, precision=precision)
    assert bool((got.ids == torch.arange(3)).all())
    assert bool((got.scores == (0.5 if metric == "shifted_cosine" else 0.0)).all())


@also_interpreted
@pytest.mark.parametrize(
    ("k", "M", "N"), [(0, 5, 4), (4, 5, 4), (9, 5, 4), (3, 0, 4), (3, 5, 0), (2, 0, 0), (70, 3, 66)]
)
def test_any_number_of_neighbours_and_rows(k: int, M: int, N: int, backend: str) -> None:
    inputs = {"x": lists.normal(M, 7), "y": lists.normal(N, 7, 1), "k": k}
    got = found(backend, **inputs)
    assert got.ids.shape == got.scores.shape == (M, k)
    assert_brute_force(got, inputs)


@also_interpreted
def test_a_single_row_has_no_other(backend: str) -> None:
    assert found(backend, x=torch.ones(1, 3), k=2).ids.tolist() == [[-1, -1]]


@also_interpreted
def test_rows_without_features_tie(backend: str) -> None:
    got = found(backend, x=torch.ones(4, 0), k=2)
    assert got.ids.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]
    assert not got.scores.any()


# Numbers


@also_interpreted
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        (torch.float16, 6e4),  # squares beyond the largest float16
        (torch.float16, 6e-8),  # the smallest float16: squares below it
        (torch.float32, 3e38),
        (torch.float32, 1e-44),
        (torch.bfloat16, 3e38),
        (torch.bfloat16, 1e-39),
        (torch.float64, 1e308),
        (torch.float64, 1e-308),
    ],
)
def test_lengths_neither_overflow_nor_vanish(dtype: torch.dtype, size: float, precision: str, backend: str) -> None:
    x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    got = found(backend, x=x.mul(size).to(dtype), k=2, precision=precision)
    assert got.ids.tolist() == [[1, 2], [0, 2], [1, 0]]
    truth = torch.tensor([[0.5, 0.0], [0.5, 0.5], [0.5, 0.0]])
    near = lattice.cosine_error(4) if precision == "int16" else 0.0  # of the coarser lattice
    assert bool((got.scores - truth).abs().le(near + oracle.one_rounding(truth, torch.float32)).all())


@also_interpreted
def test_float64_is_ordered_by_all_its_digits(backend: str) -> None:
    y = torch.ones(30, 2, dtype=torch.float64)
    y[:, 1] = torch.arange(30).flip(0) * 2.0**-40  # float32 would see 30 equal cosines
    inputs = {"x": torch.ones(1, 2, dtype=torch.float64), "y": y, "k": 30}
    got = found(backend, **inputs)
    assert_brute_force(got, inputs)
    assert got.ids[0].tolist() == list(range(30)) and got.scores.unique().numel() == 1
    got = found(backend, **inputs | {"y": y.flip(0)})
    assert got.ids[0].tolist() == list(range(30))[::-1]


@every_backend
def test_a_float16_row_is_its_float32_value(backend: str) -> None:
    x = lists.normal(50, 19).half()
    for dtype in (torch.float32, torch.float64):
        a, b = found(backend, x=x, k=7), found(backend, x=x.to(dtype), k=7)
        assert torch.equal(a.ids, b.ids) and torch.equal(a.scores, b.scores)


@every_backend
@pytest.mark.parametrize("precision", PRECISIONS)
def test_strides_and_alignment_do_not_matter(precision: str, backend: str) -> None:
    base = lists.normal(60, 64)
    bytes_ = torch.empty(40 * 20 * 4 + 1, dtype=torch.uint8)
    unaligned = torch.from_numpy(np.frombuffer(bytes_.numpy().data, np.float32, 800, offset=0)).view(40, 20)
    unaligned[:] = base[:40, :20]
    shifted = base.flatten()[1:801].view(40, 20)
    views = [base[::2, ::3], base.T, base[:1].expand(9, 64), base[:9, :1].expand(9, 7), unaligned, shifted]
    for view in views:
        for dtype in (torch.float32, torch.bfloat16):
            rows = view.to(dtype) if dtype != torch.float32 else view
            a = found(backend, x=rows, k=4, precision=precision)
            b = found(backend, x=rows.contiguous().clone(), k=4, precision=precision)
            assert torch.equal(a.ids, b.ids) and torch.equal(a.scores, b.scores)


@also_interpreted
def test_lazy_minus_signs_are_resolved(backend: str) -> None:
    z = torch.randn(20, 6, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    lazy = z.conj().imag
    assert lazy.is_neg()
    a, b = found(backend, x=lazy, k=3), found(backend, x=lazy.clone().resolve_neg(), k=3)
    assert torch.equal(a.ids, b.ids)


@also_interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_first_row_that_is_not_finite_is_named(
    precision: str, value: float, dtype: torch.dtype, backend: str
) -> None:
    x = torch.ones(70, 19, dtype=dtype)
    x[60, 2] = torch.nan
    x[37, 18] = value
    with pytest.raises(ValueError, match=f"^neighbors: x must be finite, got {value} in row 37$"):
        found(backend, x=x, k=3, precision=precision)
    with pytest.raises(ValueError, match=f"^neighbors: y must be finite, got {value} in row 37$"):
        found(backend, x=torch.ones(2, 19, dtype=dtype), y=x, k=3, precision=precision)
    with pytest.raises(ValueError, match=f"got {value} in row 37$"):
        found(backend, x=x, k=0, precision=precision)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", lists.PRECISIONS)
@every_case
def test_reference_on_a_gpu_has_the_bits_of_the_reference_on_the_cpu(case: Case, precision: str) -> None:
    inputs = replace(case.problem, precision=precision).make_inputs()
    on_gpu = replace(case.problem, precision=precision, device="cuda").make_inputs()
    got, same = (neighbors(**arguments, backend="reference") for arguments in (on_gpu, inputs))
    assert torch.equal(got.ids.cpu(), same.ids) and torch.equal(got.scores.cpu(), same.scores)


# The reference itself


def test_the_largest_keys_are_those_of_a_stable_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    for k in (0, 1, 5, 12):
        keys = torch.randint(-2, 2, (9, 12), generator=generator).double()
        keys[:, ::2] *= -1  # zeros of both signs
        keys[:, 5] = -torch.inf
        best, ids = reference.largest(keys, torch.arange(12).expand(9, -1), k)
        order = keys.sort(dim=1, descending=True, stable=True)
        assert torch.equal(best, order.values[:, :k])
        assert torch.equal(ids, order.indices[:, :k])


@pytest.mark.parametrize("name", ["one row more than a block of 512", "many features", "self graph", "groups"])
@pytest.mark.parametrize("metric", ["cosine", "dot", "rbf"])
def test_memory_of_the_reference_stays_within_its_formula(name: str, metric: str) -> None:
    case = next(case for case in lists.SMALL if case.name == name)
    problem = replace(case.problem, metric=metric)
    inputs = problem.make_inputs()
    peak, got = oracle.peak_bytes(lambda: neighbors(**inputs, backend="reference"))
    assert 0 <= peak - got.ids.nbytes - got.scores.nbytes <= reference.memory(problem)
