"""The loss over K responses of every prompt: token weights of five normalisations, and a module that applies them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mrtkern import _check, _device, _operators
from mrtkern._check import Array
from mrtkern._groups import IdGroups
from mrtkern.ops.cross_entropy.arguments import checked_options
from mrtkern.ops.cross_entropy.details import LossDetails, response_tokens
from mrtkern.ops.cross_entropy.op import cross_entropy
from mrtkern.ops.cross_entropy.problem import IGNORE
from mrtkern.ops.linear_cross_entropy.op import linear_cross_entropy

OP = "response_weights"
MODULE = "MultiResponseCrossEntropyLoss"
OPTIONS = ("label_smoothing", "z_loss", "softcap", "return_details", "check", "backend", "inplace")  # of the losses
NORMALIZATIONS = ("token", "response", "prompt", "prompt_token", "prompt_sum")
Count = float | Array


def _run(
    targets: Tensor, normalize: str, *, offsets: Tensor, prompt: Tensor | None, response_weight: Tensor | None,
    ignore_index: int, constant: float, **totals: Tensor | None,
) -> Tensor:  # fmt: skip
    """The definition, in float64 and without waiting for a device; targets [T], every count local unless given."""
    offsets, is_right = _check.covering_offsets(OP, offsets, targets.shape[0], "offsets", "targets")
    is_valid, tokens = response_tokens(targets, offsets, ignore_index)  # [T], [R]
    tokens_per_response = totals["tokens_per_response"]
    T_r = (tokens if tokens_per_response is None else tokens_per_response).double()
    counts = (T_r > 0).double()  # an empty response is none
    v = torch.ones_like(T_r) if response_weight is None else response_weight.double()
    groups = IdGroups(prompt)
    is_right = is_right & _checked_values({**totals, "response_weight": response_weight}, tokens, counts)

    def total(name: str, local: Tensor) -> Tensor:
        given = totals[name]
        return (local if given is None else given).double()

    if normalize == "token":
        denominator = total("num_tokens", T_r.sum())
    elif normalize == "response":
        denominator = total("num_responses", counts.sum()) * T_r
    else:
        P = total("num_prompts", groups.number_with(counts))
        if normalize == "prompt_token":
            denominator = P * total("tokens_per_prompt", groups.sums(v * T_r))
        else:
            denominator = P * T_r if normalize == "prompt" else P * constant
            if response_weight is None:
                v = v / total("responses_per_prompt", groups.sums(counts)).clamp(min=1)
    weight = torch.where((v == 0) | (counts == 0), 0, v / denominator).float()  # [R]
    is_right = is_right & weight.isfinite()
    if _device.may_wait(targets.device) and not bool(is_right.all()):
        r = _check.first(~weight.isfinite())
        _check.fail(
            OP, "response_weight", "leave weights that float32 can hold", f"{float(weight[r])} for response {r}"
        )
    each = torch.where(is_right, weight, torch.nan).repeat_interleave(offsets.diff(), output_size=targets.shape[0])
    return torch.where(is_valid, each, 0)


def _checked_values(given: dict[str, Tensor | None], tokens: Tensor, counts: Tensor) -> Tensor:
    """Whether every number is finite, and every count positive where a response counts (0-d), else not negative.

    What is not so is refused where values may be read; elsewhere weights must become NaN.
    """
    is_right = tokens.new_ones((), dtype=torch.bool)
    for name, value in given.items():
        if value is None:
            continue
        is_bad = ~value.isfinite()
        rule = "be finite"
        if name not in ("response_weight", "tokens_per_prompt"):  # whose signs are the user's
            has_use = (tokens > 0) if name == "tokens_per_response" else counts > 0
            is_bad = is_bad | (value < 0) | ((value == 0) & (has_use if value.ndim else has_use.any()))
            rule = "be finite and positive"
        if _device.may_wait(value.device) and bool(is_bad.any()):
            r = _check.first(is_bad.reshape(-1))
            where = f" for response {r}" if value.ndim else ""
            _check.fail(OP, name, rule, f"{value.reshape(-1)[r].item()}{where}")
        is_right = is_right & ~is_bad.any()
    return is_right


def _fake(targets: Tensor, normalize: str, **_: Any) -> Tensor:
    return targets.new_empty(targets.shape, dtype=torch.float32)


_operators.define(
    "response_weights",
    "(Tensor targets, str normalize, *, Tensor offsets, Tensor? prompt, Tensor? response_weight, int ignore_index, "
    "float constant, Tensor? num_prompts, Tensor? num_responses, Tensor? num_tokens, Tensor? responses_per_prompt, "
    "Tensor? tokens_per_response, Tensor? tokens_per_prompt) -> Tensor",
    _run,
    _fake,
)


def response_weights(
    targets: Array,
    normalize: str,
    *,
    offsets: Array | None = None,
    prompt: Array | None = None,
    response_weight: Array | None = None,
    ignore_index: int = IGNORE,
    constant: float = 1.0,
    num_prompts: Count | None = None,
    num_responses: Count | None = None,
    num_tokens: Count | None = None,
    responses_per_prompt: Count | None = None,
    tokens_per_response: Count | None = None,
    tokens_per_prompt: Count | None = None,
) -> Tensor:
    """One weight per token, so that sum(weight * cross_entropy) is the loss of the normalisation.

        token         v_r / sum of T_r            prompt         v_r / (P T_r)
        response      v_r / (R T_r)               prompt_token   v_r / (P sum of v_r T_r over the prompt)
                                                  prompt_sum     v_r / (P constant)

    T_r counts the targets of response r that are not ignore_index; responses without any, and prompts without such a
    response, do not count in R, K and P.

    Arguments
    ---------
    targets : int64 [T] with offsets, or padded [R, L]
    normalize : str
        One of the five above.
    offsets : int64 [R + 1], optional
        Response r owns targets offsets[r]:offsets[r + 1].
    prompt : int64 [R], optional
        Any numbers in any order; None: each response its own.
    response_weight : [R], optional
        v, used as given; None: 1, and 1 / K of its prompt under "prompt" and "prompt_sum".
    ignore_index : int
        The target that counts for nothing.
    constant : float
        Of "prompt_sum".
    num_prompts, num_responses, num_tokens : number or 0-d tensor, optional
        When a step is split over ranks or accumulated batches, P, R and the sum of T_r of the whole step (over the
        ranks where those average gradients).
    responses_per_prompt, tokens_per_response, tokens_per_prompt : [R], optional
        The same for the responses here: K of its prompt, T_r, sum v_r T_r.

    Returns
    -------
    weight : float32, the shape of targets
        0 where ignored. No gradient.

    Raises
    ------
    ValueError
        For shapes, types and names that do not fit, offsets that do not cover the targets, counts that are not finite
        and positive where a response counts, and weights that float32 cannot hold.

    Memory
    ------
    About 40 bytes per token and 150 a response.

    Devices
    -------
    On a GPU nothing is read back: bad offsets and counts make weights NaN.

    Determinism
    -----------
    The same bits on every run; sums in float64.

    Example
    -------
    >>> import torch, mrtkern as mk
    >>> targets, offsets = torch.tensor([5, 6, 7, 8, 9, 9]), torch.tensor([0, 1, 2, 6])
    >>> mk.response_weights(targets, "prompt", offsets=offsets, prompt=torch.tensor([0, 0, 1]))
    tensor([0.2500, 0.2500, 0.1250, 0.1250, 0.1250, 0.1250])

    Source
    ------
    `mrtkern.ops.cross_entropy`, which also says what lengths do to each of them.
    """
    targets = _check.int64(OP, "targets", targets)
    _check.one_of(OP, "normalize", normalize, NORMALIZATIONS)
    ignore_index = _check.integer(OP, "ignore_index", ignore_index)
    constant = _positive(OP, "constant", constant)
    flat, device = targets.reshape(-1), targets.device
    offsets = _response_offsets(targets, offsets)
    R = offsets.shape[0] - 1
    if prompt is not None:
        prompt = _check.int64(OP, "prompt", prompt)
        _check.vector(OP, "prompt", prompt, R, "response")
    if response_weight is not None:
        response_weight = _check.floating(OP, "response_weight", response_weight)
        _check.vector(OP, "response_weight", response_weight, R, "response")
        _check.no_gradient(OP, "response_weight", response_weight)
    _check.same_device(OP, targets=targets, prompt=prompt, response_weight=response_weight)
    whole = {"num_prompts": num_prompts, "num_responses": num_responses, "num_tokens": num_tokens}
    each = {
        "responses_per_prompt": responses_per_prompt, "tokens_per_response": tokens_per_response,
        "tokens_per_prompt": tokens_per_prompt,
    }  # fmt: skip
    given = {**whole, **each}
    totals = {name: _count(name, value, R if name in each else None, device) for name, value in given.items()}
    weights: Tensor = torch.ops.mrtkern.response_weights(
        flat, normalize, offsets=offsets, prompt=prompt, response_weight=response_weight, ignore_index=ignore_index,
        constant=constant, **totals,
    )  # fmt: skip
    return weights.reshape(targets.shape)


def _response_offsets(targets: Tensor, offsets: Array | None) -> Tensor:
    """Offsets of the responses, those of padded targets included."""
    if targets.ndim == 1:
        if offsets is None:
            _check.fail(OP, "offsets", "be given with targets [T]", None)
        return _check.offsets(OP, offsets, targets.device, "targets")
    if targets.ndim != 2:
        _check.fail(OP, "targets", "be [T] with offsets, or [R, L]", _check.shape(targets))
    if offsets is not None:
        _check.fail(OP, "offsets", "be None with padded targets", _check.shape(offsets))
    R, L = targets.shape
    return torch.arange(R + 1, dtype=torch.int64, device=targets.device) * L


def _positive(op: str, name: str, value: Any) -> float:
    """A number that divides."""
    _check.number(op, name, value)
    if not 0 < value < math.inf:
        _check.fail(op, name, "be positive and finite", value)
    return float(value)


def _count(name: str, value: Count | None, R: int | None, device: torch.device) -> Tensor | None:
    """A count of the whole step: 0-d, or one per response."""
    if value is None:
        return None
    size = () if R is None else (R,)
    if not _check.is_array(value):
        return torch.full(size, _positive(OP, name, value), dtype=torch.float64, device=device)
    value = _check.tensor(OP, name, value)
    if value.shape not in ((), size):
        _check.fail(OP, name, "be a number or " + ("0-d" if R is None else f"of shape [{R}]"), _check.shape(value))
    if value.device != device:
        _check.fail(OP, name, f"be on the device of targets ({device})", value.device)
    if value.dtype not in (*_check.FLOATING, *_check.INTEGRAL):
        _check.fail(OP, name, "be of numbers", value.dtype)
    _check.no_gradient(OP, name, value)
    return value.expand(size)


class MultiResponseCrossEntropyLoss(torch.nn.Module):
    """Cross-entropy over the responses of prompts, normalised as `response_weights` says.

        crit = MultiResponseCrossEntropyLoss("prompt")
        loss = crit(logits, targets, offsets=offsets, prompt=prompt)                        # logits [T, V]
        loss = crit(hidden, targets, weight=lm_head.weight, offsets=offsets, prompt=prompt)   # hidden [T, D]

    normalize, ignore_index, constant: of `response_weights`. Further keywords go to `cross_entropy`, or with a weight
    to `linear_cross_entropy`: label_smoothing, z_loss, softcap, return_details, check, backend, and inplace for logits.
    """

    def __init__(self, normalize: str, *, ignore_index: int = IGNORE, constant: float = 1.0, **options: Any) -> None:
        super().__init__()
        _check.one_of(MODULE, "normalize", normalize, NORMALIZATIONS)
        for name in options:
            if name not in OPTIONS:
                raise TypeError(f"{MODULE}: options must be among {', '.join(OPTIONS)}, got {name}")
        given = {"softcap": None, "backend": None, **options}
        flags = {name: given.pop(name) for name in ("return_details", "inplace") if name in given}
        for name, flag in flags.items():
            _check.flag(MODULE, name, flag)
        checked_options(MODULE, ignore_index, **given)
        _positive(MODULE, "constant", constant)
        self.normalize, self.ignore_index, self.constant, self.options = normalize, ignore_index, constant, options

    def forward(
        self,
        x: Array,
        targets: Array,
        *,
        weight: Array | None = None,
        bias: Array | None = None,
        offsets: Array | None = None,
        prompt: Array | None = None,
        response_weight: Array | None = None,
        **counts: Count | None,
    ) -> Tensor | LossDetails:
        """The loss of x, logits without `weight` and hidden states with it.

        x [T, V] logits or [T, D] hidden states, or padded [R, L, V] and [R, L, D]; targets int64 [T], or [R, L].
        weight [V, D] and bias [V] of the head: as in `linear_cross_entropy`. offsets [R + 1] int64 (None with padded
        targets), prompt [R] int64 and response_weight [R]: as in `response_weights`.
        counts, those of the whole step where it is split, as `response_weights` has them: num_prompts, num_responses,
        num_tokens, responses_per_prompt, tokens_per_response, tokens_per_prompt.

        Returns a scalar, LossDetails under return_details. Gradient: x, weight and bias. Deterministic. Memory: of
        `response_weights`, and of `cross_entropy` or `linear_cross_entropy`.
        Raises what these three raise: ValueError for shapes, types and offsets, IndexError for a target that is no
        class, TypeError for what is no tensor and a count by another name.
        Source: arXiv 2606.00544; `mrtkern.ops.cross_entropy` has the equations.
        """
        if weight is None and bias is not None:
            _check.fail(MODULE, "bias", "be None without weight, because logits have it already", type(bias).__name__)
        if weight is not None and self.options.get("inplace"):
            _check.fail(MODULE, "inplace", "be False with weight, because there are no logits to overwrite", True)
        w = response_weights(
            targets, self.normalize, offsets=offsets, prompt=prompt, response_weight=response_weight,
            ignore_index=self.ignore_index, constant=self.constant, **counts,
        )  # fmt: skip
        options = {"token_weight": w, "ignore_index": self.ignore_index, **self.options}
        if weight is not None:
            options.pop("inplace", None)
        if options.get("return_details"):
            options.update(offsets=offsets, prompt=prompt)
        if weight is None:
            return cross_entropy(x, targets, **options)
        return linear_cross_entropy(x, weight, targets, bias=bias, **options)

    def extra_repr(self) -> str:
        """What `print` shows."""
        given = {"ignore_index": self.ignore_index, "constant": self.constant, **self.options}
        return ", ".join([repr(self.normalize), *(f"{key}={value!r}" for key, value in given.items())])
