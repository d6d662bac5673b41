"""What a facility-location call looks like, without any data in it, and the cases that tests and benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mrtkern import _check

METRICS = ("shifted_cosine", "clamped_cosine")
FILLS = ("index", "coverage", "random", "none")


class Inputs(NamedTuple):
    """What every backend receives. Without offsets of the caller's, a global problem is one group."""

    kind: str  # "grouped" (x with offsets), "global" (x) or "similarity" (x is a matrix [M, N])
    x: Tensor  # [T, D] float32, bfloat16 or float16
    offsets: Tensor  # [B + 1] int64, candidates of each problem
    k: Tensor  # [B] int64, picks of each problem, at most its open candidates
    targets: Tensor | None  # [M, D] rows to cover instead of x
    weight: Tensor | None  # float32, one per row to cover
    quality: Tensor | None  # float32, one per candidate
    bonus: Tensor | None  # float32, one per candidate
    start: Tensor | None  # int64, kept already
    given: Tensor | None  # int64, packed: the picks to evaluate, in order, instead of greedy's own
    mask: Tensor | None  # bool, one per candidate: may be picked
    group_key: Tensor  # [B] int64, names each problem to the random numbers
    metric: str
    scale: float  # what counts as 1 in a similarity matrix
    fill: str
    seed: int
    first_row: int  # what the caller calls row 0 of x: ids, owners and errors count from it
    subject: str  # what the caller calls x
    largest: int  # candidates of the largest problem
    total: int  # picks of all problems


@dataclass(frozen=True)
class Problem:
    """Sizes, types and options of one call."""

    kind: str
    T: int  # rows of x, or rows to cover of a similarity matrix
    D: int  # features, or candidates of a similarity matrix
    B: int  # groups
    dtype: torch.dtype
    device: str
    largest: int | None = None  # rows of the largest group; None: not looked at
    options: tuple[str, ...] = ()  # which of targets, start and mask were given

    covered: int | None = None  # rows of targets, where given
    capability: tuple[int, int] | None = None  # of the CUDA device; None: unknown

    @property
    def M(self) -> int:
        """Rows that the largest problem covers."""
        return (self.largest or 0) if self.covered is None else self.covered

    @classmethod
    def of(cls, inputs: Inputs) -> Problem:
        x, B = inputs.x, inputs.k.shape[0]
        options = tuple(name for name in ("targets", "start", "mask") if getattr(inputs, name) is not None)
        covered = None if inputs.targets is None else inputs.targets.shape[0]
        return cls(
            inputs.kind, x.shape[0], x.shape[1], B, x.dtype, x.device.type, inputs.largest, options, covered,
            _check.capability(x.device),
        )  # fmt: skip

    @property
    def bytes(self) -> int:
        """Read at least once: the features."""
        return self.T * self.D * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """Multiplications and additions of all pairs when the groups are equal; the greedy steps come on top."""
        return 2 * self.T * (self.T // max(self.B, 1)) * self.D


@dataclass(frozen=True)
class Case:
    """B groups of N rows of D features, keep K."""

    name: str
    B: int
    N: int
    K: int
    D: int
    dtype: torch.dtype
    tags: frozenset[str]
    ragged: bool = False  # group sizes from 0 to N instead of N

    @property
    def problem(self) -> Problem:
        return Problem("grouped", self.B * self.N, self.D, self.B, self.dtype, "cpu", self.N)

    def make_inputs(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """x [T, D]: per group a few modes plus noise, as responses to one prompt have; offsets [B + 1]."""
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.full((self.B,), self.N, dtype=torch.int64, device="cpu")
        if self.ragged:
            sizes = torch.randint(0, self.N + 1, (self.B,), generator=generator, dtype=torch.int64, device="cpu")
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), sizes.cumsum(0)])
        T = int(offsets[-1])
        num_modes = max(2, self.N // 4)
        within = torch.randint(0, num_modes, (T,), generator=generator, dtype=torch.int64, device="cpu")
        mode = torch.repeat_interleave(sizes) * num_modes + within
        centres = torch.randn(self.B * num_modes, self.D, generator=generator, dtype=torch.float32, device="cpu")
        x = torch.randn(T, self.D, generator=generator, dtype=torch.float32, device="cpu").mul_(0.7).add_(centres[mode])
        return x.to(self.dtype), offsets


def _bench(name: str, B: int, N: int, K: int, dtype: torch.dtype) -> Case:
    return Case(f"{name} {str(dtype).removeprefix('torch.')}", B, N, K, 384, dtype, frozenset({"bench"}))


def _test(name: str, B: int, N: int, K: int, D: int, dtype: torch.dtype = torch.float32) -> Case:
    return Case(name, B, N, K, D, dtype, frozenset({"test"}), ragged=True)


CASES = (
    _bench("10,000 x 16 -> 4", 10_000, 16, 4, torch.float32),
    _bench("10,000 x 16 -> 4", 10_000, 16, 4, torch.bfloat16),
    _bench("800 x 64 -> 16", 800, 64, 16, torch.float32),
    _bench("800 x 64 -> 16", 800, 64, 16, torch.bfloat16),
    _test("one panel", 12, 16, 4, 24),
    _test("one row more than a panel", 8, 17, 5, 33),
    _test("two panels, odd features", 6, 33, 9, 31, torch.bfloat16),
    _test("float16", 6, 20, 6, 48, torch.float16),
    _test("one feature", 6, 7, 3, 1),
    _test("refreshed lazily, counted partially", 2, 150, 40, 16),
    _test("keep one", 6, 12, 1, 65),
)
