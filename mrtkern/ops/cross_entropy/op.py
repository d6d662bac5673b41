"""Public `cross_entropy`: checks that need no data, dispatch, torch.library registration, gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mrtkern import _check, _device, _dispatch, _operators
from mrtkern._check import Array
from mrtkern.ops.cross_entropy.arguments import (
    check_details,
    check_targets,
    check_values,
    checked_options,
    covered,
    rows_with_targets,
)
from mrtkern.ops.cross_entropy.details import LossDetails, response_details
from mrtkern.ops.cross_entropy.problem import IGNORE, Options, Problem, Rows

OP = "cross_entropy"
_ARGUMENTS = (
    "Tensor targets, Tensor? token_weight, Tensor? target_offsets, int ignore_index, float label_smoothing, "
    "float z_loss, float softcap, bool wants_details, bool? check, str? backend"
)
_DETAILS = "Tensor nll, Tensor weighted, Tensor entropy, Tensor argmax"


def _losses(
    logits: Tensor, targets: Tensor, token_weight: Tensor | None, target_offsets: Tensor | None, options: Options,
    wants_details: bool, check: bool | None, backend: str | None, wants_grad: bool, inplace: bool,
) -> tuple[Rows, Tensor]:  # fmt: skip
    """Every check that reads values, the choice of the backend and the call, below torch.compile."""
    arguments = (logits, targets, token_weight, target_offsets, options)
    problem = Problem.of(*arguments, wants_grad, inplace, wants_details)
    check_values(OP, targets, target_offsets, problem.V, options.ignore_index, check)
    kernels = _dispatch.run(OP, backend, problem)
    fresh = wants_grad and not inplace
    is_copied = logits.stride(1) != 1 and problem.V > 1  # kernels read adjacent columns
    needed = kernels.memory(problem) + (fresh + is_copied) * problem.T * problem.V * logits.element_size()
    _device.fits(f"{OP}: logits", needed, logits.device)
    size = tuple(logits.shape) if fresh else (0,)
    gradient = logits if inplace else torch.empty(size, dtype=logits.dtype, device=logits.device)
    rows: Rows = kernels.forward(*arguments, gradient if wants_grad or inplace else None, wants_details)
    return rows._replace(loss=covered(rows.loss, target_offsets, targets.shape[0], check)), gradient


def _run(
    logits: Tensor, targets: Tensor, token_weight: Tensor | None, target_offsets: Tensor | None, ignore_index: int,
    label_smoothing: float, z_loss: float, softcap: float, wants_details: bool, check: bool | None,
    backend: str | None, wants_grad: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    options = Options(ignore_index, label_smoothing, z_loss, softcap)
    inputs = (logits, targets, token_weight, target_offsets)
    rows, gradient = _losses(*inputs, options, wants_details, check, backend, wants_grad, False)
    return (*rows, gradient)


def _run_inplace(
    logits: Tensor, targets: Tensor, token_weight: Tensor | None, target_offsets: Tensor | None, ignore_index: int,
    label_smoothing: float, z_loss: float, softcap: float, wants_details: bool, check: bool | None, backend: str | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    options = Options(ignore_index, label_smoothing, z_loss, softcap)
    inputs = (logits, targets, token_weight, target_offsets)
    return tuple(_losses(*inputs, options, wants_details, check, backend, True, True)[0])


def _fake(
    logits: Tensor, targets: Tensor, token_weight: Tensor | None, target_offsets: Tensor | None, ignore_index: int,
    label_smoothing: float, z_loss: float, softcap: float, wants_details: bool, check: bool | None,
    backend: str | None, wants_grad: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    return (*_fake_losses(logits, targets, wants_details), logits.new_empty(logits.shape if wants_grad else 0))


def _fake_inplace(
    logits: Tensor, targets: Tensor, token_weight: Tensor | None, target_offsets: Tensor | None, ignore_index: int,
    label_smoothing: float, z_loss: float, softcap: float, wants_details: bool, check: bool | None, backend: str | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _fake_losses(logits, targets, wants_details)


def _fake_losses(logits: Tensor, targets: Tensor, wants_details: bool) -> tuple[Tensor, ...]:
    """Loss and details."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    T, num_targets = (logits.shape[0], targets.shape[0]) if wants_details else (0, 0)
    sizes = ((), num_targets, num_targets, T)
    return (*(logits.new_empty(size, dtype=dtype) for size in sizes), targets.new_empty(T))


