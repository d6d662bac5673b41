"""Public `linear_log_prob`: checks that need no data, dispatch, torch.library registration, gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mrtkern import _check, _device, _dispatch, _operators
from mrtkern._check import Array
from mrtkern.ops.cross_entropy.arguments import check_values, checked_options
from mrtkern.ops.cross_entropy.problem import IGNORE
from mrtkern.ops.linear_cross_entropy import passes
from mrtkern.ops.linear_cross_entropy.arguments import check_memory, checked, flags, gradients_needed, product_type
from mrtkern.ops.linear_cross_entropy.problem import Cap, Head, Problem, sums_in
from mrtkern.ops.linear_cross_entropy.rows import entries

OP = "linear_log_prob"
FOLDER = "linear_cross_entropy"  # its backends are that operation's


def _run(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int, softcap: float,
    temperature: float, product: torch.dtype, backend: str | None, check: bool | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Every check that reads values, the choice of the backend and the pass, below torch.compile."""
    head = Head(hidden, weight, bias)
    problem = Problem.of(head, product, (False, False, False), is_log_prob=True)
    kernels = _dispatch.run(FOLDER, backend, problem, OP)
    check_values(OP, targets, None, problem.V, ignore_index, check)
    check_memory(OP, problem, kernels, targets)
    counts = targets != ignore_index
    may_wait = _device.may_wait(targets.device, check)
    given = entries(targets, None, counts.to(sums_in(product)), counts, counts, may_wait)
    with torch.autocast(hidden.device.type, enabled=False):
        return passes.log_probs(kernels, problem, head, given, Cap(softcap, temperature))


