"""Public `cross_entropy`: checks that need no data, dispatch, torch.library registration, gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mrtkern import _check, _dispatch
from mrtkern.details import LossDetails, response_details
from mrtkern.ops.cross_entropy.problem import IGNORE, Options, Problem, Rows

OP = "cross_entropy"
_ARGUMENTS = (
    "Tensor targets, Tensor? token_weight, Tensor? target_offsets, int ignore_index, float label_smoothing, "
    "float z_loss, float softcap, bool wants_details, bool? check, str? backend"
)
_DETAILS = "Tensor nll, Tensor weighted, Tensor entropy, Tensor argmax"

torch.library.define(
    "mrtkern::cross_entropy",
    f"(Tensor logits, {_ARGUMENTS}, bool wants_grad) -> (Tensor loss, {_DETAILS}, Tensor gradient)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "mrtkern::cross_entropy_",
    f"(Tensor(a!) logits, {_ARGUMENTS}) -> (Tensor loss, {_DETAILS})",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _run(
    logits: Tensor, targets: Tensor, token_weight: Tensor | None, target_offsets: Tensor | None, options: Options,
    wants_details: bool, check: bool | None, backend: str | None, wants_grad: bool, inplace: bool,
) -> tuple[Rows, Tensor]:  # fmt: skip
    """Every check that reads values, the choice of the backend and the call, below torch.compile."""
    arguments = (logits, targets, token_weight, target_offsets, options)
    problem = Problem.of(*arguments, wants_grad, inplace, wants_details)
    if _check.may_wait(logits.device, check):
        if target_offsets is not None:
            _check.offsets_values(OP, target_offsets, targets.shape[0], "target_offsets", "targets")
        _check.labels(OP, targets, problem.V, options.ignore_index)
    module = _dispatch.run(OP, backend, problem)
    fresh = wants_grad and not inplace
    is_copied = logits.stride(1) != 1 and problem.V > 1  # kernels read adjacent columns
    needed = module.memory(problem) + (fresh + is_copied) * problem.T * problem.V * logits.element_size()
    _check.fits(f"{OP}: logits", needed, logits.device)
    size = tuple(logits.shape) if fresh else (0,)
    gradient = logits if inplace else torch.empty(size, dtype=logits.dtype, device=logits.device)
    rows: Rows = module.forward(*arguments, gradient if wants_grad or inplace else None, wants_details)
    return rows._replace(loss=covered(rows.loss, target_offsets, targets.shape[0], check)), gradient


def covered(loss: Tensor, target_offsets: Tensor | None, num_targets: int, check: bool | None) -> Tensor:
    """The loss; NaN when offsets that nobody has checked do not begin and end with the targets."""
    if target_offsets is None or _check.may_wait(loss.device, check):
        return loss
    return torch.where((target_offsets[0] == 0) & (target_offsets[-1] == num_targets), loss, torch.nan)


def _forward(
    logits: Tensor, targets: Tensor, token_weight: Tensor | None, target_offsets: Tensor | None, ignore_index: int,
    label_smoothing: float, z_loss: float, softcap: float, wants_details: bool, check: bool | None,
    backend: str | None, wants_grad: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    options = Options(ignore_index, label_smoothing, z_loss, softcap)
    inputs = (logits, targets, token_weight, target_offsets)
    rows, gradient = _run(*inputs, options, wants_details, check, backend, wants_grad, False)
    return (*rows, gradient)


def _forward_inplace(
    logits: Tensor, targets: Tensor, token_weight: Tensor | None, target_offsets: Tensor | None, ignore_index: int,
    label_smoothing: float, z_loss: float, softcap: float, wants_details: bool, check: bool | None, backend: str | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    options = Options(ignore_index, label_smoothing, z_loss, softcap)
    inputs = (logits, targets, token_weight, target_offsets)
    return tuple(_run(*inputs, options, wants_details, check, backend, True, True)[0])


torch.library.impl("mrtkern::cross_entropy", ("cpu", "cuda"), _forward)
torch.library.impl("mrtkern::cross_entropy_", ("cpu", "cuda"), _forward_inplace)


def _fake(logits: Tensor, targets: Tensor, wants_details: bool) -> tuple[Tensor, ...]:
    """Results without data: loss and details."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    T, num_targets = (logits.shape[0], targets.shape[0]) if wants_details else (0, 0)
    sizes = ((), num_targets, num_targets, T)
    return (*(logits.new_empty(size, dtype=dtype) for size in sizes), targets.new_empty(T))