_operators.define(
    "cross_entropy",
    f"(Tensor logits, {_ARGUMENTS}, bool wants_grad) -> (Tensor loss, {_DETAILS}, Tensor gradient)",
    _run,
    _fake,
)
_operators.define(
    "cross_entropy_", f"(Tensor(a!) logits, {_ARGUMENTS}) -> (Tensor loss, {_DETAILS})", _run_inplace, _fake_inplace
)


class _CrossEntropy(torch.autograd.Function):
    """The gradient is made in forward; backward multiplies it by the gradient of the loss."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, inplace: bool, *arguments: Any) -> tuple[Tensor, ...]:
        if inplace:
            results = torch.ops.mrtkern.cross_entropy_(logits, *arguments)
            if not torch.compiler.is_compiling():  # there the schema of the operator says it
                torch.autograd.graph.increment_version(logits)
            gradient = logits
        else:
            *results, gradient = torch.ops.mrtkern.cross_entropy(logits, *arguments, True)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        ctx.is_scaled, ctx.is_given, ctx.backend = False, False, arguments[-1]
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 11
        if grad is None:
            return (None, *nothing)
        if _check.is_traced(grad):
            (gradient,) = ctx.saved_tensors
            return ((gradient.to(grad.dtype) * grad).to(gradient.dtype), *nothing)  # a loss scale may exceed float16
        _check.once(OP, "logits", grad)
        if ctx.is_scaled:
            raise RuntimeError(
                f"{OP}: backward must run once when the loss is scaled, because the gradient is scaled in place, got a "
                "second backward (fold the scale into token_weight to run it often)"
            )
        (gradient,) = ctx.saved_tensors
        gradient = gradient.clone() if ctx.is_given else gradient.detach()  # the first is its receiver's
        if not _device.may_wait(grad.device) or float(grad) != 1.0:
            ctx.is_scaled = not ctx.is_given
            (T, V), device = gradient.shape, gradient.device
            problem = Problem(T, V, gradient.dtype, device.type, capability=_device.capability(device))
            _dispatch.run(OP, ctx.backend, problem).scale(gradient, grad)
        ctx.is_given = True
        return (gradient, *nothing)


def cross_entropy(
    logits: Array,
    targets: Array,
    *,
    token_weight: Array | None = None,
    ignore_index: int = IGNORE,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    target_offsets: Array | None = None,
    inplace: bool = False,
    return_details: bool = False,
    offsets: Array | None = None,
    prompt: Array | None = None,
    check: bool | None = None,
    backend: str | None = None,
) -> Tensor | LossDetails:
    """Cross-entropy of logits with one weight per target, loss and gradient in one pass.

        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
        loss = (token_weight * (losses + z_loss * logits.logsumexp(-1) ** 2)).sum()   # softcap: of tanh-capped logits

    Arguments
    ---------
    logits : [T, V] or [R, L, V], float32, bfloat16, float16 or float64
    targets : int64 [T] or [R, L]
        0 … V - 1 or ignore_index.
    token_weight : like targets, optional
        Any sign, as from `response_weights`; None: 1 / number of valid targets.
    ignore_index : int
        The target that counts for nothing.
    label_smoothing : float
        The share of each target that all classes have in equal parts.
    z_loss : float, >= 0
        Coefficient of lse^2.
    softcap : float, optional
        c of c tanh(z / c).
    target_offsets : int64 [T + 1], optional
        Row t has the targets target_offsets[t]:target_offsets[t + 1]; targets and token_weight then have one entry per
        target.
    inplace : bool
        The gradient replaces the logits (not where a program is traced, as by torch.compile).
    return_details : bool
        Needs offsets int64 [R + 1] (response r owns targets offsets[r]:offsets[r + 1]; padded targets need none), takes
        prompt int64 [R].
    check : bool, optional
        Whether targets on a GPU are checked, None: not; on the CPU they always are.
    backend : str, optional
        None chooses; a name is obeyed or refused.

    Returns
    -------
    loss : 0-d, float32 (float64 for float64 logits)
        With return_details LossDetails. Nothing valid: 0.

    Gradient
    --------
    logits, once, rounded once to their type, then multiplied by the gradient of the loss (what float16 cannot hold
    before a loss scale is lost: put the scale into token_weight). Rows whose weights are all 0 are not read and have 0.
    A second backward is right, or refused when the loss was scaled or the first gradient changed since.

    Raises
    ------
    IndexError
        For a target out of range (naming its position).
    ValueError
        For shapes, types and options that do not fit.
    MemoryError
        When it cannot fit.
    RuntimeError
        For create_graph=True.

    Memory
    ------
    Beyond the gradient (none with inplace or without requires_grad): cpu 4 V + 4096 bytes per thread and 8 per row;
    triton 8 per target and 4 per row; reference 28 bytes per logit (float64: 56); a copy of logits whose columns are
    not adjacent.

    Devices
    -------
    A GPU is waited for only with check=True (`mrtkern.ops.cross_entropy`, Devices).

    Determinism
    -----------
    The same bits on every run and, on the CPU, for every number of threads.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> logits = torch.zeros(2, 4, requires_grad=True)
    >>> loss = mk.cross_entropy(logits, torch.tensor([1, -100]))
    >>> loss.backward()
    >>> round(loss.item(), 4), logits.grad.tolist()
    (1.3863, [[0.25, -0.75, 0.25, 0.25], [0.0, 0.0, 0.0, 0.0]])

    Source
    ------
    `mrtkern.ops.cross_entropy` has the equations.
    """
    given = logits if isinstance(logits, Tensor) else _check.floating(OP, "logits", logits)
    logits, targets, token_weight, offsets, target_offsets = _checked(
        given, targets, token_weight, offsets, target_offsets
    )
    options = checked_options(OP, ignore_index, softcap, label_smoothing, z_loss, check=check, backend=backend)
    offsets, prompt = check_details(OP, return_details, targets, offsets, prompt)
    inplace = _overwrites(inplace, given, logits)
    arguments = (targets, token_weight, target_offsets, *options, return_details, check, backend)
    if torch.is_grad_enabled() and logits.requires_grad:
        results = _CrossEntropy.apply(logits, inplace, *arguments)  # type: ignore[no-untyped-call]
    elif inplace:
        results = torch.ops.mrtkern.cross_entropy_(logits, *arguments)
        torch.autograd.graph.increment_version(logits)
    else:
        results = torch.ops.mrtkern.cross_entropy(logits, *arguments, False)
    rows = Rows(*results[:5])
    if offsets is None:
        return rows.loss
    return response_details(OP, rows, targets, target_offsets, options.ignore_index, offsets, prompt)


def _checked(
    logits: Array, targets: Array, token_weight: Array | None, offsets: Array | None, target_offsets: Array | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Rows [T, V], one after the other, and what belongs to them; nothing that reads a tensor."""
    given = (logits, targets, token_weight, offsets)
    logits, targets, token_weight, offsets = rows_with_targets(OP, "logits", *given)
    _check.no_tangent(OP, logits=logits)
    _check.no_trace(OP, logits=logits)
    if logits.ndim != 2 or logits.shape[1] == 0:
        _check.fail(OP, "logits", "be [T, V] with V at least 1", _check.shape(logits))
    token_weight, target_offsets = check_targets(
        OP, logits.shape[0], logits.device, targets, token_weight, target_offsets
    )
    return logits, targets, token_weight, offsets, target_offsets


def _overwrites(inplace: bool, given: Tensor, logits: Tensor) -> bool:
    """Refuse what cannot be overwritten; inside torch.compile nothing is. given: before it was packed to [T, V]."""
    _check.flag(OP, "inplace", inplace)
    if not inplace or _check.is_traced(logits):
        return False
    owner = given._base if given._base is not None else given
    if torch.is_grad_enabled() and given.requires_grad and owner.is_leaf:
        _check.fail(OP, "inplace", "be False for logits that are a leaf or its view and require a gradient", True)
    T, V = logits.shape
    is_copy = logits.data_ptr() != given.data_ptr() or given.is_neg()
    if is_copy or (V > 1 and logits.stride(1) != 1) or (T > 1 and logits.stride(0) < V):
        rule = "have adjacent columns and rows that do not overlap to be overwritten"
        _check.fail(OP, "logits", rule, f"strides {list(given.stride())}" + ", negated" * given.is_neg())
    return True
