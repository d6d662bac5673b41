"""What a linear_cross_entropy call looks like, without any data in it, how many rows a chunk has, and the cases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrtkern import _cases, _device
from mrtkern.ops.cross_entropy.problem import IGNORE

NO_TARGET = torch.iinfo(torch.int64).min  # in place of targets that do not count, where they cannot be dropped
ABSENT = {  # backends that are not written
    "cuda": "is not written in CUDA C++: the device's library multiplies, and between its products stands the kernel "
    "of cross_entropy"
}
LOGITS_BYTES = 192 << 20  # of one chunk at most
LEAST_ROWS = 16  # of a chunk, however large the vocabulary: fewer leave the registers of a product idle
FRESH = 5.0  # a byte of fresh memory, page faults included, costs as much as this many bytes streamed (Zen 4, Linux 6)


class Cap(NamedTuple):
    """From logits to what is normalised: u = softcap tanh(z / softcap) / temperature, or z / temperature."""

    softcap: float = 0.0
    temperature: float = 1.0


class Head(NamedTuple):
    """What is multiplied."""

    hidden: Tensor  # [T, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]


class LogProbs(NamedTuple):
    """Of rows of logits."""

    logp: Tensor  # [C]
    entropy: Tensor  # [C]
    lse: Tensor  # [C] float64
    below: Tensor | None = None  # [C] lse - mean of u over the classes, where wanted


@dataclass(frozen=True)
class Problem:
    """Sizes, types and options. `product`: the type that the caller lets multiply, the wider of both or autocast's."""

    T: int  # rows of hidden
    D: int  # features
    V: int  # vocabulary
    hidden: torch.dtype
    weight: torch.dtype
    product: torch.dtype
    device: str = "cpu"
    needs: tuple[bool, bool, bool] = (True, True, False)  # gradients of hidden, weight, bias
    has_bias: bool = False
    targets_per_row: int | None = None  # None: one, without offsets; in cases
    ignored: float = 0.0  # share of rows without a valid target, in cases; no choice depends on it
    is_log_prob: bool = False  # backward computes its logits again
    capability: tuple[int, int] | None = None  # of the CUDA device; None: unknown

    @classmethod
    def of(cls, head: Head, product: torch.dtype, needs: tuple[bool, bool, bool], is_log_prob: bool = False) -> Problem:
        hidden, weight, bias = head
        (T, D), V = hidden.shape, weight.shape[0]
        return cls(
            T, D, V, hidden.dtype, weight.dtype, product, hidden.device.type, needs, has_bias=bias is not None,
            is_log_prob=is_log_prob, capability=_device.capability(hidden.device),
        )  # fmt: skip

    @property
    def wants_grad(self) -> bool:
        return any(self.needs)

    @property
    def flops(self) -> int:
        """Multiplications and additions of the products, of rows that count."""
        products = 1 + self.needs[0] + self.needs[1] + (self.is_log_prob and self.wants_grad)
        return 2 * self.rows * self.V * self.D * products

    @property
    def rows(self) -> int:
        """Rows that count, in cases."""
        return self.T - round(self.T * self.ignored)

    @property
    def bytes(self) -> int:
        """Moved at least once: hidden and weight in, their gradients out."""
        sizes = (self.T * self.D * self.hidden.itemsize, self.V * self.D * self.weight.itemsize)
        return sum(size * (1 + need) for size, need in zip(sizes, self.needs[:2], strict=True))

    def make_inputs(self, seed: int = 0) -> dict[str, Any]:
        """Arguments of `linear_cross_entropy`: logits of unit variance, random weights; same seed, same bits."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, dtype: torch.dtype, scale: float, need: bool) -> Tensor:
            value = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").mul_(scale)
            return value.to(self.device, dtype).requires_grad_(need)

        E = self.T * (self.targets_per_row or 1)
        targets = torch.randint(self.V, (E,), generator=generator, dtype=torch.int64, device="cpu")
        ignored = torch.randperm(self.T, generator=generator, dtype=torch.int64, device="cpu")[: self.T - self.rows]
        targets.view(self.T, self.targets_per_row or 1)[ignored] = IGNORE
        hidden, weight = (
            normal(self.T, self.D, dtype=self.hidden, scale=1.0, need=self.needs[0]),
            normal(self.V, self.D, dtype=self.weight, scale=self.D**-0.5, need=self.needs[1]),
        )
        token_weight = torch.rand(E, generator=generator, dtype=torch.float32, device="cpu")
        inputs: dict[str, Any] = {
            "hidden": hidden,
            "weight": weight,
            "targets": targets.to(self.device),
            "token_weight": token_weight.div_(max(E, 1)).to(self.device),
        }
        if self.has_bias:
            inputs["bias"] = normal(self.V, dtype=self.weight, scale=1.0, need=self.needs[2])
        if self.targets_per_row is not None:
            rows = torch.arange(self.T + 1, dtype=torch.int64, device=self.device)
            inputs["target_offsets"] = rows * self.targets_per_row
        return inputs


def sums_in(product: torch.dtype) -> torch.dtype:
    """The type of losses and gradients until they are rounded."""
    return torch.float64 if product == torch.float64 else torch.float32


def chunk_rows(problem: Problem) -> int:
    """Rows of a chunk, from the bytes that a chunk moves.

    T / C chunks each stream the weight once per product that reads it and read and write a float32 dW; C V logits of
    float32 are touched for the first time, at FRESH times the cost, and the buffer serves all chunks:

        cost(C) = T / C * V D stream + FRESH C V 4    =>    C = sqrt(T D stream / (FRESH 4))

    A sweep on 2 cores of a Xeon with AVX-512 at 2,048 x 1,024 x 32,000 float32, where this chooses 1,024: 256 rows took
    1.15 times as long, 512 1.05, 2,048 0.98; `make full` repeats it.

    No more than LOGITS_BYTES of logits. All chunks get equally many.
    """
    stream = (1 + problem.needs[0]) * problem.weight.itemsize + (8 if problem.needs[1] else 0)
    best = math.sqrt(problem.T * problem.D * stream / (FRESH * 4))
    most = max(LOGITS_BYTES // (problem.V * 4), 1)
    chunks = math.ceil(problem.T / max(min(best, most), LEAST_ROWS)) or 1
    return math.ceil(problem.T / chunks)


def memory(problem: Problem, size: int, product: torch.dtype, targets: int) -> int:
    """Bytes beyond inputs and gradients, at most, with chunks of `size` rows, but for what a backend needs itself."""
    wide = 8 if product == torch.float64 else 4
    total = size * problem.V * wide  # logits
    total += 3 * size * problem.D * wide  # hidden as it multiplies, dh
    total += problem.T * problem.D * wide * problem.needs[0]  # dh until backward
    total += problem.V * problem.D * wide * (problem.needs[1] and problem.weight.itemsize != wide)
    return total + 4 * problem.V * wide + 64 * targets


# Of tag "long": minutes with its peers. Or of what is timed alone: "logits", "hidden_gradient", "weight_gradient", one
# product each, or "log_prob".
Case = _cases.Case[Problem]


def _case(name: str, tags: str, T: int, D: int, V: int, dtype: torch.dtype, **more: Any) -> Case:
    given = {"hidden": dtype, "weight": dtype, "product": dtype, **more}
    return Case(name, Problem(T, D, V, **given), frozenset(tags.split()))


_F32, _F64, _BF16, _F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
_ALL = {"needs": (True, True, True), "has_bias": True}
_PARTS = (  # what, rows, classes, features: square, two chunks of a vocabulary, long and short sums; rows in any batch
    ("logits", 1536, 1536, 1536),
    ("logits", 256, 32_000, 1024),
    ("logits", 2048, 1024, 4096),
    ("logits", 4096, 1024, 256),
    ("logits", 512, 32_000, 1024),
    ("hidden_gradient", 512, 32_000, 1024),
    ("weight_gradient", 512, 32_000, 1024),
    *(("log_prob", T, 32_000, 1024) for T in (1, 16, 256, 2048)),
)

CASES = (
    _case("2,048 x 1,024 x 32,000 float32, none ignored", "bench", 2048, 1024, 32_000, _F32),
    _case("2,048 x 1,024 x 32,000 float32, 40 % ignored", "bench", 2048, 1024, 32_000, _F32, ignored=0.4),
    _case("2,048 x 1,024 x 32,000 bfloat16", "bench", 2048, 1024, 32_000, _BF16),
    _case("2,048 x 896 x 151,936 float32", "bench long", 2048, 896, 151_936, _F32),
    _case("2,048 x 896 x 151,936 bfloat16", "bench long", 2048, 896, 151_936, _BF16),
    _case("one row, one feature, one class", "test", 1, 1, 1, _F32),
    _case("float64 with bias", "test", 7, 5, 11, _F64, **_ALL),
    _case("float32 with bias, some ignored", "test", 40, 33, 129, _F32, ignored=0.4, **_ALL),
    _case("float32, several targets per row", "test", 9, 16, 50, _F32, targets_per_row=3, ignored=0.3),
    _case("bfloat16", "test", 33, 24, 200, _BF16),
    _case("bfloat16 with bias, many classes", "test", 5, 8, 4097, _BF16, **_ALL),
    _case("float16, several targets per row", "test", 17, 64, 100, _F16, targets_per_row=2),
    _case("bfloat16 hidden, float32 weight", "test", 20, 12, 70, _BF16, weight=_F32, product=_F32),
    _case("all ignored", "test", 4, 3, 9, _F32, ignored=1.0),
    _case("no rows", "test", 0, 3, 9, _F32),
    *(
        _case(f"{part} {T:,} x {V:,} x {D:,} {name}", part, T, D, V, dtype, needs=(False,) * 3)
        for part, T, V, D in _PARTS
        for name, dtype in (("float32", _F32), ("bfloat16", _BF16))
    ),
)
