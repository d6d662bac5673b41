"""What every function of a linear head asks of its arguments, before an operator, and of memory, inside one."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mrtkern import _check, _device
from mrtkern.ops.cross_entropy.arguments import check_targets, rows_with_targets
from mrtkern.ops.linear_cross_entropy.problem import Problem, memory


class Checked(NamedTuple):
    """Arguments as tensors, rows one after the other."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    token_weight: Tensor | None
    target_offsets: Tensor | None
    offsets: Tensor | None


def checked(
    op: str, hidden: Any, weight: Any, bias: Any, targets: Any, token_weight: Any = None, target_offsets: Any = None,
    offsets: Any = None,
) -> Checked:  # fmt: skip
    """Rows of hidden [T, D], one after the other, and what belongs to them; nothing that reads a tensor."""
    hidden, targets, token_weight, offsets = rows_with_targets(op, "hidden", hidden, targets, token_weight, offsets)
    weight = _checked_weight(op, weight)
    if hidden.ndim != 2:
        _check.fail(op, "hidden", "be [T, D]", _check.shape(hidden))
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1]:
        shapes = f"{_check.shape(weight)} with hidden {_check.shape(hidden)}"
        _check.fail(op, "weight", "be [V, D] with the features D of hidden", shapes)
    if not weight.shape[0]:
        _check.fail(op, "weight", "have at least one row", _check.shape(weight))
    if bias is not None:
        bias = _check.floating(op, "bias", bias)
        _check.vector(op, "bias", bias, weight.shape[0], "row of weight")
    _check.same_device(op, hidden=hidden, weight=weight, bias=bias)
    token_weight, target_offsets = check_targets(
        op, hidden.shape[0], hidden.device, targets, token_weight, target_offsets
    )
    _check.no_tangent(op, hidden=hidden, weight=weight, bias=bias)
    _check.no_trace(op, hidden=hidden, weight=weight, bias=bias)
    return Checked(hidden, weight, bias, targets, token_weight, target_offsets, offsets)


def _checked_weight(op: str, weight: Any) -> Tensor:
    """Refuse heads that are not one dense matrix, naming the mend."""
    if isinstance(weight, torch.nn.Module):
        if hasattr(weight, "base_layer"):  # peft: its weight lacks what the adapter adds
            _check.fail(
                op, "weight", "be one matrix, so merge the adapter or leave lm_head out of target_modules",
                f"a {type(weight).__name__} around {type(weight.base_layer).__name__}",
            )  # fmt: skip
        raise TypeError(f"{op}: weight must be a torch.Tensor such as lm_head.weight, got {type(weight).__name__}")
    if isinstance(weight, Tensor) and _check.is_distributed(weight):
        _check.fail(
            op, "weight", "be whole: pass weight.full_tensor(), or weight.to_local() to the vocabulary-parallel "
            "function", f"a DTensor placed {weight.placements}",  # type: ignore[attr-defined]
        )  # fmt: skip
    found = _check.floating(op, "weight", weight)
    if found.ndim == 1:
        _check.fail(
            op, "weight", "be [V, D], which FSDP1 flattens outside its forward: call inside "
            "FullyShardedDataParallel.summon_full_params(module)", _check.shape(found),
        )  # fmt: skip
    return found


def check_memory(op: str, problem: Problem, kernels: ModuleType, targets: Tensor) -> None:
    """Refuse what cannot fit, before anything is allocated."""
    needed = memory(problem, kernels.chunk_size(problem), kernels.multiplies(problem), targets.shape[0])
    needed += kernels.memory(problem)
    _device.fits(f"{op}: hidden and weight", needed, targets.device)


def gradients_needed(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[int]:
    """Whose gradient somebody will ask for: ints, because torch.jit.trace takes no list of bools."""
    if not torch.is_grad_enabled():
        return [0] * 3
    return [int(value is not None and value.requires_grad) for value in (hidden, weight, bias)]


def flags(needs: list[int]) -> tuple[bool, bool, bool]:
    """`needs` of hidden, weight and bias as a Problem has them."""
    hidden, weight, bias = needs
    return bool(hidden), bool(weight), bool(bias)


def product_type(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The type that products may have: autocast's, or the wider of the two."""
    device = hidden.device.type
    wider = torch.promote_types(hidden.dtype, weight.dtype)
    if device != "meta" and torch.is_autocast_enabled(device) and wider != torch.float64:
        return torch.get_autocast_dtype(device)
    return wider
