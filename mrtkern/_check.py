"""Checks at the public entry points, and the one error format: `op: argument must RULE, got VALUE`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from mrtkern import _device

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGRAL = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
WHOLE = (*INTEGRAL, torch.uint16, torch.uint32, torch.uint64)
PLAIN: tuple[type[Tensor], ...] = (Tensor, torch.nn.Parameter)  # others stand for something, and may own no memory
Array = Tensor | np.ndarray[Any, Any] | list[Any] | tuple[Any, ...]  # what holds numbers: users may give any of these
NUMBERS = (int, float, np.integer, np.floating, torch.SymInt, torch.SymFloat)
LARGEST = int(torch.finfo(torch.float64).max)
DIGITS = 40  # of an int that a sentence shows; Python itself writes no more than 4,300


def fail(op: str, argument: str, rule: str, got: Any) -> NoReturn:
    """Raise the library's ValueError."""
    raise ValueError(f"{op}: {argument} must {rule}, got {got}")


def shape(value: Any) -> str:
    """The shape as users write it: [4, 100, 64]; of what has none, its type."""
    return str(list(value.shape)) if hasattr(value, "shape") else type(value).__name__


def tensor(op: str, argument: str, value: Any, of_list: torch.dtype | None = None) -> Tensor:
    """The value as a dense tensor of this process: an array shares its memory, a list is copied. Refuses the rest."""
    if not isinstance(value, Tensor):
        return from_array(op, argument, value, of_list)
    if is_distributed(value):
        rule = f"be of this process alone: pass {argument}.full_tensor() or {argument}.to_local()"
        fail(op, argument, rule, f"a DTensor placed {value.placements}")  # type: ignore[attr-defined]
    if value.layout != torch.strided or value.is_nested:
        fail(op, argument, "be dense", "a nested tensor" if value.is_nested else value.layout)
    return value


def is_array(value: Any) -> bool:
    """Whether it holds numbers, as a tensor, an array or a list: what is not one number."""
    if isinstance(value, (Tensor, list, tuple, np.ndarray)):
        return True
    return hasattr(type(value), "__array__") and not isinstance(value, np.generic)  # columns of pandas and pyarrow


def from_array(op: str, argument: str, value: Any, of_list: torch.dtype | None = None) -> Tensor:
    """An array as a tensor on its memory, a list as int64, bool or float32: whole numbers, too, where `of_list` floats.

    A view with steps back, a read-only array and one of the other byte order are copied.
    """
    is_list = isinstance(value, (list, tuple))
    rule = f"{op}: {argument} must be a tensor, an array or a list of numbers, got {type(value).__name__}"
    if not is_array(value):
        raise TypeError(rule)
    if is_list and any(isinstance(entry, Tensor) for entry in value):
        raise TypeError(f"{rule} of tensors")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{rule} of lists of several lengths") from error
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{rule} of {array.dtype}")
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    native = np.require(native, requirements=("C", "W"))
    made = torch.from_numpy(native if min(native.strides, default=0) >= 0 else native.copy())  # of one row it is C, too
    if not is_list:
        return made
    if of_list is not None and (of_list.is_floating_point or not array.size):
        return made.to(of_list)
    return made.float() if made.is_floating_point() else made


def is_distributed(value: Tensor) -> bool:
    """Whether the value lies in several processes; without importing what is slow to import."""
    if type(value) in PLAIN:  # torch.compile cannot ask a Parameter for its bases
        return False
    return any(base.__name__ == "DTensor" for base in type(value).__mro__)


def no_tangent(op: str, **tensors: Tensor | None) -> None:
    """Refuse forward-mode differentiation, which operators would pass in silence, as if their derivative were 0, and
    gradients under the transforms of torch.func, which an autograd.Function refuses in words about itself and which
    torch.compile takes for 0, because no tensor says there that it requires one: it is sent back to eager mode."""
    transform = f"{op}: {{}} must be differentiated by backward, got a transform of torch.func"
    is_transformed = torch._C._are_functorch_transforms_active()
    if torch.compiler.is_compiling():
        if is_transformed:
            raise RuntimeError(transform.format(*tensors))
        return
    is_transformed = is_transformed and torch.is_grad_enabled()
    for name, value in tensors.items():
        if value is None:
            continue
        if forward_ad.unpack_dual(value).tangent is not None:
            raise RuntimeError(f"{op}: {name} must be differentiated by backward, got a tangent of forward mode")
        if is_transformed and _is_differentiated(value):
            raise RuntimeError(transform.format(name))


def _is_differentiated(value: Tensor) -> bool:
    """Whether a transform of torch.func asks for a gradient of it, also around one that does not, such as vmap."""
    while not value.requires_grad and torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    return value.requires_grad


