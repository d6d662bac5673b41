"""What every cross-entropy asks of its arguments, of logits as of a linear head, whole or split: checks without data
before an operator, checks of values inside one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mrtkern import _check, _device, _dispatch
from mrtkern._check import Array
from mrtkern.ops.cross_entropy.problem import Options


def rows_with_targets(
    op: str, name: str, x: Array, targets: Array, token_weight: Any = None, offsets: Any = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Rows x [T, …] and what belongs to them, one after the other; padded ones [R, L, …] get offsets of responses."""
    x, targets = _check.floating(op, name, x), _check.int64(op, "targets", targets)
    if x.ndim == 3 and targets.ndim == 2:
        return _packed(op, name, x, targets, token_weight, offsets)
    return x, targets, token_weight, offsets


def _packed(
    op: str, name: str, x: Tensor, targets: Tensor, token_weight: Tensor | None, offsets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Padded rows [R, L, …] one after the other, and the offsets of the responses."""
    if offsets is not None:
        _check.fail(op, "offsets", "be None with padded targets", _check.shape(offsets))
    if x.shape[:2] != targets.shape:
        shapes = f"{name} {_check.shape(x)} and targets {_check.shape(targets)}"
        _check.fail(op, f"{name} and targets", "be [R, L, …] and [R, L]", shapes)
    if token_weight is not None:
        token_weight = _check.floating(op, "token_weight", token_weight)
        if token_weight.shape != targets.shape:
            rule = f"have the shape {_check.shape(targets)} of targets"
            _check.fail(op, "token_weight", rule, _check.shape(token_weight))
    R, L = targets.shape
    offsets = torch.arange(0, R * L + 1, L, dtype=torch.int64, device=targets.device) if L else targets.new_zeros(R + 1)
    token_weight = None if token_weight is None else token_weight.reshape(-1)
    return x.flatten(0, 1), targets.reshape(-1), token_weight, offsets


def check_targets(
    op: str, T: int, device: torch.device, targets: Tensor, token_weight: Array | None, target_offsets: Array | None
) -> tuple[Tensor | None, Tensor | None]:
    """One target and one weight per row, or per entry of target_offsets: the latter two as tensors."""
    if targets.ndim != 1:
        _check.fail(op, "targets", "be a vector [T]", _check.shape(targets))
    if target_offsets is None:
        _check.vector(op, "targets", targets, T, "row")
    else:
        target_offsets = _check.ends(op, "target_offsets", target_offsets)
        _check.vector(op, "target_offsets", target_offsets, T + 1, "row and one more")
    if token_weight is not None:
        token_weight = _check.floating(op, "token_weight", token_weight)
        _check.vector(op, "token_weight", token_weight, targets.shape[0], "target")
        _check.no_gradient(op, "token_weight", token_weight)
    for name, value in (("targets", targets), ("token_weight", token_weight), ("target_offsets", target_offsets)):
        if value is not None and value.device != device:
            _check.fail(op, name, f"be on the device of the rows ({device})", value.device)
    return token_weight, target_offsets


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
    op: str, return_details: bool, targets: Tensor, offsets: Array | None, prompt: Array | None
) -> tuple[Tensor | None, Tensor | None]:
    """Which targets are whose response, and which response is whose prompt, if details are wanted: as tensors."""
    _check.flag(op, "return_details", return_details)
    if not return_details:
        return None, None
    if offsets is None:
        _check.fail(op, "offsets", "be given with return_details, unless targets are padded", None)
    offsets = _check.offsets(op, offsets, targets.device, "targets")
    if prompt is not None:
        prompt = _check.int64(op, "prompt", prompt)
        _check.vector(op, "prompt", prompt, offsets.shape[0] - 1, "response")
    return offsets, prompt


def check_values(
    op: str, targets: Tensor, target_offsets: Tensor | None, V: int, ignore_index: int, check: bool | None
) -> None:
    """What only the values of targets can tell. Call it inside an operator."""
    if not _device.may_wait(targets.device, check):
        return
    if target_offsets is not None:
        _check.offsets_values(op, target_offsets, targets.shape[0], "target_offsets", "targets")
    _check.labels(op, targets, V, ignore_index)


def covered(loss: Tensor, target_offsets: Tensor | None, num_targets: int, check: bool | None) -> Tensor:
    """The loss; NaN when offsets that nobody has checked do not begin and end with the targets."""
    if target_offsets is None or _device.may_wait(loss.device, check):
        return loss
    return torch.where((target_offsets[0] == 0) & (target_offsets[-1] == num_targets), loss, torch.nan)
