"""What both functions of a linear head ask of their arguments, and how gradients leave them."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mrtkern import _check
from mrtkern.ops.linear_cross_entropy.problem import Problem, memory


def check_weight(op: str, weight: Any) -> None:
    """Refuse heads that are not one dense matrix, naming the mend."""
    if isinstance(weight, torch.nn.Module):
        if hasattr(weight, "base_layer"):  # peft: its weight lacks what the adapter adds
            _check.fail(
                op, "weight", "be one matrix, so merge the adapter or leave lm_head out of target_modules",
                f"a {type(weight).__name__} around {type(weight.base_layer).__name__}",
            )  # fmt: skip
        raise TypeError(f"{op}: weight must be a torch.Tensor such as lm_head.weight, got {type(weight).__name__}")
    _check.floating(op, "weight", weight)
    if any(base.__name__ == "DTensor" for base in type(weight).__mro__):
        _check.fail(
            op, "weight", "be whole: pass weight.full_tensor(), or weight.to_local() to the vocabulary-parallel "
            "function", f"a DTensor placed {weight.placements}",
        )  # fmt: skip


def check(
    op: str, hidden: Any, weight: Any, bias: Any, targets: Any, target_offsets: Any = None, token_weight: Any = None
) -> None:
    """Shapes, types and devices; nothing that reads a tensor."""
    _check.floating(op, "hidden", hidden)
    check_weight(op, weight)
    if hidden.ndim != 2:
        _check.fail(op, "hidden", "be [T, D]", _check.shape(hidden))
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1]:
        shapes = f"{_check.shape(weight)} with hidden {_check.shape(hidden)}"
        _check.fail(op, "weight", "be [V, D] with the features D of hidden", shapes)
    if not weight.shape[0]:
        _check.fail(op, "weight", "have at least one row", _check.shape(weight))
    if bias is not None:
        _check.floating(op, "bias", bias)
        _check.vector(op, "bias", bias, weight.shape[0], "row of weight")
    check_entries(op, targets, token_weight, hidden.shape[0] if target_offsets is None else None, "row of hidden")
    if target_offsets is not None:
        _check.int64(op, "target_offsets", target_offsets)
        _check.vector(op, "target_offsets", target_offsets, hidden.shape[0] + 1, "row of hidden and one more")
    tensors = {"hidden": hidden, "weight": weight, "bias": bias, "targets": targets}
    _check.same_device(op, **tensors, token_weight=token_weight, target_offsets=target_offsets)


def check_entries(op: str, targets: Any, token_weight: Any, rows: int | None, like: str) -> None:
    """Targets, one per row where `rows` is given, and a weight for each."""
    _check.int64(op, "targets", targets)
    _check.vector(op, "targets", targets, targets.numel() if rows is None else rows, "target" if rows is None else like)
    if token_weight is not None:
        _check.floating(op, "token_weight", token_weight)
        _check.vector(op, "token_weight", token_weight, targets.shape[0], "target")
        if token_weight.requires_grad:
            _check.fail(op, "token_weight", "need no gradient, which would be the loss of each token", "one that does")


def check_targets(op: str, targets: Tensor, V: int, ignore_index: int) -> None:
    """Refuse labels outside the vocabulary. Reads values: call it inside an operator."""
    bad = ((targets < 0) | (targets >= V)) & (targets != ignore_index)
    if bool(bad.any()):
        t = int(bad.int().argmax())
        rule = f"be from 0 to {V - 1} or ignore_index {ignore_index}"
        raise IndexError(f"{op}: targets must {rule}, got {int(targets[t])} at position {t}")


def check_softcap(op: str, softcap: float | None) -> None:
    """Refuse a cap that is not positive and finite."""
    if softcap is not None and not 0 < softcap < math.inf:
        _check.fail(op, "softcap", "be positive and finite", softcap)


def check_memory(op: str, problem: Problem, rows: ModuleType, targets: Tensor) -> None:
    """Refuse what cannot fit, before anything is allocated."""
    needed = memory(problem, rows.chunk_size(problem), rows.multiplies(problem), targets.shape[0])
    _check.fits(f"{op}: hidden and weight", needed, targets.device)


def check_offsets(op: str, offsets: Tensor, targets: int) -> None:
    """Refuse offsets that do not run from 0 to the number of targets. Reads values: call it inside an operator."""
    first, last = int(offsets[0]), int(offsets[-1])
    if (first, last) != (0, targets) or bool((offsets.diff() < 0).any()):
        rule = f"begin with 0, never descend and end with the number of targets {targets}"
        _check.fail(op, "target_offsets", rule, f"{first} … {last}")


def needs(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[bool]:
    """Whose gradient somebody will ask for."""
    if not torch.is_grad_enabled():
        return [False] * 3
    return [hidden.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad]


def product_type(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The type that products may have: autocast's, or the wider of the two."""
    device = hidden.device.type
    wider = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(device) and wider != torch.float64:
        return torch.get_autocast_dtype(device)
    return wider


def sums_in(product: torch.dtype) -> torch.dtype:
    """The type of losses and gradients until they are rounded."""
    return torch.float64 if product == torch.float64 else torch.float32
