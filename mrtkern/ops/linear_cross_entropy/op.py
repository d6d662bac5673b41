"""Public `linear_cross_entropy`: checks that need no data, dispatch, torch.library registration, gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mrtkern import _check, _device, _dispatch, _operators
from mrtkern._check import Array
from mrtkern.ops.cross_entropy.arguments import check_details, check_values, checked_options, covered
from mrtkern.ops.cross_entropy.details import LossDetails, response_details
from mrtkern.ops.cross_entropy.problem import IGNORE, Options, Rows
from mrtkern.ops.linear_cross_entropy import passes
from mrtkern.ops.linear_cross_entropy.arguments import check_memory, checked, flags, gradients_needed, product_type
from mrtkern.ops.linear_cross_entropy.problem import Head, Problem, sums_in
from mrtkern.ops.linear_cross_entropy.rows import entries

OP = "linear_cross_entropy"


def _run(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, token_weight: Tensor | None,
    target_offsets: Tensor | None, ignore_index: int, label_smoothing: float, z_loss: float, softcap: float,
    product: torch.dtype, backend: str | None, check: bool | None, wants_details: bool, needs: list[int],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Every check that reads values, the choice of the backend and the pass, below torch.compile."""
    head = Head(hidden, weight, bias)
    problem = Problem.of(head, product, flags(needs))
    kernels = _dispatch.run(OP, backend, problem)
    check_values(OP, targets, target_offsets, problem.V, ignore_index, check)
    check_memory(OP, problem, kernels, targets)
    wide = sums_in(product)
    counts = valid = targets != ignore_index
    if token_weight is None:
        each = torch.full(targets.shape, 1.0, dtype=wide, device=targets.device) / counts.sum().clamp(min=1)
    else:
        each = token_weight.to(wide)
        counts = counts if wants_details else counts & (each != 0)
    given = entries(targets, target_offsets, each, valid, counts, _device.may_wait(targets.device, check))
    options = Options(ignore_index, label_smoothing, z_loss, softcap)
    with torch.autocast(hidden.device.type, enabled=False):  # `product` says already what may be lowered
        found, made = passes.losses(
            kernels, problem, head, given, options, num_entries=targets.shape[0], wants_details=wants_details
        )
    found = found._replace(loss=covered(found.loss, target_offsets, targets.shape[0], check))
    gradients = (made.hidden, made.weight, made.bias)
    return *found, *(found.loss.new_empty(0) if d is None else d for d in gradients)


def _fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, token_weight: Tensor | None,
    target_offsets: Tensor | None, ignore_index: int, label_smoothing: float, z_loss: float, softcap: float,
    product: torch.dtype, backend: str | None, check: bool | None, wants_details: bool, needs: list[int],
) -> tuple[Tensor, ...]:  # fmt: skip
    wide = sums_in(product)
    shapes = (hidden.shape, weight.shape, weight.shape[:1])
    made = (hidden.new_empty(shape if need else 0, dtype=wide) for shape, need in zip(shapes, needs, strict=True))
    E, T = (targets.shape[0], hidden.shape[0]) if wants_details else (0, 0)
    found = (hidden.new_empty(size, dtype=wide) for size in ((), E, E, T))
    return *found, targets.new_empty(T), *made