def _run_backward(
    dlogp: Tensor | None, dentropy: Tensor | None, hidden: Tensor, weight: Tensor, bias: Tensor | None,
    targets: Tensor, ignore_index: int, softcap: float, temperature: float, product: torch.dtype, backend: str | None,
    check: bool | None, needs: list[int],
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients in the types of hidden, weight and bias; an empty tensor stands for one that nobody needs."""
    head = Head(hidden, weight, bias)
    problem = Problem.of(head, product, flags(needs), is_log_prob=True)
    kernels = _dispatch.run(FOLDER, backend, problem, OP)
    check_memory(OP, problem, kernels, targets)
    wide = sums_in(product)
    weights = torch.zeros(targets.shape, dtype=wide, device=targets.device) if dlogp is None else -dlogp.to(wide)
    counts = weights != 0
    if dentropy is not None:
        counts |= dentropy != 0
    valid = targets != ignore_index
    given = entries(targets, None, weights, valid, counts & valid, _device.may_wait(targets.device, check))
    h = None if dentropy is None else dentropy.to(wide).contiguous()
    if h is not None and given.rows is not None:
        h = h[given.rows]
    with torch.autocast(hidden.device.type, enabled=False):
        made = passes.log_probs_backward(kernels, problem, head, given, Cap(softcap, temperature), h)
    found = zip((made.hidden, made.weight, made.bias), head, strict=True)
    return tuple(hidden.new_empty(0) if d is None or x is None else passes.scaled(d, None, x.dtype) for d, x in found)


def _fake(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, ignore_index: int, softcap: float,
    temperature: float, product: torch.dtype, backend: str | None, check: bool | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    wide = sums_in(product)
    return hidden.new_empty(targets.shape, dtype=wide), hidden.new_empty(targets.shape, dtype=wide)


def _fake_backward(
    dlogp: Tensor | None, dentropy: Tensor | None, hidden: Tensor, weight: Tensor, bias: Tensor | None,
    targets: Tensor, ignore_index: int, softcap: float, temperature: float, product: torch.dtype, backend: str | None,
    check: bool | None, needs: list[int],
) -> tuple[Tensor, ...]:  # fmt: skip
    found = zip((hidden, weight, bias), needs, strict=True)
    return tuple(hidden.new_empty(0) if v is None or not need else v.new_empty(v.shape) for v, need in found)


_operators.define(
    "linear_log_prob",
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, int ignore_index, float softcap, float temperature, "
    "ScalarType product, str? backend, bool? check) -> (Tensor logp, Tensor entropy)",
    _run,
    _fake,
)
_operators.define(
    "linear_log_prob_backward",
    "(Tensor? dlogp, Tensor? dentropy, Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, int ignore_index, "
    "float softcap, float temperature, ScalarType product, str? backend, bool? check, int[] needs) -> "
    "(Tensor dh, Tensor dW, Tensor db)",
    _run_backward,
    _fake_backward,
)
_operators.no_second_derivative("linear_log_prob_backward", OP, "logp and entropy")


class _LinearLogProb(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: tuple[Any, ...],
        needs: list[int],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.options, ctx.needs = options, needs
        ctx.set_materialize_grads(False)  # without a gradient of the entropy its part of the pass is not run
        logp, entropy = torch.ops.mrtkern.linear_log_prob(hidden, weight, bias, targets, *options)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, dlogp: Tensor | None, dentropy: Tensor | None) -> tuple[Tensor | None, ...]:
        made = torch.ops.mrtkern.linear_log_prob_backward(dlogp, dentropy, *ctx.saved_tensors, *ctx.options, ctx.needs)
        return *(d if need else None for d, need in zip(made, ctx.needs, strict=True)), None, None, None


def linear_log_prob(
    hidden: Array,
    weight: Array,
    targets: Array,
    *,
    bias: Array | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    ignore_index: int = IGNORE,
    check: bool | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's target and entropy of its distribution, from hidden states.

        logits = cap(hidden @ weight.T + bias) / temperature       # cap: the identity, or softcap * tanh(z / softcap)
        logp = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        entropy = torch.distributions.Categorical(logits=logits).entropy()

    Arguments
    ---------
    hidden : [T, D] or [R, L, D]
    weight : [V, D]
    bias : [V], optional
        These three are float32, float64, bfloat16, float16, also mixed.
    targets : int64 [T] or [R, L]
        0 … V - 1, or ignore_index, for which both results are 0.
    softcap : float, optional
        c of c tanh(z / c).
    temperature : float, > 0
    check : bool, optional
        Whether targets on a GPU are checked, None: not; on the CPU they always are.
    backend : str, optional
        None chooses; a name is obeyed or refused.

    Returns
    -------
    logp, entropy : like targets, float32 (float64 for float64)
        In nats.

    Gradient
    --------
    hidden, weight, bias, where asked, for any upstream gradient of either result, once. Rows whose upstream gradients
    are 0 are dropped before the product. Logits are computed again in backward: 8 T V D operations in all.

    Precision
    ---------
    As `linear_cross_entropy`; logits are float32 on the CPU, also of bfloat16 factors and under autocast.

    Raises
    ------
    IndexError
        For a target outside the vocabulary (naming its position).
    ValueError
        For shapes and types that do not match.
    RuntimeError
        For a double backward.

    Memory
    ------
    Beyond inputs and gradients: cpu at most 192 MiB of logits (or 16 rows), 8 MiB of packed factors, 12 bytes per
    feature of a chunk, in backward 4 T D bytes, and 4 V D when weight is not float32; reference 36 T V.

    Devices
    -------
    On a GPU dropping rows takes check=True, which waits for the device; otherwise such rows are multiplied as zeros,
    nothing waits, and a target out of range makes its logp NaN.

    Determinism
    -----------
    The same bits on every run. On the CPU (backend "cpu") also for every number of threads, and the results of a row
    and its gradient of hidden are the same bits in every batch: whatever the other rows, their number, their order and
    the padding. So the log-probabilities of two passes may be compared. Not promised on a device.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> logp, entropy = mk.linear_log_prob(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([1, -100]))
    >>> logp.round(decimals=4), entropy.round(decimals=4)
    (tensor([-1.3863,  0.0000]), tensor([1.3863, 0.0000]))

    Source
    ------
    `mrtkern.ops.linear_cross_entropy` has the equations.
    """
    given = targets if isinstance(targets, Tensor) else _check.int64(OP, "targets", targets)
    hidden, weight, bias, targets, *_ = checked(OP, hidden, weight, bias, given)
    ignore_index, *_, softcap = checked_options(OP, ignore_index, softcap, check=check, backend=backend)
    _check.number(OP, "temperature", temperature)
    if not 0 < temperature < math.inf:
        _check.fail(OP, "temperature", "be positive and finite", temperature)
    needs = gradients_needed(hidden, weight, bias)
    options = (ignore_index, softcap, float(temperature), product_type(hidden, weight), backend, check)
    logp: Tensor
    entropy: Tensor
    if any(needs):
        logp, entropy = _LinearLogProb.apply(hidden, weight, bias, targets, options, needs)  # type: ignore[no-untyped-call]
    else:
        logp, entropy = torch.ops.mrtkern.linear_log_prob(hidden, weight, bias, targets, *options)
    return logp.reshape(given.shape), entropy.reshape(given.shape)
