"""What a model's forward does between its head and its loss, found out by running it without its layers.

Known is the shape

    logits = f(head(hidden));  loss = loss_function(logits, labels, …)        f(z) = z, s z or c tanh(s z / c)

The head gives probes instead of logits, so f is read off what arrives at the loss. Whatever is added to the loss
afterwards, such as the auxiliary loss of a mixture of experts, stays the model's business.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

PROBES = (0.0, 2.0**-12, -1.0, 3.0, 17.0, -250.0, 2.0**60)  # where f is read: its slope, values, its limit
CLOSE = 1e-5  # relative, of float32 formulas of a few roundings


class Shape(NamedTuple):
    """f: logits are scale * head(hidden), then softcap * tanh(logits / softcap) where there is one."""

    scale: float
    softcap: float | None


class _Nothing:
    """The output of layers that did not run: hidden states, and None for whatever else a forward asks for."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, i: Any) -> Any:
        return (self.last_hidden_state,)[i]


@contextlib.contextmanager
def _instead(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The module runs another forward."""
    before = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


def read_shape(model: Any, head: torch.nn.Module) -> Shape | str:
    """f of a model, or why it has no known shape."""
    hidden = torch.zeros((1, len(PROBES), 1), dtype=torch.float32, device="cpu")
    probes = torch.tensor(PROBES, dtype=torch.float32, device="cpu")[None, :, None].expand(1, -1, 2)
    heads: list[None] = []
    losses: list[tuple[Tensor, Tensor]] = []

    def answer(*_: Any, **__: Any) -> Tensor:
        heads.append(None)
        return probes.clone()

    def loss(logits: Tensor, labels: Tensor, *_: Any, **__: Any) -> Tensor:
        losses.append((logits, labels))
        return torch.zeros((), dtype=torch.float32, device="cpu")

    labels = torch.zeros((1, len(PROBES)), dtype=torch.int64, device="cpu")
    arguments: dict[str, Any] = {"input_ids": labels, "attention_mask": torch.ones_like(labels), "labels": labels}
    taken = inspect.signature(type(model).forward).parameters
    arguments |= {name: False for name in ("output_router_logits", "use_cache") if name in taken}
    had = "_loss_function" in vars(model)
    before = vars(model).get("_loss_function")
    with contextlib.ExitStack() as stack, torch.no_grad():
        for layers in {*model.children(), model.get_decoder()} - {head, model}:
            stack.enter_context(_instead(layers, lambda *_, **__: _Nothing(hidden)))
        stack.enter_context(_instead(head, answer))
        vars(model)["_loss_function"] = loss
        try:
            type(model).forward(model, **arguments)
        except (
            AttributeError,
            IndexError,
            KeyError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            return f"its forward does not run without its layers ({type(error).__name__}: {error})"
        finally:
            del vars(model)["_loss_function"]
            if had:
                vars(model)["_loss_function"] = before
    if len(heads) != 1 or len(losses) != 1:
        return f"its forward calls head and loss_function {len(heads)} and {len(losses)} times"
    logits, given = losses[0]
    if given is not labels or logits.shape != probes.shape:
        return "its forward changes labels, or the shape of its logits, before the loss"
    return _fitted(logits[0, :, 0].double())


def _fitted(found: Tensor) -> Shape | str:
    """The f that has these values at the probes."""
    z = torch.tensor(PROBES, dtype=torch.float64, device="cpu")
    scale = float(found[1] / z[1])
    limit = float(found[-1])
    is_capped = math.isfinite(limit) and 0 < limit < abs(scale) * 2.0**30
    shape = Shape(scale, limit if is_capped else None)
    expected = scale * z if shape.softcap is None else limit * torch.tanh(scale * z / limit)
    if not bool(((found - expected).abs() <= CLOSE * expected.abs()).all()):
        return "its forward changes logits by more than a factor and a softcap before the loss"
    return shape
