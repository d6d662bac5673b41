"""Selection from one large set: features, matrices and graphs, their competitors, the check of what they keep.

    features   x [N, D]: similarities and picks; of clusters, normal rows, or WordNet's glosses (bench/data.py)
    matrix     similarities [N, N] float32, made before: picks, and whatever a program makes of the matrix first
    graph      the 64 nearest of each row, clamped cosines, made before: picks

Programs are compared by the value of what they keep, in float64 from the given rows or similarities, never by row
numbers. apricot compiles itself when it is first called: that is before the clock starts. It is timed where it is
installed (`pip install apricot-select`).
"""

from __future__ import annotations

import dataclasses
import heapq
import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import mrtkern
from bench import data
from bench.harness import Competitor, WrongAnswer
from bench.report import Target

OP = "large_selection"
D, NEAREST = 384, 64
APART = 5e-3  # how far the value of another greedy may be from ours, of the value: apricot on a graph needs it
ROWS = 1024  # of the exact value at a time
APRICOT, SUBMODLIB, HEAP = "apricot, lazy", "submodlib, lazy", "numpy heap"
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Case:
    """A ground of N rows, K to keep."""

    name: str
    kind: str  # features, matrix or graph
    N: int
    K: int
    max_memory: int | None = None
    source: str = "mixture"

    @property
    def problem(self) -> Case:
        """Itself: there is nothing beside the sizes."""
        return self

    @property
    def bytes(self) -> int:
        """Read at least once."""
        return {"features": 4 * self.N * D, "matrix": 4 * self.N * self.N, "graph": 12 * self.N * NEAREST}[self.kind]

    @property
    def flops(self) -> int:
        """Of all pairs, each once."""
        return self.N * self.N * D if self.kind == "features" else 0


CASES = (
    Case("features 10,000 -> 500", "features", 10_000, 500),
    Case("features 20,000 -> 1,000", "features", 20_000, 1000),
    Case("matrix 1,000 -> 800", "matrix", 1000, 800),
    Case("matrix 10,000 -> 500", "matrix", 10_000, 500),
    Case("graph 100,000 -> 5,000", "graph", 100_000, 5000),
    Case("features 120,000 -> 5,000, 4.5 GiB", "features", 120_000, 5000, int(4.5 * GIB)),
    Case("features 120,000 -> 5,000, 3 GiB", "features", 120_000, 5000, 3 * GIB),
    Case("normal 20,000 -> 1,000", "features", 20_000, 1000, source="normal"),
    Case("glosses 10,000 -> 500", "features", 10_000, 500, source="glosses"),
    Case("glosses 117,791 -> 5,000, 4.5 GiB", "features", 117_791, 5000, int(4.5 * GIB), "glosses"),
    Case("glosses 117,791 -> 5,000, 3 GiB", "features", 117_791, 5000, 3 * GIB, "glosses"),
)
MOST_ROUNDS = {case.name: 1 if case.N > 10**5 else 3 for case in CASES if case.N >= 10_000}

TARGETS = (
    Target("features 10,000 -> 500", ">= 15 x apricot", "speedup", 15.0, APRICOT),
    Target("features 20,000 -> 1,000", ">= 15 x apricot", "speedup", 15.0, APRICOT),
    Target("matrix 1,000 -> 800", "faster than submodlib", "speedup", 1.0, SUBMODLIB),
    Target("matrix 1,000 -> 800", "faster than apricot", "speedup", 1.0, APRICOT),
    Target("matrix 10,000 -> 500", "faster than submodlib", "speedup", 1.0, SUBMODLIB),
    Target("matrix 10,000 -> 500", ">= 40 x apricot", "speedup", 40.0, APRICOT),
    Target("graph 100,000 -> 5,000", ">= 25 x apricot", "speedup", 25.0, APRICOT),
    Target("graph 100,000 -> 5,000", ">= 10 x the numpy heap", "speedup", 10.0, HEAP),
    Target("features 120,000 -> 5,000, 4.5 GiB", "<= 4,608 MiB", "memory", 4608.0),
    Target("features 120,000 -> 5,000, 3 GiB", "<= 3,072 MiB", "memory", 3072.0),
    Target("glosses 10,000 -> 500", ">= 15 x apricot", "speedup", 15.0, APRICOT),
    Target("glosses 117,791 -> 5,000, 4.5 GiB", "<= 75 s", "seconds", 75.0),
    Target("glosses 117,791 -> 5,000, 4.5 GiB", "<= 4,608 MiB", "memory", 4608.0),
    Target("glosses 117,791 -> 5,000, 3 GiB", "<= 90 s", "seconds", 90.0),
    Target("glosses 117,791 -> 5,000, 3 GiB", "<= 3,072 MiB", "memory", 3072.0),
)
REASONS: dict[tuple[str, str], str] = {}  # (name of the case, text of the target) -> why it is missed