def _fake_forward(logits: Tensor, targets: Tensor, *options: Any) -> tuple[Tensor, ...]:
    *_, wants_details, _, _, wants_grad = options
    return (*_fake(logits, targets, wants_details), logits.new_empty(logits.shape if wants_grad else 0))


def _fake_forward_inplace(logits: Tensor, targets: Tensor, *options: Any) -> tuple[Tensor, ...]:
    return _fake(logits, targets, options[-3])


torch.library.register_fake("mrtkern::cross_entropy", _fake_forward)
torch.library.register_fake("mrtkern::cross_entropy_", _fake_forward_inplace)


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
        if not _check.may_wait(grad.device) or float(grad) != 1.0:
            ctx.is_scaled = not ctx.is_given
            (T, V), device = gradient.shape, gradient.device
            problem = Problem(T, V, gradient.dtype, device.type, capability=_check.capability(device))
            _dispatch.run(OP, ctx.backend, problem).scale(gradient, grad)
        ctx.is_given = True
        return (gradient, *nothing)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    token_weight: Tensor | None = None,
    ignore_index: int = IGNORE,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    target_offsets: Tensor | None = None,
    inplace: bool = False,
    return_details: bool = False,
    offsets: Tensor | None = None,
    prompt: Tensor | None = None,
    check: bool | None = None,
    backend: str | None = None,
) -> Tensor | LossDetails:
    """Cross-entropy of logits with one weight per target, loss and gradient in one pass.

        losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
        loss = (token_weight * (losses + z_loss * logits.logsumexp(-1) ** 2)).sum()   # softcap: of tanh-capped logits

    logits [T, V] (or [R, L, V]): float32, bfloat16, float16, float64. targets [T] (or [R, L]) int64: 0 … V - 1 or
    ignore_index. token_weight: like targets, any sign, as from `response_weights`; None: 1 / number of valid targets.
    z_loss >= 0: coefficient of lse^2. softcap: c of c tanh(z / c). target_offsets [T + 1] int64: row t has the targets
    target_offsets[t]:target_offsets[t + 1]; targets and token_weight then have one entry per target. inplace: the
    gradient replaces the logits (not where a program is traced, as by torch.compile). return_details with offsets
    [R + 1] int64 (response r owns targets offsets[r]:offsets[r + 1]; padded targets need none) and prompt [R] int64.
    check: whether targets on a GPU are checked, None: not; on the CPU they always are. backend: None chooses; a name is
    obeyed or refused.

    Returns the loss, 0-d float32 (float64 for float64 logits); with return_details LossDetails. Nothing valid: 0.
    Gradient: logits, once, rounded once to their type, then multiplied by the gradient of the loss (what float16 cannot
    hold before a loss scale is lost: put the scale into token_weight). Rows whose weights are all 0 are not read and
    have 0. A second backward is right, or refused when the loss was scaled or the first gradient changed since.
    Deterministic: the same bits on every run and, on the CPU, for every number of threads.
    Memory beyond the gradient (none with inplace or without requires_grad): cpu 4 V + 4096 bytes per thread and 8 per
    row; triton 8 per target and 4 per row; reference 28 bytes per logit (float64: 56); a copy of logits whose columns
    are not adjacent. GPU: waits for it only with check=True (`mrtkern.ops.cross_entropy`, Devices).
    Raises IndexError for a target out of range (naming its position); ValueError for shapes, types and options that do
    not fit; MemoryError when it cannot fit; RuntimeError for create_graph=True.
    Source: `mrtkern.ops.cross_entropy` has the equations.
    """
    given = logits
    logits, targets, token_weight, offsets = _checked(logits, targets, token_weight, target_offsets, offsets)
    options = checked_options(OP, ignore_index, softcap, label_smoothing, z_loss, check=check, backend=backend)
    check_details(OP, return_details, targets, offsets, prompt)
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
    if not return_details or offsets is None:
        return rows.loss
    return response_details(OP, rows, targets, target_offsets, options.ignore_index, offsets, prompt)


