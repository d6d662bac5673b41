"""What a similarity call looks like, without any data in it, and the cases that tests and benchmarks share."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrtkern import _cases, _check, _device

COSINES = ("cosine", "shifted_cosine", "clamped_cosine")
METRICS = ("cosine", "dot", "shifted_cosine", "clamped_cosine", "rbf")
ABSENT = {  # backends that are not written
    "cuda": "is not written in CUDA C++: Triton stores each score once, from registers, and tensor cores in CUDA C++ "
    "cannot be tested without a GPU"
}


class Packed:
    """The groups of a packed call. What the host must know of them is read at once: a device is waited for once."""

    def __init__(self, offsets: Tensor) -> None:
        self.offsets = offsets  # [B + 1]

    @property
    def B(self) -> int:
        return self.offsets.shape[0] - 1

    @functools.cached_property
    def sizes(self) -> Tensor:
        """Rows of every group [B]."""
        return self.offsets.diff()

    @functools.cached_property
    def cells(self) -> Tensor:
        """Where the scores of each group begin, and all end [B + 1]."""
        return torch.nn.functional.pad(self.sizes.square().cumsum(0), (1, 0))

    @functools.cached_property
    def _numbers(self) -> list[int]:
        """The first and the last offset, the smallest and the largest group, scores of all."""
        least_and_largest = self.sizes.aminmax() if self.B else self.offsets[:1].expand(2)
        found = (self.offsets[0], self.offsets[-1], *least_and_largest, self.cells[-1])
        numbers: list[int] = torch.stack(found).tolist()
        return numbers

    @property
    def largest(self) -> int:
        """Rows of the largest group."""
        return self._numbers[3]

    @property
    def pairs(self) -> int:
        """Scores of the result."""
        return self._numbers[4]

    def check(self, rows: int) -> None:
        """Refuse offsets that do not run from 0 to `rows` without descending."""
        first, last, least = self._numbers[:3]
        if first or last != rows or least < 0:
            _check.offsets_values("similarity", self.offsets, rows)


@dataclass(frozen=True)
class Problem:
    """Sizes, types and options. `kind`: "dense" (x [M, D]), "batched" (x [B, M, D]) or "packed" (x with offsets)."""

    kind: str
    B: int  # batch entries or groups; 1 when dense
    M: int  # rows of x, per batch entry; packed: rows of all groups
    N: int | None  # rows of y; None: x meets itself
    D: int  # features
    dtype: torch.dtype
    device: str = "cpu"
    metric: str = "cosine"
    gamma: float = 1.0
    wants_grad: bool = False
    is_aligned: bool = True  # x and y begin at a multiple of the size of their type
    capability: tuple[int, int] | None = None  # of the CUDA device; None: unknown
    sizes: tuple[int, ...] | None = None  # rows of each packed group, in cases; no choice depends on them

    @classmethod
    def of(
        cls, x: Tensor, y: Tensor | None, offsets: Tensor | None, metric: str, gamma: float, wants_grad: bool
    ) -> Problem:
        kind, B = ("dense", 1) if x.ndim == 2 else ("batched", x.shape[0])
        if offsets is not None:
            kind, B = "packed", offsets.shape[0] - 1
        N = None if y is None else y.shape[-2]
        is_aligned = all(rows is None or rows.data_ptr() % rows.element_size() == 0 for rows in (x, y))
        return cls(
            kind, B, x.shape[-2], N, x.shape[-1], x.dtype, x.device.type, metric=metric, gamma=gamma,
            wants_grad=wants_grad, is_aligned=is_aligned, capability=_device.capability(x.device),
        )  # fmt: skip

    @property
    def rows(self) -> int:
        """Rows of x and y together."""
        return self.M if self.kind == "packed" else self.B * (self.M + (self.N or 0))

    @property
    def pairs(self) -> int:
        """Scores of the result."""
        if self.kind != "packed":
            return self.B * self.M * (self.M if self.N is None else self.N)
        if self.sizes is None:
            raise ValueError("similarity: sizes must be known to count the pairs of packed groups, got None")
        return sum(n * n for n in self.sizes)

    @property
    def flops(self) -> int:
        """Multiplications and additions of the products: one forward; backward one without y, two with it."""
        products = 1 if not self.wants_grad else 2 if self.N is None else 3
        return 2 * self.pairs * self.D * products

    @property
    def bytes(self) -> int:
        """Moved at least once: rows in, scores out; backward rows and scores in, gradients of rows out."""
        rows, pairs = self.rows * self.D, self.pairs
        return (rows + pairs + (2 * rows + pairs if self.wants_grad else 0)) * self.dtype.itemsize

    def make_inputs(self, seed: int = 0) -> dict[str, Any]:
        """Arguments of `similarity`: normal rows of uneven length; the same seed gives the same bits."""
        generator = torch.Generator().manual_seed(seed)

        def rows(count: int) -> Tensor:
            shape = (self.B, count, self.D) if self.kind == "batched" else (count, self.D)
            x = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            length = torch.rand((*shape[:-1], 1), generator=generator, dtype=torch.float32, device="cpu").add_(0.5)
            return x.mul_(length).to(self.device, self.dtype).requires_grad_(self.wants_grad)

        inputs: dict[str, Any] = {"x": rows(self.M), "metric": self.metric, "gamma": self.gamma}
        if self.N is not None:
            inputs["y"] = rows(self.N)
        if self.sizes is not None:
            sizes = torch.tensor([0, *self.sizes], dtype=torch.int64, device="cpu")
            inputs["offsets"] = sizes.cumsum(0).to(self.device)
        return inputs


Case = _cases.Case[Problem]


def _packed(sizes: tuple[int, ...], D: int, dtype: torch.dtype = torch.float32, **options: Any) -> Problem:
    return Problem("packed", len(sizes), sum(sizes), None, D, dtype, sizes=sizes, **options)


def _case(name: str, tag: str, problem: Problem) -> Case:
    return Case(name, problem, frozenset({tag}))


_GROUPS = (16,) * 10_000

CASES = (
    _case("10,000 x 16 x 384 float32", "bench", _packed(_GROUPS, 384)),
    _case("10,000 x 16 x 384 bfloat16", "bench", _packed(_GROUPS, 384, torch.bfloat16)),
    _case("gradient of 10,000 x 16 x 384 float32", "bench", _packed(_GROUPS, 384, wants_grad=True)),
    _case("batch of 10,000 x 16 x 384 float32", "bench", Problem("batched", 10_000, 16, None, 384, torch.float32)),
    _case("8,192 x 384 with itself float32", "bench", Problem("dense", 1, 8192, None, 384, torch.float32)),
    _case("8,192 x 8,192 x 384 float32", "bench", Problem("dense", 1, 8192, 8192, 384, torch.float32)),
    _case(
        "4,000 x 384 with itself, rbf, float32",
        "bench",
        Problem("dense", 1, 4000, None, 384, torch.float32, metric="rbf", gamma=1 / 384),
    ),
    _case("dense", "test", Problem("dense", 1, 5, 7, 3, torch.float32)),
    _case("dense with itself", "test", Problem("dense", 1, 9, None, 16, torch.float32)),
    _case("dense bfloat16", "test", Problem("dense", 1, 6, 4, 33, torch.bfloat16)),
    _case("one pair of one feature", "test", Problem("dense", 1, 1, 1, 1, torch.float32)),
    _case("batched", "test", Problem("batched", 3, 5, 4, 8, torch.float32)),
    _case("batched bfloat16, more rows than 16", "test", Problem("batched", 2, 17, 30, 70, torch.bfloat16)),
    _case("batched with itself float16", "test", Problem("batched", 2, 6, None, 17, torch.float16)),
    _case("packed with an empty group", "test", _packed((3, 0, 1, 5), 4)),
    _case("packed float64", "test", _packed((2, 7, 0), 5, torch.float64)),
    _case("packed around a panel of 16 rows", "test", _packed((15, 16, 17, 1, 0, 33), 33)),
    _case("packed bfloat16", "test", _packed((16, 9, 31), 48, torch.bfloat16)),
    _case("packed float16, one odd feature", "test", _packed((4, 21), 65, torch.float16)),
    _case("packed bfloat16, rows by eights and not", "test", _packed((8, 24, 5, 16, 32), 20, torch.bfloat16)),
    _case("packed, a group beyond the cache tiles", "test", _packed((2, 300), 16)),
)