Inputs = dict[str, Any]  # kind, x (features, similarities or the graph's values), K, max_memory


def cases() -> list[Any]:
    """All of them."""
    return list(CASES)


def mixture(N: int) -> Tensor:
    """Unit rows of 300 clusters whose sizes fall by a power law, with noise of half to twice the usual length."""
    generator = np.random.default_rng(1)
    centres = generator.standard_normal((300, D)).astype(np.float32)
    share = 1 / np.arange(1, 301)
    x = centres[generator.choice(300, N, p=share / share.sum())]
    for rows in np.array_split(np.arange(N), max(N // 65_536, 1)):
        noise = generator.standard_normal((len(rows), D), dtype=np.float32)
        x[rows] += noise * generator.uniform(0.5, 2, (len(rows), 1)).astype(np.float32)
    return F.normalize(torch.from_numpy(x), dim=1)


def glosses(N: int) -> Tensor:
    """Embeddings of so many of WordNet's glosses, drawn at random."""
    rows = np.sort(np.random.default_rng(1).permutation(data.EMBEDDED[0])[:N])
    return torch.from_numpy(data.embeddings()[rows])


def normal(N: int) -> Tensor:
    """Rows without any cluster."""
    return F.normalize(torch.randn(N, D, generator=torch.Generator().manual_seed(1)), dim=1)


SOURCES: dict[str, Callable[[int], Tensor]] = {"mixture": mixture, "normal": normal, "glosses": glosses}


def make_inputs(case: Case) -> Inputs:
    """What one call gets."""
    x = SOURCES[case.source](case.N)
    inputs: Inputs = {"kind": case.kind, "x": x, "K": case.K, "max_memory": case.max_memory}
    if case.kind == "matrix":
        inputs["x"] = (x @ x.T).add_(1).mul_(0.5).clamp_(0, 1)
    elif case.kind == "graph":
        nearest = mrtkern.neighbors(x, NEAREST)
        inputs |= {"ids": nearest.ids, "x": nearest.scores}
    return inputs


def work(case: Case) -> tuple[int, int]:
    """Bytes and floating-point operations of one call."""
    return case.bytes, case.flops


def backend(case: Case) -> str:
    """Which backend runs it."""
    del case
    return "cpu"


def tiny(inputs: Inputs) -> Inputs:
    """The same with few picks: loads every library before memory is measured."""
    return inputs | {"K": 2}


def graph(inputs: Inputs) -> Any:
    """The lists of neighbours."""
    return mrtkern.Neighbors(inputs["ids"], inputs["x"], len(inputs["ids"]))


def ours(inputs: Inputs) -> Any:
    """The library's call."""
    given = {"features": "x", "matrix": "similarity", "graph": "graph"}[inputs["kind"]]
    ground = graph(inputs) if inputs["kind"] == "graph" else inputs["x"]
    scale = 1.0 if inputs["kind"] == "matrix" else None
    return mrtkern.facility_location(
        **{given: ground}, k=inputs["K"], similarity_scale=scale, max_memory=inputs["max_memory"]
    )


def own(inputs: Inputs) -> list[Competitor]:
    """Ours."""
    return [Competitor("mrtkern", partial(ours, inputs))]


def others(inputs: Inputs) -> list[Competitor]:
    """The peers, where they end in minutes."""
    if inputs["kind"] == "features" and len(inputs["x"]) > 20_000:
        return []
    note = {"features": "of similarities made by numpy", "matrix": "of the matrix", "graph": "of the CSR matrix"}
    made = {"note": note[inputs["kind"]], "has_memory": False}
    found = [Competitor(HEAP, partial(peer, inputs, heap), **made)]
    if importlib.util.find_spec("apricot") is not None:
        found.append(Competitor(APRICOT, partial(peer, inputs, apricot), **made))
    if importlib.util.find_spec("submodlib") is not None and inputs["kind"] != "graph" and len(inputs["x"]) <= 10_000:
        found.append(Competitor(SUBMODLIB, partial(peer, inputs, submodlib), **made))
    return found


def peer(inputs: Inputs, select: Callable[[Any, int], Any]) -> Tensor:
    """What another program keeps."""
    if inputs["kind"] == "graph":
        s: Any = sparse(inputs)
    elif inputs["kind"] == "matrix":
        s = inputs["x"].numpy()
    else:
        u = inputs["x"].numpy()
        s = u @ u.T
        s += 1
        s *= 0.5
    return torch.from_numpy(np.asarray(select(s, inputs["K"]), dtype=np.int64))


def sparse(inputs: Inputs) -> Any:
    """The graph for scipy, with the diagonal that ours gives it."""
    import scipy.sparse

    rows = graph(inputs).csr(diagonal=1.0, clamp=True)
    parts = (rows.values().numpy(), rows.col_indices().numpy(), rows.crow_indices().numpy())
    return scipy.sparse.csr_matrix(parts, shape=tuple(rows.shape))


def heap(s: Any, K: int) -> list[int]:
    """The lazy greedy that one writes in twenty lines."""
    is_sparse = not isinstance(s, np.ndarray)
    columns = s.tocsc() if is_sparse else np.ascontiguousarray(s.T)
    best = np.zeros(s.shape[0], np.float32)

    def pairs(j: int) -> tuple[Any, Any]:
        if not is_sparse:
            return slice(None), columns[j]
        part = slice(columns.indptr[j], columns.indptr[j + 1])
        return columns.indices[part], columns.data[part]

    sums = np.asarray(s.sum(0)).ravel()
    bounds, picks = [(-float(sums[j]), j) for j in range(s.shape[1])], []
    heapq.heapify(bounds)
    while len(picks) < K:
        _, j = bounds[0]
        rows, t = pairs(j)
        gain = float(np.maximum(t - best[rows], 0).sum())
        if len(bounds) == 1 or -gain <= min(bounds[1:3])[0]:
            heapq.heappop(bounds)
            picks.append(j)
            best[rows] = np.maximum(best[rows], t)
        else:
            heapq.heapreplace(bounds, (-gain, j))
    return picks


def apricot(s: Any, K: int) -> Any:
    """apricot's lazy greedy on given similarities."""
    from apricot import FacilityLocationSelection

    return FacilityLocationSelection(K, metric="precomputed", optimizer="lazy").fit(s).ranking


def submodlib(s: np.ndarray, K: int) -> list[int]:
    """submodlib's lazy greedy on given similarities."""
    from submodlib import FacilityLocationFunction

    function = FacilityLocationFunction(n=len(s), mode="dense", sijs=s, separate_rep=False)
    kept = function.maximize(
        budget=K, optimizer="LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False, show_progress=False
    )
    return [j for j, _ in kept]


def answer(inputs: Inputs, result: Any) -> Tensor:
    """The kept rows."""
    return result.ids if hasattr(result, "ids") else result


def value(inputs: Inputs, kept: Tensor) -> float:
    """F of the kept rows in float64."""
    if inputs["kind"] == "graph":
        return float(sparse(inputs)[:, kept.numpy()].max(axis=1).sum())
    if inputs["kind"] == "matrix":
        return float(inputs["x"][:, kept].amax(dim=1).double().sum())
    u = inputs["x"].double()
    among = u[kept].T.contiguous()
    return sum(float(((1 + rows @ among) / 2).amax(dim=1).sum()) for rows in u.split(ROWS))


def check(inputs: Inputs, answers: Mapping[str, Tensor]) -> dict[str, str]:
    """How far each value is from ours; WrongAnswer when it is further than roundings lead two greedy programs."""
    found: dict[str, str] = {}
    mine = value(inputs, answers["mrtkern"])
    for name, kept in answers.items():
        if len(kept) != inputs["K"] or len(kept.unique()) != len(kept):
            raise WrongAnswer(f"{name} does not keep {inputs['K']} different rows")
        difference = value(inputs, kept) / mine - 1
        if not abs(difference) <= APART:
            raise WrongAnswer(f"{name} reaches a value {difference:+.2e} away from ours, allowed are {APART:.0e}")
        found[name] = f"F = {mine:.7g}" if name == "mrtkern" else f"{difference:+.1e}"
    return found
