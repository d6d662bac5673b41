"""What a neighbours call looks like, without any data in it, and the cases that tests and benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrtkern import _cases, _device

METRICS = ("cosine", "dot", "shifted_cosine", "clamped_cosine", "rbf")
PRECISIONS = ("exact", "int16", "float32")
ENTRY_BYTES = 12  # one neighbour: an int64 id and a float32 score
ABSENT = {  # backends that are not written
    "cuda": "is not written in CUDA C++: a running threshold would spare at most a fifth of the time of the products "
    "at 384 features (the strip maxima of Triton), and tensor cores in CUDA C++ cannot be tested without a GPU"
}


class Cells(NamedTuple):
    """Which rows meet: a row of x the rows of y whose cell it probes."""

    num_cells: int
    cell: Tensor  # [N] int64, of each row of y
    probes: Tensor  # [M, P] int64, of each row of x, all different, the nearest first


class Inputs(NamedTuple):
    """What every backend receives."""

    x: Tensor  # [M, D]
    y: Tensor | None = None  # [N, D] of the type of x; None: x meets itself
    k: int = 0  # neighbours per row, may exceed what there is
    metric: str = "cosine"
    gamma: float = 1.0  # for rbf
    precision: str = "exact"
    exclude_self: bool = True  # only without y
    group_x: Tensor | None = None  # [M] int64: rows of equal groups are no neighbours
    group_y: Tensor | None = None  # [N] int64, without y the same; both or neither
    cells: Cells | None = None  # None: every row meets every other


@dataclass(frozen=True)
class Problem:
    """Sizes, types and options. `kind`: "lists" (neighbors) or "components" (deduplicate; N None, K 0),
    "components of groups"."""

    M: int  # rows of x
    N: int | None  # rows of y; None: x meets itself
    K: int  # neighbours per row
    D: int  # features
    dtype: torch.dtype
    device: str = "cpu"
    metric: str = "cosine"
    precision: str = "exact"
    exclude_self: bool = True
    has_groups: bool = False
    kind: str = "lists"
    capability: tuple[int, int] | None = None  # of the CUDA device; None: unknown
    num_cells: int = 0  # of an approximate search; 0: every row meets every other
    num_probes: int = 0

    @classmethod
    def of(cls, inputs: Inputs) -> Problem:
        x, N = inputs.x, None if inputs.y is None else inputs.y.shape[0]
        options = (inputs.metric, inputs.precision, inputs.exclude_self, inputs.group_x is not None)
        sizes = (x.shape[0], N, inputs.k, x.shape[1])
        cells = (0, 0) if inputs.cells is None else (inputs.cells.num_cells, inputs.cells.probes.shape[1])
        problem = cls(*sizes, x.dtype, x.device.type, *options, capability=_device.capability(x.device))
        return replace(problem, num_cells=cells[0], num_probes=cells[1])

    @property
    def columns(self) -> int:
        """Rows that can be neighbours."""
        return self.M if self.N is None else self.N

    @property
    def flops(self) -> int:
        """Multiplications and additions of the products; without y each pair of different rows once. In cells as if
        each had as many members: of those that are probed more are large ones."""
        if self.num_cells:
            return 2 * self.M * self.columns * self.num_probes // self.num_cells * self.D
        pairs = self.M * (self.M - 1) // 2 if self.N is None else self.M * self.N
        return 2 * pairs * self.D

    @property
    def bytes(self) -> int:
        """Moved at least once: rows in, lists out."""
        return (self.M + (self.N or 0)) * self.D * self.dtype.itemsize + self.M * self.K * ENTRY_BYTES

    def make_inputs(self, seed: int = 0) -> dict[str, Any]:
        """Arguments of `neighbors`: normal rows of uneven length; the same seed gives the same bits."""
        generator = torch.Generator().manual_seed(seed)

        def rows(count: int) -> Tensor:
            x = torch.randn(count, self.D, generator=generator, dtype=torch.float32, device="cpu")
            length = torch.rand(count, 1, generator=generator, dtype=torch.float32, device="cpu").add_(0.5)
            return x.mul_(length).to(self.device, self.dtype)

        inputs: dict[str, Any] = {"x": rows(self.M), "k": self.K, "metric": self.metric, "precision": self.precision}
        if self.num_cells:
            inputs["approximate"] = self.num_probes
        if self.N is None:
            inputs["exclude_self"] = self.exclude_self
        else:
            inputs["y"] = rows(self.N)
        if self.has_groups:
            size = (self.M + (self.N or 0),)
            labels = torch.randint(0, 5, size, generator=generator, dtype=torch.int64, device="cpu").to(self.device)
            inputs["exclude_group"] = labels if self.N is None else (labels[: self.M], labels[self.M :])
        return inputs


@dataclass(frozen=True)
class Case(_cases.Case[Problem]):
    """Of tag "device": a benchmark for GPUs alone; of tags "bench" and "host": for CPUs alone.

    Rows of "glosses" and "clusters" come from bench.
    """

    rows: str = "normal"


def _test(name: str, M: int, N: int | None, K: int, D: int, dtype: torch.dtype = torch.float32, **more: Any) -> Case:
    return Case(name, Problem(M, N, K, D, dtype, exclude_self=N is None, **more), frozenset({"test"}))


def _bench(name: str, M: int, N: int | None, rows: str = "normal", precision: str = "exact") -> Case:
    problem = Problem(M, N, 64, 384, torch.float32, precision=precision, exclude_self=N is None)
    return Case(name, problem, frozenset({"bench"}), rows)


CASES = (
    _bench("6,272 x 50,000 normal", 6272, 50_000),
    _bench("6,272 x 50,000 glosses", 6272, 50_000, "glosses"),
    _bench("float32, 6,272 x 50,000 normal", 6272, 50_000, precision="float32"),
    _bench("float32, 6,272 x 50,000 glosses", 6272, 50_000, "glosses", "float32"),
    _bench("20,000 normal", 20_000, None),
    _bench("50,000 normal", 50_000, None),
    _bench("117,791 glosses", 117_791, None, "glosses"),
    Case(
        "deduplicate 20,000 glosses",
        Problem(20_000, None, 0, 384, torch.float32, kind="components"),
        frozenset({"bench"}),
        "glosses",
    ),
    Case(  # rows to their nearest centroid: the size of a k-means step on a GPU
        "262,144 x 4,096 normal, the nearest",
        Problem(262_144, 4096, 1, 256, torch.float32, exclude_self=False),
        frozenset({"device"}),
    ),
    Case(
        "approximate, 100,000 clusters",
        Problem(100_000, None, 64, 384, torch.float32, num_cells=317, num_probes=8),
        frozenset({"bench", "host"}),
        "clusters",
    ),
    Case(
        "approximate, 1,000,000 clusters",
        Problem(1_000_000, None, 64, 384, torch.float32, num_cells=1000, num_probes=8),
        frozenset({"bench", "host"}),
        "clusters",
    ),
    _test("one row of one feature", 1, 1, 1, 1),
    _test("one feature", 9, 20, 4, 1),
    _test("fewer rows than a panel", 7, 15, 3, 15),
    _test("one panel", 16, 16, 5, 16),
    _test("one row more than a panel", 17, 49, 8, 17),
    _test("self graph", 47, None, 6, 31),
    _test("self graph around three panels", 49, None, 9, 33),
    _test("more neighbours than rows", 12, 5, 9, 8),
    _test("all rows", 20, None, 19, 12),
    _test("groups", 40, 70, 6, 24, has_groups=True),
    _test("self graph with groups", 60, None, 5, 16, has_groups=True),
    _test("bfloat16", 33, 65, 7, 48, torch.bfloat16),
    _test("float16 self graph", 64, None, 7, 20, torch.float16),
    _test("float64", 20, 30, 5, 19, torch.float64),
    _test("one row more than a block of 512", 40, 513, 10, 9),
    _test("self graph, one row more than a block of 512", 513, None, 4, 7),
    _test("many features", 5, 30, 4, 8192),
)