def no_transform(op: str) -> None:
    """Refuse torch.func altogether, where a message to other ranks is part of the call."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(f"{op}: the call must not be transformed, because ranks talk in it, got one of torch.func")


def no_trace(op: str, **tensors: Tensor | None) -> None:
    """Refuse gradients under torch.jit.trace, whose own check runs without them and finds another graph."""
    if torch.compiler.is_compiling() or not (torch._C._is_tracing() and torch.is_grad_enabled()):
        return
    for name, value in tensors.items():
        if value is not None and value.requires_grad:
            fail(op, name, "be traced by torch.jit.trace under torch.no_grad()", "one that requires a gradient")


def once(op: str, what: str, grad: Tensor) -> None:
    """In a backward that is made for one gradient, once: refuse batches of them and a graph of the backward."""
    if is_batch(grad):
        raise RuntimeError(f"{op}: {what} must be differentiated by one gradient at a time, got a batch of them")
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op}: {what} must be differentiated once at most, got create_graph=True")


def is_batch(value: Tensor) -> bool:
    """Whether it stands for several, under torch.func.vmap or is_grads_batched."""
    return torch._C._functorch.is_batchedtensor(value) or torch._C._functorch.is_legacy_batchedtensor(value)


def is_traced(value: Tensor) -> bool:
    """Whether operations on `value` are recorded, imitated or repeated: nothing may be read, nor memory reused.

    Modes that only watch, counters of operations among them, are none of torch's own three and change nothing.
    """
    if torch.compiler.is_compiling():
        return True
    is_plain = type(value) in PLAIN and value.device.type != "meta" and not is_batch(value)
    keys = torch._C._TorchDispatchModeKey
    is_recorded = any(torch._C._get_dispatch_mode(key) is not None for key in (keys.FAKE, keys.PROXY, keys.FUNCTIONAL))
    return not is_plain or is_recorded or torch._C._is_tracing()


def floating(op: str, argument: str, value: Any) -> Tensor:
    """The value as a floating-point tensor, a list as float32; refuses other types."""
    found = tensor(op, argument, value, torch.float32)
    if found.dtype not in FLOATING:
        fail(op, argument, "be float32, float64, bfloat16 or float16", found.dtype)
    return found


def number(op: str, argument: str, value: Any) -> None:
    """Refuse what is no number, before it is compared with one. True and False are none."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{op}: {argument} must be a number, got a tensor {shape(value)} of {value.dtype}")
        no_gradient(op, argument, value)
    elif isinstance(value, bool) or not isinstance(value, NUMBERS):
        raise TypeError(f"{op}: {argument} must be a number, got {type(value).__name__}")
    elif isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        fail(op, argument, "be a number that float64 can hold", shown(value))


def shown(value: int) -> str:
    """A whole number as part of a sentence."""
    return str(value) if abs(value) < 10**DIGITS else f"one of {value.bit_length()} bits"


def no_gradient(op: str, argument: str, value: Tensor) -> None:
    """Refuse what would wait for a gradient in vain."""
    if value.requires_grad:
        fail(op, argument, "not require a gradient, because it gets none", "one that does")


def integer(op: str, argument: str, value: Any, rule: str = "be an int") -> int:
    """The value as an int; refuses what cannot count (True and False, too) and what int64 cannot hold."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.dtype not in INTEGRAL:
            raise TypeError(f"{op}: {argument} must {rule}, got a tensor {shape(value)} of {value.dtype}")
    elif isinstance(value, bool) or not isinstance(value, (int, np.integer, torch.SymInt)):
        raise TypeError(f"{op}: {argument} must {rule}, got {type(value).__name__}")
    counted: int = int(value) if isinstance(value, (Tensor, np.integer)) else value
    if not -(2**63) <= counted < 2**63:
        fail(op, argument, "be an int from -2**63 to 2**63 - 1", shown(counted))
    return counted


def flag(op: str, argument: str, value: Any, or_none: bool = False) -> None:
    """Refuse what is neither True nor False, because a word such as 'no' would be true."""
    if not isinstance(value, bool) and not (or_none and value is None):
        choices = "True, False or None" if or_none else "True or False"
        raise TypeError(f"{op}: {argument} must be {choices}, got {value!r}")


def one_of(op: str, argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is not among `choices`."""
    if value not in choices:
        fail(op, argument, f"be one of {', '.join(choices)}", repr(value))


def same_device(op: str, **tensors: Tensor | None) -> None:
    """Refuse tensors that live on different devices."""
    present = [(name, value) for name, value in tensors.items() if value is not None]
    for name, value in present[1:]:
        if value.device != present[0][1].device:
            fail(op, name, f"be on the device of {present[0][0]} ({present[0][1].device})", value.device)


def vector(op: str, argument: str, value: Any, size: int, like: str) -> Tensor:
    """The value as a vector with one entry per `like`; refuses other shapes."""
    found = tensor(op, argument, value)
    if found.ndim != 1 or found.shape[0] != size:
        fail(op, argument, f"have one entry per {like}, shape [{size}]", shape(found))
    return found


