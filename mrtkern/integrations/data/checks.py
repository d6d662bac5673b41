"""What collators and samplers ask of their arguments and of the values in rows; what fails is refused in a sentence."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mrtkern as mk


def some(op: str, rows: Sequence[Any]) -> None:
    """Refuse a batch of nothing, of which there is no mean."""
    if len(rows) == 0:
        raise ValueError(f"{op}: rows must be one at least, got none")


def whole(op: str, name: str, value: Any, least: int) -> int:
    """A whole number that is large enough and that int64 holds, as Python's, which JSON knows."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{op}: {name} must be an int of at least {least}, got {digits(value)}")
    if value >= 2**63:
        raise ValueError(f"{op}: {name} must be an int below 2**63, got {digits(value)}")
    return int(value)


def digits(value: Any) -> str:
    """A value as part of a sentence: of a huge number its size, because Python writes 4,300 digits at most."""
    if isinstance(value, list):
        return f"[{', '.join(map(digits, value))}]"
    is_huge = isinstance(value, int) and abs(value) >= 2**128
    return f"one of {value.bit_length()} bits" if is_huge else repr(value)


def flag(op: str, name: str, value: Any) -> bool:
    """True or False, as Python's."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{op}: {name} must be True or False, got {value!r}")
    return bool(value)


def is_number(value: Any) -> bool:
    """Whether it is a finite number that float64 holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max if isinstance(value, int) else math.isfinite(value)


def are_whole(values: Any, least: int) -> bool:
    """Whether it is a list of whole numbers that int64 holds."""
    if not isinstance(values, list):
        return False
    return all(isinstance(one, int) and not isinstance(one, bool) and least <= one < 2**63 for one in values)


def numbered(op: str, column: str, ids: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """[R], [R]: the number of each row's prompt, in order of appearance, and its key; `mk.group` says what an id is."""
    try:
        order, offsets, keys = mk.group([one.tolist() if isinstance(one, (Tensor, np.ndarray)) else one for one in ids])
    except (TypeError, ValueError) as error:
        sentence = str(error).removeprefix("group: ids must")
        raise ValueError(f"{op}: column {column!r} must{sentence} of the batch") from error
    number = torch.repeat_interleave(offsets.diff())
    prompt = torch.empty_like(number).index_copy_(0, order, number)
    return prompt, keys[prompt]
