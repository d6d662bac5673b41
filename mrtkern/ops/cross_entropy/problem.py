"""What a cross-entropy call looks like, without any data in it, and the cases that tests and benchmarks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrtkern import _cases, _device

IGNORE = -100  # the target of rows that do not count, as everywhere in torch
OPERATIONS = 40  # per logit: two maxima, an exponential, two products and sums
ABSENT = {  # backends that are not written
    "cuda": "is not written in CUDA C++: rows in shared memory would move no fewer bytes than Triton's rows, which "
    "stay in registers or, when long, in the L2 cache"
}


class Options(NamedTuple):
    """What changes the value of the loss. softcap 0: none."""

    ignore_index: int = IGNORE
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0


NO_OPTIONS = Options()


class Rows(NamedTuple):
    """What a backend leaves beside the gradient; the details are empty when nobody wants them."""

    loss: Tensor  # 0-d, float32 or float64
    nll: Tensor  # one per entry, 0 where ignored
    weighted: Tensor  # weight times loss, one per entry
    entropy: Tensor  # [T], 0 in rows without a valid target
    argmax: Tensor  # [T] int64, -1 there


@dataclass(frozen=True)
class Problem:
    """Sizes, types and options."""

    T: int  # rows
    V: int  # vocabulary
    dtype: torch.dtype
    device: str = "cpu"
    options: Options = NO_OPTIONS
    num_targets: int | None = None  # entries when rows have several targets; None: one each
    has_weight: bool = False
    wants_grad: bool = False
    inplace: bool = False
    wants_details: bool = False
    capability: tuple[int, int] | None = None  # of the CUDA device; None: unknown

    @classmethod
    def of(
        cls, logits: Tensor, targets: Tensor, token_weight: Tensor | None, target_offsets: Tensor | None,
        options: Options, wants_grad: bool, inplace: bool, wants_details: bool,
    ) -> Problem:  # fmt: skip
        T, V = logits.shape
        num_targets = None if target_offsets is None else targets.shape[0]
        return cls(
            T, V, logits.dtype, logits.device.type, options, num_targets, has_weight=token_weight is not None,
            wants_grad=wants_grad, inplace=inplace, wants_details=wants_details,
            capability=_device.capability(logits.device),
        )  # fmt: skip

    @property
    def flops(self) -> int:
        """Operations on logits."""
        return OPERATIONS * self.T * self.V

    @property
    def bytes(self) -> int:
        """Moved at least once: logits in, with a gradient as much out."""
        return self.T * self.V * self.dtype.itemsize * (2 if self.wants_grad or self.inplace else 1)

    def make_inputs(self, seed: int = 0) -> dict[str, Any]:
        """Arguments of `cross_entropy`: every seventh target ignored, weights of both signs and 0."""
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(self.T, self.V, generator=generator, dtype=torch.float32, device="cpu").mul_(3)
        count = self.T if self.num_targets is None else self.num_targets
        targets = torch.randint(0, self.V, (count,), generator=generator, dtype=torch.int64, device="cpu")
        targets[::7] = self.options.ignore_index
        inputs: dict[str, Any] = {
            "logits": logits.to(self.device, self.dtype).requires_grad_(self.wants_grad),
            "targets": targets.to(self.device),
            **self.options._asdict(),
        }
        inputs["softcap"] = inputs["softcap"] or None
        if self.has_weight:
            weight = torch.randn(count, generator=generator, dtype=torch.float32, device="cpu")
            weight[1::5] = 0
            inputs["token_weight"] = weight.to(self.device, torch.float64 if self.dtype == torch.float64 else None)
        if self.num_targets is not None:
            size = (self.T - 1,)
            cuts = torch.randint(0, count + 1, size, generator=generator, dtype=torch.int64, device="cpu").sort().values
            ends = cuts.new_tensor([0]), cuts, cuts.new_tensor([count])
            inputs["target_offsets"] = torch.cat(ends).to(self.device)
        return inputs


Case = _cases.Case[Problem]


def _case(name: str, tag: str, problem: Problem) -> Case:
    return Case(name, problem, frozenset({tag}))


_ALL = Options(label_smoothing=0.1, z_loss=1e-3, softcap=5.0)

CASES = (
    *(
        _case(
            f"{T:,} x {V:,} {str(dtype).removeprefix('torch.')}, {'in place' if inplace else 'new gradient'}",
            "bench",
            Problem(T, V, dtype, wants_grad=True, inplace=inplace),
        )
        for T, V in ((2048, 32000), (512, 128256))
        for dtype in (torch.float32, torch.bfloat16)
        for inplace in (False, True)
    ),
    _case("mean", "test", Problem(15, 33, torch.float32)),
    _case("weighted", "test", Problem(16, 64, torch.float32, has_weight=True)),
    _case("one class", "test", Problem(8, 1, torch.float32, has_weight=True)),
    _case("one row across two blocks of 2,048", "test", Problem(1, 4097, torch.float32)),
    _case("a block and a register, bfloat16", "test", Problem(9, 2048 + 32, torch.bfloat16, has_weight=True)),
    _case("an odd tail, float16", "test", Problem(9, 31, torch.float16, has_weight=True)),
    _case("an odd tail, bfloat16", "test", Problem(9, 2049, torch.bfloat16)),
    _case("smoothing", "test", Problem(9, 65, torch.float32, options=Options(label_smoothing=0.2))),
    _case("z-loss", "test", Problem(9, 65, torch.float32, options=Options(z_loss=1e-2))),
    _case("softcap", "test", Problem(9, 65, torch.float32, options=Options(softcap=4.0))),
    _case("everything", "test", Problem(21, 2085, torch.float32, options=_ALL, num_targets=40, has_weight=True)),
    _case("everything float16", "test", Problem(11, 95, torch.float16, options=_ALL, num_targets=7, has_weight=True)),
    _case("everything float64", "test", Problem(11, 40, torch.float64, options=_ALL, num_targets=23, has_weight=True)),
    _case("several targets a row", "test", Problem(7, 20, torch.float32, num_targets=60)),
    _case("several targets a row, bfloat16", "test", Problem(5, 8, torch.bfloat16, num_targets=64, has_weight=True)),
)