def int64(op: str, argument: str, value: Any) -> Tensor:
    """The value as an int64 tensor, as which arrays and lists of other integers come; refuses other tensors."""
    found = tensor(op, argument, value, torch.int64)
    if found.dtype in WHOLE and not isinstance(value, Tensor):
        return found.long()
    if found.dtype != torch.int64:
        fail(op, argument, "be int64", found.dtype)
    return found


def ends(op: str, argument: str, value: Any) -> Tensor:
    """Offsets of any name as int64; those of int32, as kernels for packed sequences have them, too."""
    return int64(op, argument, value.long() if isinstance(value, Tensor) and value.dtype == torch.int32 else value)


def offsets(op: str, value: Any, device: torch.device, like: str = "x") -> Tensor:
    """Type, shape and device (that of `like`) of group offsets [B+1]; `offsets_values` reads their values."""
    found = ends(op, "offsets", value)
    if found.ndim != 1 or found.shape[0] < 1:
        fail(op, "offsets", "be a vector of B + 1 row numbers", shape(found))
    if found.device != device:
        fail(op, "offsets", f"be on the device of {like} ({device})", found.device)
    return found


class Facts:
    """Conditions on the values of tensors, read together: on a GPU every reading waits for the device."""

    def __init__(self) -> None:
        self.conditions: list[tuple[Tensor, Callable[[], object]]] = []

    def refuse(self, is_bad: Tensor, sentence: Callable[[], object]) -> None:
        """Where `is_bad` holds anywhere, `read` calls `sentence`, which raises."""
        self.conditions.append((is_bad.any(), sentence))

    def read(self, *numbers: Tensor) -> list[int]:
        """The numbers (0-d int64); or raises about the first condition that holds."""
        flags = [is_bad.long() for is_bad, _ in self.conditions]
        values: list[int] = torch.stack([*flags, *numbers]).tolist() if flags or numbers else []
        for value, (_, sentence) in zip(values, self.conditions, strict=False):
            if value:
                sentence()
        return values[len(flags) :]


def first(is_bad: Tensor) -> int:
    """Where a vector of conditions holds first."""
    return int(is_bad.int().argmax())


def offsets_values(
    op: str, value: Tensor, rows: int, argument: str = "offsets", like: str = "rows", facts: Facts | None = None
) -> None:
    """Refuse offsets that do not run from 0 to `rows` without descending. Reads values, unless `facts` will: call it
    inside an operator."""
    found = Facts() if facts is None else facts
    is_falling = value[1:] < value[:-1]

    def falling() -> None:
        b = first(is_falling)
        fail(op, argument, "never descend", f"{int(value[b])} then {int(value[b + 1])} at group {b}")

    found.refuse(value[0] != 0, lambda: fail(op, argument, "begin with 0", int(value[0])))
    rule = f"end with the number of {like} {rows}"
    found.refuse(value[-1] != rows, lambda: fail(op, argument, rule, int(value[-1])))
    found.refuse(is_falling, falling)
    if facts is None:
        found.read()


def covering_offsets(
    op: str, value: Tensor, rows: int, argument: str = "offsets", like: str = "rows"
) -> tuple[Tensor, Tensor]:
    """Offsets that run from 0 to `rows` without descending, and whether they are those given (0-d).

    Others are refused where values may be read; elsewhere what is returned lies inside, and results must become NaN.
    """
    if _device.may_wait(value.device):
        offsets_values(op, value, rows, argument, like)
    inside = value.clamp(0, rows).cummax(0).values
    inside[0], inside[-1] = 0, rows
    return inside, (inside == value).all()


def labels(op: str, targets: Tensor, V: int, ignore_index: int) -> None:
    """Refuse targets that are no columns, naming the first. Reads values: call it inside an operator."""
    is_bad = ((targets < 0) | (targets >= V)) & (targets != ignore_index)
    if bool(is_bad.any()):
        position = int(is_bad.int().argmax())
        rule = f"be from 0 to {V - 1} or ignore_index {ignore_index}"
        raise IndexError(f"{op}: targets must {rule}, got {int(targets[position])} at position {position}")


def finite_rows(subject: str, value: Tensor, first_row: int = 0) -> None:
    """Refuse NaN and infinity in `subject` ("op: argument"), naming the first bad row.

    Reads values: call it inside an operator.
    """
    if not value.numel():
        return
    low, high = value.detach().aminmax()  # one pass without temporaries; a NaN anywhere makes both NaN
    if bool(torch.isfinite(low) & torch.isfinite(high)):
        return
    rows = value.reshape(value.shape[0], -1)
    row = int((~torch.isfinite(rows).all(dim=1)).int().argmax())
    raise ValueError(not_finite(subject, float(rows[row][~torch.isfinite(rows[row])][0]), first_row + row))


def not_finite(subject: str, value: float, row: int) -> str:
    """The sentence about a feature that is NaN or infinite."""
    return f"{subject} must be finite, got {value} in row {row}"
