"""Approximate neighbours: among the pairs that meet the answer is exact, and what is missed is measured truly."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import mrtkern
from mrtkern import _dispatch
from mrtkern.ops.neighbors import approximate, reference
from mrtkern.ops.neighbors.lists import Neighbors
from mrtkern.ops.neighbors.op import neighbors
from mrtkern.ops.neighbors.problem import METRICS, Cells, Inputs, Problem
from tests.tools import lists, oracle, process

CPU = _dispatch.load("neighbors", "cpu")
needs_cpu = pytest.mark.skipif(isinstance(CPU, str), reason=f"compiled kernels: {CPU}")
BACKENDS = ["reference", pytest.param("cpu", marks=needs_cpu)]
every_backend = pytest.mark.parametrize("backend", BACKENDS)
GIB = 2**30


@pytest.fixture(params=["faiss", "sklearn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two that may cluster."""
    name: str = request.param
    if not approximate.is_installed(name):
        pytest.skip(f"{name} is not installed")
    monkeypatch.setattr(approximate, "is_installed", name.__eq__)
    return name


def clustered(rows: int, D: int, seed: int = 0) -> Tensor:
    """Rows around rows / 40 centres, from near to far."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(rows // 40, 1), D, generator=generator)
    noise = torch.rand(rows, 1, generator=generator) + 0.2
    return centres[torch.randint(0, len(centres), (rows,), generator=generator)] + noise * lists.normal(
        rows, D, seed + 1
    )


def wide(number: float | None) -> Tensor:
    return torch.tensor(number, dtype=torch.float64)


def drawn_cells(M: int, N: int, count: int, P: int, generator: torch.Generator) -> Cells:
    """Any cells at all, some of them empty, and any probes."""
    cell = torch.randint(0, count, (N,), generator=generator).clamp(max=count - 1 - count // 4)
    probes = torch.rand(M, count, generator=generator).argsort(dim=1)[:, :P].contiguous()
    return Cells(count, cell, probes)


@st.composite
def searches(draw: Any) -> Inputs:
    """Calls of every metric, precision and exclusion, with copies, zero rows and small sizes around those of tiles."""
    size = st.sampled_from([1, 2, 3, 15, 16, 17, 33, 70])
    M, N, D = draw(size), draw(st.one_of(st.none(), size)), draw(st.sampled_from([1, 3, 16, 33]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    metric, precision = draw(st.sampled_from(METRICS)), draw(st.sampled_from(lists.PRECISIONS))
    if metric == "rbf":
        precision = "exact"
    pool = torch.randn(max(M, N or 0) // 2 + 1, D, generator=generator)
    pool[::5] = 0
    x = pool[torch.randint(0, len(pool), (M,), generator=generator)]
    y = None if N is None else pool[torch.randint(0, len(pool), (N,), generator=generator)]
    groups: tuple[Tensor | None, Tensor | None] = (None, None)
    if draw(st.booleans()):
        labels = torch.randint(0, 3, (M + (N or 0),), generator=generator)
        groups = (labels[:M], labels[:M] if N is None else labels[M:])
    count = draw(st.integers(1, 9))
    cells = drawn_cells(M, M if N is None else N, count, draw(st.integers(1, count)), generator)
    is_self = N is None and draw(st.booleans())
    k = draw(st.integers(1, 20))
    return Inputs(x, y, k, metric, 0.5, precision, is_self, group_x=groups[0], group_y=groups[1], cells=cells)


# Among the pairs that meet


@needs_cpu
@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(searches())
def test_cpu_answers_as_the_definition_does_in_any_cells(inputs: Inputs) -> None:
    mine, same = CPU.forward(inputs), reference.forward(inputs)
    assert torch.equal(mine[0], same[0])
    real = same[0] >= 0
    if inputs.metric == "rbf":  # whose exponential is the platform's
        oracle.assert_summed(mine[1][real], same[1][real].double(), 1, same[1][real].double())
    else:
        assert torch.equal(mine[1], same[1])


@every_backend
@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(searches())
def test_lists_are_those_of_the_exact_search_without_what_never_met(backend: str, inputs: Inputs) -> None:
    """All exact scores in order, of which the pairs of no common cell are crossed out; so no id is twice in a list."""
    cells = inputs.cells
    assert cells is not None
    module: Any = _dispatch.load("neighbors", backend)
    ids, scores = module.forward(inputs._replace(cells=None, k=len(inputs.x if inputs.y is None else inputs.y)))
    got = module.forward(inputs)
    for row in range(len(inputs.x)):
        met = [(int(j), float(s)) for j, s in zip(ids[row], scores[row], strict=True)
               if j >= 0 and int(cells.cell[j]) in cells.probes[row].tolist()]  # fmt: skip
        met = (met + [(-1, -torch.inf)] * inputs.k)[: inputs.k]
        assert list(zip(got[0][row].tolist(), got[1][row].tolist(), strict=True)) == met


@needs_cpu
@pytest.mark.parametrize("metric", METRICS)
def test_probing_every_cell_is_the_exact_answer_in_the_kernel(metric: str) -> None:
    """Sizes at which blocks of rows are split, and cells longer than what is scanned between two looks at the clock."""
    x, y = clustered(2300, 24), clustered(3100, 24, 5)
    cell = (torch.arange(3100) % 37 // 12).contiguous()  # 4 cells, of which one has few members
    probes = torch.arange(2300)[:, None].add(torch.arange(4)).remainder(4).contiguous()
    inputs = Inputs(x, y, 20, metric, 0.01, exclude_self=False)
    mine, same = CPU.forward(inputs._replace(cells=Cells(4, cell, probes))), CPU.forward(inputs)
    assert all(torch.equal(a, b) for a, b in zip(mine, same, strict=True))


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_types_and_strides_are_gathered_like_the_rows_themselves(dtype: torch.dtype) -> None:
    cells = drawn_cells(150, 150, 6, 3, torch.Generator().manual_seed(0))
    wide = lists.normal(300, 60).to(dtype)
    for x in (wide[:150, :30], wide[::2, 1::2], wide[:30].mT.repeat(3, 1)[:150], wide[:1, :30].expand(150, 30)):
        inputs = Inputs(x, k=7, cells=cells)
        same = CPU.forward(inputs._replace(x=x.contiguous()))
        assert all(torch.equal(a, b) for a, b in zip(CPU.forward(inputs), same, strict=True))
        assert torch.equal(same[0], reference.forward(inputs)[0])


# The public function


@every_backend
@pytest.mark.parametrize("metric", METRICS)
def test_as_many_probes_as_cells_are_the_exact_answer(metric: str, backend: str) -> None:
    x = lists.normal(60, 9)
    for probes in (8, 100):  # ceil(sqrt(60)) = 8
        got = neighbors(x, 5, metric=metric, approximate=probes, backend=backend)
        same = neighbors(x, 5, metric=metric, backend=backend)
        assert torch.equal(got.ids, same.ids) and torch.equal(got.scores, same.scores)
        assert (got.recall, got.recall_worst_tenth) == (1.0, 1.0) and same.recall is same.recall_worst_tenth is None


@every_backend
@pytest.mark.parametrize("metric", METRICS)
def test_every_score_is_the_exact_score_of_its_pair(metric: str, backend: str, library: str) -> None:
    x, y = clustered(90, 12), clustered(200, 12, 3)
    for rows in (None, y):
        got = neighbors(x, 9, y=rows, metric=metric, gamma=0.01, approximate=2, backend=backend)
        N = 90 if rows is None else 200
        exact = neighbors(x, N, y=rows, metric=metric, gamma=0.01, backend=backend)
        scores = torch.full((90, N + 1), -torch.inf).scatter(1, exact.ids.remainder(N + 1), exact.scores)
        assert torch.equal(got.scores, scores.gather(1, got.ids.remainder(N + 1)))  # -1 is the last column
        assert not bool((got.ids.sort(dim=1).values.diff(dim=1) == 0)[(got.ids >= 0)[:, 1:].flip(1)].any())


@every_backend
@pytest.mark.parametrize("metric", METRICS)
def test_recall_is_the_share_of_the_true_lists(metric: str, backend: str) -> None:
    """Of up to 256 rows all are measured, so the estimate is the truth."""
    x = clustered(250, 16)
    got = neighbors(x, 10, metric=metric, gamma=0.01, approximate=2, backend=backend)
    exact = neighbors(x, 10, metric=metric, gamma=0.01, backend=backend)
    found = [len({*a} & {*b}) / 10 for a, b in zip(got.ids.tolist(), exact.ids.tolist(), strict=True)]
    assert 0 < got.recall < 1, "or the claim is empty"
    worst = sum(sorted(found)[:25]) / 25
    for mine, truth in ((got.recall, sum(found) / 250), (got.recall_worst_tenth, worst)):
        oracle.assert_summed(wide(mine), wide(truth), 250, 1.0)


@needs_cpu
def test_recall_grows_with_the_probes_and_stays_below_one() -> None:
    x = clustered(5000, 24)
    found = [neighbors(x, 16, approximate=probes) for probes in (1, 4, 16, 64)]
    recalls = [got.recall for got in found]
    assert recalls == sorted(recalls) and recalls[0] < recalls[-1] <= 1
    assert all(0 <= got.recall_worst_tenth <= got.recall for got in found)


@every_backend
def test_equal_rows_are_as_good_as_each_other(backend: str, library: str) -> None:
    """Whichever of them are found, none is missed; and those found are the lowest of their cell."""
    got = neighbors(torch.ones(300, 6), 4, approximate=2, backend=backend)
    assert got.recall == got.recall_worst_tenth == 1.0
    assert bool((got.ids.diff(dim=1) > 0).all()) and bool((got.scores == 1).all())


@every_backend
@pytest.mark.parametrize(("M", "N", "k"), [(1, None, 2), (0, 9, 2), (9, 1, 2), (2, 0, 3), (0, None, 1), (30, 30, 0)])
def test_any_number_of_rows_and_neighbours(M: int, N: int | None, k: int, backend: str) -> None:
    y = None if N is None else lists.normal(N, 4, 1)
    got = neighbors(lists.normal(M, 4), k, y=y, approximate=1, backend=backend)
    assert got.ids.shape == got.scores.shape == (M, k) and got.recall is not None and 0 <= got.recall <= 1


@every_backend
@pytest.mark.parametrize("metric", METRICS)
def test_rows_without_features_are_all_neighbours(metric: str, backend: str) -> None:
    """Nothing to cluster, which the libraries do not survive."""
    x = torch.zeros(20, 0)
    found = neighbors(x, 3, metric=metric, approximate=1, backend=backend)
    assert torch.equal(found.ids, neighbors(x, 3, metric=metric, backend="reference").ids) and found.recall == 1.0


@every_backend
def test_lists_end_where_the_cells_do(backend: str) -> None:
    x = clustered(120, 5)
    got = neighbors(x, 119, approximate=2, backend=backend)
    real = got.ids >= 0
    assert bool((got.scores[~real] == -torch.inf).all()) and not bool(real.all())
    assert bool((real[:, :-1] >= real[:, 1:]).all())
    found = (real.sum(dim=1).double() / 119).mean()
    oracle.assert_summed(wide(got.recall), found, 120, 1.0)


@every_backend
def test_groups_are_kept_apart_in_lists_and_in_their_recall(backend: str) -> None:
    x, labels = clustered(200, 8), torch.arange(200) % 50
    got = neighbors(x, 6, exclude_group=labels, approximate=4, backend=backend)
    assert bool((labels[got.ids.clamp(min=0)] != labels[:, None])[got.ids >= 0].all())
    exact = neighbors(x, 6, exclude_group=labels, backend=backend)
    found = [len({*a} & {*b}) / 6 for a, b in zip(got.ids.tolist(), exact.ids.tolist(), strict=True)]
    oracle.assert_summed(wide(got.recall), wide(sum(found) / 200), 200, 1.0)


def test_a_row_keeps_itself_when_asked() -> None:
    x = clustered(200, 8)
    got = neighbors(x, 3, exclude_self=False, approximate=2)
    assert torch.equal(got.ids[:, 0], torch.arange(200)) and got.recall is not None and got.recall > 0


def test_the_result_says_what_it_is_and_becomes_a_graph() -> None:
    x = clustered(400, 8)
    got = neighbors(x, 3, approximate=2)
    assert repr(got) == (
        f"Neighbors(3 of 400 for each of 400 rows, recall about {got.recall:.3f}, "
        f"of the worst tenth {got.recall_worst_tenth:.3f})"
    )
    assert repr(neighbors(x, 3)) == "Neighbors(3 of 400 for each of 400 rows)"
    assert got.csr().shape == (400, 400)


@every_backend
def test_rows_that_are_not_finite_are_named(backend: str) -> None:
    x = lists.normal(50, 4)
    x[7, 1] = torch.nan
    with pytest.raises(ValueError, match=r"^neighbors: x must be finite, got nan in row 7$"):
        neighbors(x, 2, approximate=2, backend=backend)
    with pytest.raises(ValueError, match=r"^neighbors: y must be finite, got nan in row 7$"):
        neighbors(lists.normal(5, 4), 2, y=x, approximate=2, backend=backend)


def test_who_clusters_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "is_installed", lambda package: False)
    with pytest.raises(RuntimeError, match=r"^neighbors: approximate must have faiss or scikit-learn installed, .*$"):
        neighbors(lists.normal(50, 4), 2, approximate=2)


def test_tracing_is_refused() -> None:
    compiled = torch.compile(lambda x: neighbors(x, 2, approximate=2).ids, fullgraph=True, backend="eager")
    # Before 2.7 torch kept the sentence of what it observed to itself.
    with pytest.raises(Exception, match=r"approximate must be None where the call is traced|Observed exception"):
        compiled(lists.normal(50, 4))


# The same bits


def digest(found: Neighbors) -> str:
    numbers = torch.tensor([found.recall, found.recall_worst_tenth], dtype=torch.float64)
    return lists.digest(found) + hashlib.sha256(numbers.numpy().tobytes()).hexdigest()[:8]


def calls() -> list[str]:
    """Digests of one call of every metric and precision."""
    x, found = clustered(1500, 40), []
    for metric in METRICS:
        for precision in ("exact",) if metric in ("dot", "rbf") else ("exact", "int16"):
            found.append(digest(neighbors(x, 12, metric=metric, gamma=0.01, precision=precision, approximate=3)))
    return found


@needs_cpu
def test_every_number_of_threads_gives_the_same_lists_and_recalls(threads: Any, library: str) -> None:
    found = []
    for count in (1, 2, 3, 4):
        threads(count)
        found.append(calls())
    assert found == [found[0]] * 4


def on_path(isa: str) -> list[str]:
    os.environ["MRTKERN_ISA"] = isa
    return calls()


@needs_cpu
def test_every_instruction_set_gives_the_same_lists_and_recalls() -> None:
    paths = mrtkern._C.isas()  # type: ignore[attr-defined]
    found = [process.in_child(on_path, isa) for isa in paths]
    assert found == [found[0]] * len(paths)


def test_a_seed_decides_what_is_drawn() -> None:
    x = clustered(2000, 8)
    found = [digest(neighbors(x, 5, approximate=2, seed=seed)) for seed in (0, 0, 1, 2**63 - 1)]
    assert found[0] == found[1] and len({*found}) == 3


# Guest of a process


@needs_cpu
def test_progress_rises_through_every_phase_to_one() -> None:
    told: list[float] = []
    neighbors(clustered(20_000, 32), 8, approximate=4, progress=told.append)
    assert told == sorted(told) and told.index(1.0) == len(told) - 1
    assert all(any(first < fraction <= last for fraction in told) for first, last in
               zip((0.0, *approximate.PARTS), approximate.PARTS, strict=False))  # fmt: skip


def interrupted(phase: str, count: int) -> Callable[[], Any]:
    torch.set_num_threads(count)
    x = clustered(60_000, 256)
    neighbors(x[:500], 2, approximate=2)  # loads the library that clusters
    if phase == "clustering":
        return partial(approximate.k_means, torch.cat([x, -x]).numpy(), 2000, 0)
    generator = torch.Generator().manual_seed(0)
    inputs = Inputs(x, k=32)
    if phase == "cells":
        return partial(CPU.forward, inputs._replace(cells=drawn_cells(60_000, 60_000, 100, 40, generator)))
    return partial(approximate.assigned, inputs, x[:30_000], 16, "cpu")


@needs_cpu
@pytest.mark.timed
@pytest.mark.parametrize("phase", ["clustering", "assignment", "cells"])
def test_ctrl_c_returns_within_half_a_second_in_every_phase(phase: str) -> None:
    process.assert_ctrl_c_returns_within_half_a_second(interrupted, phase, 2)


@needs_cpu
def test_a_graph_of_a_million_rows_fits_in_four_gib_with_its_lists() -> None:
    problem = Problem(10**6, None, 64, 384, torch.float32, num_cells=1000, num_probes=16)
    lists_and_probes = 10**6 * (64 * 12 + 8 * 16)
    assert CPU.memory(problem) + lists_and_probes <= 4 * GIB


MEASURED = {
    "self graph": Problem(40_000, None, 32, 128, torch.float32, num_cells=200, num_probes=6),
    "rectangle": Problem(3_000, 60_000, 9, 128, torch.float32, num_cells=245, num_probes=4),
    "distances": Problem(80_000, None, 16, 64, torch.float32, metric="rbf", num_cells=283, num_probes=3),
    "float32": Problem(30_000, None, 16, 128, torch.float32, precision="float32", num_cells=174, num_probes=3),
}


def measured(name: str) -> Callable[[], Any]:
    problem = MEASURED[name]
    torch.set_num_threads(2)
    inputs = problem.make_inputs()
    generator = torch.Generator().manual_seed(0)
    x, y = inputs["x"], inputs.get("y")
    cells = drawn_cells(problem.M, problem.columns, problem.num_cells, problem.num_probes, generator)
    options = {"metric": problem.metric, "precision": problem.precision, "exclude_self": problem.exclude_self}
    few = Cells(cells.num_cells, cells.cell[:64].contiguous(), cells.probes[:64].contiguous())
    CPU.forward(Inputs(x[:64], None if y is None else y[:64], problem.K, cells=few, **options))
    return partial(CPU.forward, Inputs(x, y, problem.K, cells=cells, **options))


@needs_cpu
@process.needs_peak
@pytest.mark.parametrize("name", MEASURED)
def test_memory_in_cells_is_what_the_formula_says(name: str, threads: Any) -> None:
    """At most the stated bytes, and two MiB for pages and stacks; and not less than half of them, or it is idle."""
    threads(2)
    stated = CPU.memory(MEASURED[name])
    assert stated / 2 <= process.peak(measured, name) <= stated + 2**21
