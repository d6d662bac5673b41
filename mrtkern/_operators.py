"""Operators of torch.library: one body on every device, shapes without data, one derivative at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch


def define(name: str, schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """The operator `mrtkern::name`: `run` does the work, `fake` gives shapes and types alone."""
    torch.library.define(f"mrtkern::{name}", schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(f"mrtkern::{name}", ("cpu", "cuda"), run)
    torch.library.register_fake(f"mrtkern::{name}", fake)


def no_second_derivative(name: str, op: str, what: str) -> None:
    """`mrtkern::name`, the backward of the function `op`, has no derivative of its own."""

    def refuse(*_: Any) -> NoReturn:
        raise RuntimeError(f"{op}: {what} must be differentiated once at most, got a double backward")

    torch.library.register_autograd(f"mrtkern::{name}", refuse)
