"""Public `linear_cross_entropy`: checks that need no data, dispatch, torch.library registration, gradient."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from torch import Tensor

from mrtkern import _check, _dispatch
from mrtkern.ops.cross_entropy.problem import IGNORE, Options
from mrtkern.ops.linear_cross_entropy import head, passes
from mrtkern.ops.linear_cross_entropy.problem import Problem
from mrtkern.ops.linear_cross_entropy.rows import entries

OP = "linear_cross_entropy"

torch.library.define(
    "mrtkern::linear_cross_entropy",
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor? token_weight, Tensor? target_offsets, "
    "int ignore_index, float label_smoothing, float z_loss, float softcap, ScalarType product, str? backend, "
    "bool[] needs, bool wants_details) -> "
    "(Tensor loss, Tensor dh, Tensor dW, Tensor db, Tensor nll, Tensor entropy, Tensor argmax)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "mrtkern::linear_cross_entropy_backward",
    "(Tensor grad, Tensor dh, Tensor dW, Tensor db, Tensor hidden, Tensor weight, Tensor? bias, bool[] needs) -> "
    "(Tensor dh, Tensor dW, Tensor db)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, token_weight: Tensor | None,
    target_offsets: Tensor | None, ignore_index: int, label_smoothing: float, z_loss: float, softcap: float,
    product: torch.dtype, backend: str | None, needs: list[bool], wants_details: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Every check that reads values, the choice of the backend and the pass, below torch.compile."""
    problem = Problem.of(hidden, weight, bias, product, (needs[0], needs[1], needs[2]))
    rows = _dispatch.run(OP, backend, problem)
    if target_offsets is not None:
        head.check_offsets(OP, target_offsets, targets.shape[0])
    head.check_targets(OP, targets, problem.V, ignore_index)
    head.check_memory(OP, problem, rows, targets)
    wide = head.sums_in(product)
    counts = targets != ignore_index
    if token_weight is None:
        each = torch.full(targets.shape, 1.0, dtype=wide, device=targets.device) / counts.sum().clamp(min=1)
    else:
        each = token_weight.to(wide)
        counts = counts if wants_details else counts & (each != 0)
    given = entries(targets, target_offsets, each, counts)
    options = Options(ignore_index, label_smoothing, z_loss, softcap)
    with torch.autocast(hidden.device.type, enabled=False):  # `product` says already what may be lowered
        found = passes.losses(rows, problem, hidden, weight, bias, given, options, targets.shape[0], wants_details)
    loss = torch.tensor(found.loss, dtype=wide, device=hidden.device)
    nothing = loss.new_empty(0)
    made = (found.gradients.hidden, found.gradients.weight, found.gradients.bias)
    details = found.details or (nothing, nothing, targets.new_empty(0))
    return loss, *(nothing.clone() if d is None else d for d in made), *(part.clone() for part in details)


def _fake_forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, token_weight: Tensor | None,
    target_offsets: Tensor | None, ignore_index: int, label_smoothing: float, z_loss: float, softcap: float,
    product: torch.dtype, backend: str | None, needs: list[bool], wants_details: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    wide = head.sums_in(product)
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    made = (hidden.new_empty(shape if need else 0, dtype=wide) for shape, need in zip(shapes, needs, strict=True))
    E, T = (targets.shape[0], hidden.shape[0]) if wants_details else (0, 0)
    details = (hidden.new_empty(E, dtype=wide), hidden.new_empty(T, dtype=wide), targets.new_empty(T))
    return hidden.new_empty((), dtype=wide), *made, *details


def _backward(
    grad: Tensor, dh: Tensor, dW: Tensor, db: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients times that of the loss, rounded once."""
    given = zip((dh, dW, db), (hidden, weight, bias), strict=True)
    return tuple((d * grad).to(d.dtype if value is None else value.dtype) for d, value in given)


def _fake_backward(
    grad: Tensor, dh: Tensor, dW: Tensor, db: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    given = zip((dh, dW, db), (hidden, weight, bias), strict=True)
    return tuple(torch.empty_like(d, dtype=d.dtype if value is None else value.dtype) for d, value in given)


def _no_second_derivative(*_: Any) -> NoReturn:
    raise RuntimeError(f"{OP}: the loss must be differentiated once at most, got a double backward")


torch.library.impl("mrtkern::linear_cross_entropy", ("cpu", "cuda"), _forward)
torch.library.impl("mrtkern::linear_cross_entropy_backward", ("cpu", "cuda"), _backward)
torch.library.register_fake("mrtkern::linear_cross_entropy", _fake_forward)
torch.library.register_fake("mrtkern::linear_cross_entropy_backward", _fake_backward)
torch.library.register_autograd("mrtkern::linear_cross_entropy_backward", _no_second_derivative)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, token_weight: Tensor | None,
        target_offsets: Tensor | None, options: tuple[Any, ...], needs: list[bool], wants_details: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        arguments = (hidden, weight, bias, targets, token_weight, target_offsets)
        loss, dh, dW, db, *details = torch.ops.mrtkern.linear_cross_entropy(*arguments, *options, needs, wants_details)
        ctx.save_for_backward(*arguments)
        ctx.made = (dh, dW, db)  # not saved as tensors: backward may overwrite them
        ctx.options, ctx.needs = options, needs
        ctx.mark_non_differentiable(*details)
        return loss, *details

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        made, given, needs = ctx.made, ctx.saved_tensors, ctx.needs
        if made is None:  # a second backward makes them again
            made = torch.ops.mrtkern.linear_cross_entropy(*given, *ctx.options, needs, False)[1:4]
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            made = torch.ops.mrtkern.linear_cross_entropy_backward(grad, *made, *given[:3], needs)
        else:
            ctx.made = None  # scaled in place, so they can be given away once
            made = [d if value is None else d.mul_(grad).to(value.dtype) for d, value in zip(made, given, strict=False)]
        return *(d if need else None for d, need in zip(made, needs, strict=True)), *(None,) * 6


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    token_weight: Tensor | None = None,
    ignore_index: int = IGNORE,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    target_offsets: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    head.check(OP, hidden, weight, bias, targets, target_offsets, token_weight)
    head.check_softcap(OP, softcap)
    if not 0 <= label_smoothing <= 1:
        _check.fail(OP, "label_smoothing", "be from 0 to 1", label_smoothing)
    if not math.isfinite(z_loss):
        _check.fail(OP, "z_loss", "be finite", z_loss)
    needs = head.needs(hidden, weight, bias)
    options = (ignore_index, label_smoothing, z_loss, softcap or 0.0, head.product_type(hidden, weight), backend)
    tensors = (hidden, weight, bias, targets, token_weight, target_offsets)
    loss: Tensor
    if any(needs):
        loss, *_ = _LinearCrossEntropy.apply(*tensors, options, needs, False)  # type: ignore[no-untyped-call]
    else:
        loss, *_ = torch.ops.mrtkern.linear_cross_entropy(*tensors, *options, needs, False)
    return loss
