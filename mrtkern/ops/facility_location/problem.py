"""What a facility-location call looks like, without any data in it, and the cases that tests and benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from mrtkern import _cases, _device
from mrtkern.ops.facility_location.ground import Features, Graph, Ground, Groups, Matrix
from mrtkern.ops.facility_location.rule import Rule

ABSENT: dict[str, str] = {}  # backends that are not written


@dataclass(frozen=True)
class Problem:
    """Sizes, types and options of one call."""

    form: type[Ground]  # Features, Groups, Matrix or Graph
    T: int  # candidates of all problems
    D: int  # features; 0 of a matrix and a graph
    B: int  # problems
    dtype: torch.dtype
    device: str
    largest: int | None = None  # candidates of the largest problem; None: not looked at
    options: tuple[str, ...] = ()  # which of those that only some kernels know were given
    covered: int | None = None  # rows to cover; None: the candidates themselves
    capability: tuple[int, int] | None = None  # of the CUDA device; None: unknown
    edges: int = 0  # of a graph
    K: int = 0  # kept of each group, in cases; no choice depends on this and the next
    is_ragged: bool = False  # groups of 0 to `largest` rows instead of as many

    @property
    def M(self) -> int:
        """Rows that the largest problem covers."""
        return (self.largest or 0) if self.covered is None else self.covered

    @classmethod
    def of(cls, ground: Ground, rule: Rule) -> Problem:
        rows = ground.s if isinstance(ground, Matrix) else ground.values if isinstance(ground, Graph) else ground.x
        has_features = isinstance(ground, (Features, Groups))
        targets = ground.targets if isinstance(ground, Features) else None
        covers_itself = has_features and targets is None
        given = {
            "targets": targets, "start": rule.start, "mask": rule.mask, "stop_gain": rule.stop_gain,
            "stop_fraction": rule.stop_fraction, "stop_coverage": rule.stop_coverage,
            "checkpoint": rule.course.checkpoint, "limits": rule.limits,
            "method": None if rule.method == "lazy" else rule.method, "polish": rule.polish or None,
        }  # fmt: skip
        return cls(
            form=type(ground),
            T=rows.shape[0] if has_features else ground.largest,
            D=rows.shape[1] if has_features else 0,
            B=rule.k.shape[0],
            dtype=rows.dtype,
            device=rows.device.type,
            largest=ground.largest,
            options=tuple(name for name, value in given.items() if value is not None),
            covered=None if covers_itself else int(ground.covered[1]),
            capability=_device.capability(rows.device),
            edges=len(ground.ids) if isinstance(ground, Graph) else 0,
        )

    @property
    def bytes(self) -> int:
        """Read at least once: the features."""
        return self.T * self.D * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """Multiplications and additions of all pairs when the groups are equal; the greedy steps come on top."""
        return 2 * self.T * (self.T // max(self.B, 1)) * self.D

    def make_inputs(self, seed: int = 0) -> dict[str, Any]:
        """Arguments of `facility_location`: per group a few modes plus noise, as responses to one prompt have."""
        generator = torch.Generator().manual_seed(seed)
        N = self.largest or 0
        sizes = torch.full((self.B,), N, dtype=torch.int64, device="cpu")
        if self.is_ragged:
            sizes = torch.randint(0, N + 1, (self.B,), generator=generator, dtype=torch.int64, device="cpu")
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64, device="cpu"), sizes.cumsum(0)])
        T = int(offsets[-1])
        num_modes = max(2, N // 4)
        within = torch.randint(0, num_modes, (T,), generator=generator, dtype=torch.int64, device="cpu")
        mode = torch.repeat_interleave(sizes) * num_modes + within
        centres = torch.randn(self.B * num_modes, self.D, generator=generator, dtype=torch.float32, device="cpu")
        x = torch.randn(T, self.D, generator=generator, dtype=torch.float32, device="cpu").mul_(0.7).add_(centres[mode])
        return {"x": x.to(self.dtype), "offsets": offsets, "k": self.K}


Case = _cases.Case[Problem]


def _bench(name: str, B: int, N: int, K: int, dtype: torch.dtype) -> Case:
    problem = Problem(Groups, B * N, 384, B, dtype, "cpu", N, K=K)
    return Case(f"{name} {str(dtype).removeprefix('torch.')}", problem, frozenset({"bench"}))


def _test(name: str, B: int, N: int, K: int, D: int, dtype: torch.dtype = torch.float32) -> Case:
    return Case(name, Problem(Groups, B * N, D, B, dtype, "cpu", N, K=K, is_ragged=True), frozenset({"test"}))


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