def _checked(
    logits: Tensor, targets: Tensor, token_weight: Tensor | None, target_offsets: Tensor | None, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Rows [T, V], one after the other, and what belongs to them; nothing that reads a tensor."""
    _check.floating(OP, "logits", logits)
    _check.int64(OP, "targets", targets)
    _check.no_tangent(OP, logits=logits)
    _check.no_trace(OP, logits=logits)
    if logits.ndim == 3 and targets.ndim == 2:
        logits, targets, token_weight, offsets = packed(OP, "logits", logits, targets, token_weight, offsets)
    if logits.ndim != 2 or logits.shape[1] == 0:
        _check.fail(OP, "logits", "be [T, V] with V at least 1", _check.shape(logits))
    check_targets(OP, logits.shape[0], logits.device, targets, token_weight, target_offsets)
    return logits, targets, token_weight, offsets


def packed(
    op: str, name: str, x: Tensor, targets: Tensor, token_weight: Tensor | None = None, offsets: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Padded rows [R, L, …] one after the other, and the offsets of the responses."""
    if offsets is not None:
        _check.fail(op, "offsets", "be None with padded targets", _check.shape(offsets))
    if x.shape[:2] != targets.shape:
        shapes = f"{name} {_check.shape(x)} and targets {_check.shape(targets)}"
        _check.fail(op, f"{name} and targets", "be [R, L, …] and [R, L]", shapes)
    if token_weight is not None:
        _check.floating(op, "token_weight", token_weight)
        if token_weight.shape != targets.shape:
            rule = f"have the shape {_check.shape(targets)} of targets"
            _check.fail(op, "token_weight", rule, _check.shape(token_weight))
    R, L = targets.shape
    offsets = torch.arange(0, R * L + 1, L, dtype=torch.int64, device=targets.device) if L else targets.new_zeros(R + 1)
    token_weight = None if token_weight is None else token_weight.reshape(-1)
    return x.flatten(0, 1), targets.reshape(-1), token_weight, offsets


def check_targets(
    op: str, T: int, device: torch.device, targets: Tensor, token_weight: Tensor | None, target_offsets: Tensor | None
) -> None:
    """One target and one weight per row, or per entry of target_offsets."""
    _check.int64(op, "targets", targets)
    if targets.ndim != 1:
        _check.fail(op, "targets", "be a vector [T]", _check.shape(targets))
    if target_offsets is None:
        _check.vector(op, "targets", targets, T, "row")
    else:
        _check.int64(op, "target_offsets", target_offsets)
        _check.vector(op, "target_offsets", target_offsets, T + 1, "row and one more")
    if token_weight is not None:
        _check.floating(op, "token_weight", token_weight)
        _check.vector(op, "token_weight", token_weight, targets.shape[0], "target")
        _check.no_gradient(op, "token_weight", token_weight)
    for name, value in (("targets", targets), ("token_weight", token_weight), ("target_offsets", target_offsets)):
        if value is not None and value.device != device:
            _check.fail(op, name, f"be on the device of the rows ({device})", value.device)


def checked_options(
    op: str, ignore_index: int, softcap: float | None, label_smoothing: float = 0.0, z_loss: float = 0.0, *,
    check: bool | None = None, backend: str | None,
) -> Options:  # fmt: skip
    """Numbers that make a loss; refuses a `check` and a `backend` that are none, too."""
    _check.flag(op, "check", check, or_none=True)
    _dispatch.check(op, backend)
    ignore_index = _check.integer(op, "ignore_index", ignore_index)
    for name, value in (("label_smoothing", label_smoothing), ("z_loss", z_loss), ("softcap", softcap)):
        if value is not None or name != "softcap":
            _check.number(op, name, value)
    if not 0 <= label_smoothing <= 1:
        _check.fail(op, "label_smoothing", "be from 0 to 1", label_smoothing)
    if not 0 <= z_loss < math.inf:  # not isfinite, which torch.compile(dynamic=True) cannot trace
        _check.fail(op, "z_loss", "be finite and not negative", z_loss)
    if softcap is not None and not 0 < softcap < math.inf:
        _check.fail(op, "softcap", "be None or positive and finite", softcap)
    return Options(ignore_index, float(label_smoothing), float(z_loss), float(softcap or 0.0))


def check_details(
    op: str, return_details: bool, targets: Tensor, offsets: Tensor | None, prompt: Tensor | None
) -> None:
    """Which targets are whose response, and which response is whose prompt, if details are wanted."""
    _check.flag(op, "return_details", return_details)
    if not return_details:
        return
    if offsets is None:
        _check.fail(op, "offsets", "be given with return_details, unless targets are padded", None)
    _check.offsets(op, offsets, targets.device, "targets")
    if prompt is not None:
        _check.int64(op, "prompt", prompt)
        _check.vector(op, "prompt", prompt, offsets.shape[0] - 1, "response")


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