def _run_backward(
    grad: Tensor, dh: Tensor, dW: Tensor, db: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None,
    needs: list[int],
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients times that of the loss, rounded once."""
    given = zip((dh, dW, db), (hidden, weight, bias), strict=True)
    return tuple(passes.scaled(d, grad, d.dtype if value is None else value.dtype) for d, value in given)


def _fake_backward(
    grad: Tensor, dh: Tensor, dW: Tensor, db: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None,
    needs: list[int],
) -> tuple[Tensor, ...]:  # fmt: skip
    given = zip((dh, dW, db), (hidden, weight, bias), strict=True)
    return tuple(torch.empty_like(d, dtype=d.dtype if value is None else value.dtype) for d, value in given)


_operators.define(
    "linear_cross_entropy",
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor? token_weight, Tensor? target_offsets, "
    "int ignore_index, float label_smoothing, float z_loss, float softcap, ScalarType product, str? backend, "
    "bool? check, bool wants_details, int[] needs) -> (Tensor loss, Tensor nll, Tensor weighted, Tensor entropy, "
    "Tensor argmax, Tensor dh, Tensor dW, Tensor db)",
    _run,
    _fake,
)
_operators.define(
    "linear_cross_entropy_backward",
    "(Tensor grad, Tensor dh, Tensor dW, Tensor db, Tensor hidden, Tensor weight, Tensor? bias, int[] needs) -> "
    "(Tensor dh, Tensor dW, Tensor db)",
    _run_backward,
    _fake_backward,
)
_operators.no_second_derivative("linear_cross_entropy_backward", OP, "the loss")


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients are made in forward; backward multiplies them by the gradient of the loss and rounds them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, token_weight: Tensor | None,
        target_offsets: Tensor | None, options: tuple[Any, ...], wants_details: bool, needs: list[int],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        inputs = (hidden, weight, bias, targets, token_weight, target_offsets)
        *found, dh, dW, db = torch.ops.mrtkern.linear_cross_entropy(*inputs, *options, wants_details, needs)
        ctx.save_for_backward(*inputs)
        ctx.made = (dh, dW, db)  # not saved as tensors: backward may overwrite them
        ctx.options, ctx.wants_details, ctx.needs = options, wants_details, needs
        ctx.mark_non_differentiable(*found[1:])
        ctx.set_materialize_grads(False)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 6
        if grad is None:
            return *(None,) * 3, *nothing
        made, inputs, needs = ctx.made, ctx.saved_tensors, ctx.needs
        if made is None:  # a second backward makes them again, from the same rows in the same chunks
            made = torch.ops.mrtkern.linear_cross_entropy(*inputs, *ctx.options, ctx.wants_details, needs)[5:]
        if _check.is_traced(grad) or torch.is_grad_enabled():
            made = torch.ops.mrtkern.linear_cross_entropy_backward(grad, *made, *inputs[:3], needs)
        else:
            ctx.made = None  # scaled in place, so they can be given away once
            given = zip(made, inputs[:3], strict=True)
            made = [d if x is None else passes.scaled(d, grad, x.dtype, in_place=True) for d, x in given]
        return *(d if need else None for d, need in zip(made, needs, strict=True)), *nothing


def linear_cross_entropy(
    hidden: Array,
    weight: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    token_weight: Array | None = None,
    ignore_index: int = IGNORE,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    target_offsets: Array | None = None,
    return_details: bool = False,
    offsets: Array | None = None,
    prompt: Array | None = None,
    check: bool | None = None,
    backend: str | None = None,
) -> Tensor | LossDetails:
    """`cross_entropy` of a linear head, with one weight per target, loss and gradients in one pass over its rows.

        loss = cross_entropy(hidden @ weight.T + bias, targets, token_weight=token_weight, …)

    Arguments
    ---------
    hidden : [T, D], or [R, L, D] with targets [R, L]
    weight : [V, D]
        May be tied to an embedding.
    bias : [V], optional
        These three are float32, float64, bfloat16, float16, also mixed; under autocast products may have its type.
    targets : int64 [T] or [R, L]
    token_weight : like targets, optional
        None: 1 / number of valid targets.
    ignore_index, label_smoothing, z_loss, softcap, target_offsets [T + 1]
        As in `cross_entropy`.
    return_details : bool
        With offsets [R + 1] and prompt [R], as in `cross_entropy`.
    check : bool, optional
        Whether targets on a GPU are checked, None: not; on the CPU they always are.
    backend : str, optional
        None chooses; a name is obeyed or refused.

    Returns
    -------
    loss : 0-d, float32 (float64 for float64)
        With return_details LossDetails. Nothing valid: 0.

    Gradient
    --------
    hidden, weight, bias, where asked, once. They are made with the loss, in the summing type, multiplied by the
    gradient of the loss and rounded once to their types. A second backward is right: it makes them again.

    Cost: 6 T V D operations with gradients of hidden and weight. Rows without a valid target are dropped before the
    product, and without return_details those whose weights are all 0: their gradient is 0 (GPU: with check=True).

    Precision
    ---------
    Logits and sums are float32 on the CPU. Of bfloat16 inputs, and under autocast to bfloat16, the factors of products
    are bfloat16: hidden, weight, and for the gradients dL/dlogits rounded to it; never the logits.

    Raises
    ------
    IndexError
        For a target out of range (naming its position).
    ValueError
        For shapes, types and options that do not fit, and for heads that are not one matrix.
    MemoryError
        When it cannot fit.
    RuntimeError
        For a double backward.

    Memory
    ------
    Beyond inputs and gradients: cpu at most 192 MiB of logits (or 16 rows), 8 MiB of packed factors, 12 bytes per
    feature of a chunk, 4 T D bytes, and 4 V D bytes when weight is not float32; reference 36 T V.

    Determinism
    -----------
    The same bits on every run. On the CPU (backend "cpu") also for every number of threads, and what belongs to a row,
    its details and its gradient of hidden, whatever the other rows are, their number and their order.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> head = torch.nn.Linear(3, 4, bias=False)
    >>> hidden, targets = torch.zeros(2, 3), torch.tensor([1, -100])
    >>> loss = mk.linear_cross_entropy(hidden, head.weight, targets)
    >>> loss.backward()
    >>> round(loss.item(), 4), head.weight.grad.shape
    (1.3863, torch.Size([4, 3]))

    Source
    ------
    `mrtkern.ops.linear_cross_entropy` has the equations.
    """
    hidden, weight, bias, targets, token_weight, target_offsets, offsets = checked(
        OP, hidden, weight, bias, targets, token_weight, target_offsets, offsets
    )
    options = checked_options(OP, ignore_index, softcap, label_smoothing, z_loss, check=check, backend=backend)
    offsets, prompt = check_details(OP, return_details, targets, offsets, prompt)
    needs = gradients_needed(hidden, weight, bias)
    inputs = (hidden, weight, bias, targets, token_weight, target_offsets)
    arguments = (*options, product_type(hidden, weight), backend, check)
    if any(needs):
        found = _LinearCrossEntropy.apply(*inputs, arguments, return_details, needs)  # type: ignore[no-untyped-call]
    else:
        found = torch.ops.mrtkern.linear_cross_entropy(*inputs, *arguments, return_details, needs)
    rows = Rows(*found[:5])
    if offsets is None:
        return rows.loss
    return response_details(OP, rows, targets, target_offsets, options.ignore_index, offsets, prompt)
