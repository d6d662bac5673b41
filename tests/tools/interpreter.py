"""Triton's interpreter made strict: what a device would do wrong fails here, and bfloat16 does what a device does.

Tests marked `interpret` run under `guard`; tests/conftest.py sees to it. Bare, the interpreter of Triton 3.9 reads and
writes wherever a pointer leads, computes on bfloat16 as if its bits were integers, cuts where a device rounds, and
reads all bits of float32 where a tensor core reads those of tf32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter

Builder, Grid, Handle = interpreter.InterpreterBuilder, interpreter.GridExecutor, interpreter.TensorHandle

# Smallest K of a product by the bytes of an operand, as the NVIDIA backend of Triton 3.9 demands it.
SMALLEST_K = {1: 32, 2: 16, 4: 8, 8: 4}
TF32 = 0xFFFFE000  # the bits of float32 that a tensor core reads as tf32

spans: list[tuple[int, int]] = []  # first byte and end of every tensor of the current launch


def guard(patch: pytest.MonkeyPatch) -> None:
    """Make the interpreter strict until `patch` is undone."""
    _guard_bounds(patch)
    _guard_bfloat16(patch)
    patch.setitem(interpreter.interpreter_builder.codegen_fns, "min_dot_size", _min_dot_size)


def _min_dot_size(left: Any, right: Any) -> tuple[int, int, int]:
    if left.scalar.primitive_bitwidth != right.scalar.primitive_bitwidth:
        raise TypeError(f"both operands of a product must have one width, got {left.scalar} and {right.scalar}")
    return 1, 1, SMALLEST_K[left.scalar.primitive_bitwidth // 8]


# Bounds


def _tensors(argument: Any) -> Iterator[Any]:
    """The tensors of one kernel argument: itself, the base of a descriptor, the members of a tuple."""
    if isinstance(argument, tuple):
        for part in argument:
            yield from _tensors(part)
    elif hasattr(argument, "block_shape"):
        yield from _tensors(argument.base)
    elif hasattr(argument, "data_ptr"):
        yield argument.base if isinstance(argument, triton.runtime.jit.TensorWrapper) else argument


def _span(tensor: Any) -> tuple[int, int]:
    """First byte and end of what the tensor owns: from its first to its last element."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + ((last + 1) * tensor.element_size() if tensor.numel() else 0)


def _check_bounds(what: str, pointers: Any, mask: Any) -> None:
    """Every access must lie inside one tensor of the launch."""
    addresses = pointers.data
    if mask is not None:
        addresses = addresses[np.broadcast_to(np.asarray(mask.data).astype(bool), addresses.shape)]
    if not addresses.size:
        return
    size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
    first, end = int(addresses.min()), int(addresses.max()) + size
    if any(low <= first and end <= high for low, high in spans):
        return
    low, high = min(spans, key=lambda span: max(span[0] - first, end - span[1]), default=(0, 0))
    raise IndexError(
        f"{what} leaves its tensor: bytes {first - low} to {end - low} of the nearest, which has {high - low}"
    )


def _guard_bounds(patch: pytest.MonkeyPatch) -> None:
    launch, load, store = Grid._init_args_hst, Builder.create_masked_load, Builder.create_masked_store

    def remember(self: Any, args: Any, kwargs: Any) -> Any:
        on_host, named = launch(self, args, kwargs)
        spans[:] = [_span(tensor) for given in (*on_host, *named.values()) for tensor in _tensors(given)]
        return on_host, named

    def checked_load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any, **options: Any) -> Any:
        _check_bounds("a load", pointers, mask)
        # A device leaves masked lanes undefined. Of one lane this cannot be told: an `other` of 0 arrives as None, too.
        if other is None and pointers.data.size > 1:
            dtype = pointers.get_element_ty()
            other = Handle(np.full(pointers.data.shape, _undefined(dtype), interpreter._get_np_dtype(dtype)), dtype)
        return load(self, pointers, mask, other, *rest, **options)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _check_bounds("a store", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    patch.setattr(Grid, "_init_args_hst", remember)
    patch.setattr(Builder, "create_masked_load", checked_load)
    patch.setattr(Builder, "create_masked_store", checked_store)
    for name, pointers, mask in (
        ("create_atomic_rmw", 1, 3),
        ("create_atomic_cas", 0, None),
        ("create_atomic_poll", 0, None),  # since Triton 3.9
    ):
        if hasattr(Builder, name):
            patch.setattr(Builder, name, _checked_atomic(getattr(Builder, name), pointers, mask))


def _checked_atomic(atomic: Callable[..., Any], pointers: int, mask: int | None) -> Callable[..., Any]:
    def checked(self: Any, *given: Any) -> Any:
        _check_bounds("an atomic", given[pointers], None if mask is None else given[mask])
        return atomic(self, *given)

    return checked


def _undefined(dtype: Any) -> Any:
    """NaN, or the largest integer; bfloat16 is stored as its bits."""
    if dtype == tl.bfloat16:
        return 0x7FC0
    dtype = interpreter._get_np_dtype(dtype)
    return np.nan if dtype.kind == "f" else True if dtype.kind == "b" else np.iinfo(dtype).max


# bfloat16


def widened(bits: Any) -> Any:
    """float32 of bfloat16 bits, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(value: Any) -> Any:
    """bfloat16 bits of float32, half to even; a NaN stays one."""
    bits = np.ascontiguousarray(value).view(np.uint32)
    even = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(value), np.uint16(0x7FC0), even)


def cut(value: Any) -> Any:
    """float32 as tf32, without the bits that a tensor core does not read."""
    return (np.ascontiguousarray(value).view(np.uint32) & np.uint32(TF32)).view(np.float32)


def _is_bfloat16(handle: Any) -> bool:
    dtype = getattr(handle, "dtype", None)
    return dtype is not None and dtype.scalar == tl.bfloat16


def _refuse_bfloat16(what: str, handles: Iterable[Any]) -> None:
    if any(_is_bfloat16(handle) for handle in handles):
        raise TypeError(f"{what} of bfloat16 is not what a device computes here: take .to(tl.float32) first")


def _guard_bfloat16(patch: pytest.MonkeyPatch) -> None:
    dot, cast, combine = Builder.create_dot, Builder.cast_impl, interpreter.ReduceScanOpInterface.check_tensor

    def repaired_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, *rest: Any) -> Any:
        wide = [Handle(widened(v.data), tl.float32) if _is_bfloat16(v) else v for v in (a, b)]
        if precision == ir.INPUT_PRECISION.TF32:
            wide = [Handle(cut(v.data), tl.float32) if v.dtype.scalar == tl.float32 else v for v in wide]
        return dot(self, *wide, d, precision, *rest)

    def repaired_cast(self: Any, source: Any, to: Any) -> Any:
        pair = source.dtype.scalar, to.scalar
        if pair == (tl.bfloat16, tl.float32):
            return Handle(widened(source.data), tl.float32)
        if pair == (tl.float32, tl.bfloat16):
            return Handle(rounded(source.data), tl.bfloat16)
        if tl.bfloat16 in pair:
            raise TypeError(f"a cast from {pair[0]} to {pair[1]} is wrong here: go through float32")
        return cast(self, source, to)

    def refusing_combine(self: Any, inputs: Any) -> None:
        _refuse_bfloat16("a reduction or scan", (tensor.handle for tensor in inputs))
        combine(self, inputs)

    patch.setattr(Builder, "create_dot", repaired_dot)
    patch.setattr(Builder, "cast_impl", repaired_cast)
    patch.setattr(interpreter.ReduceScanOpInterface, "check_tensor", refusing_combine)
    patch.setattr(Builder, "ternary_op", _refusing(Builder.ternary_op, "arithmetic", allowed=np.where))
    for name in ("binary_op", "unary_op", "create_fma", "create_erf", "create_rsqrt"):
        patch.setattr(Builder, name, _refusing(getattr(Builder, name), "arithmetic"))
    for name in ("create_atomic_rmw", "create_atomic_cas"):
        patch.setattr(Builder, name, _refusing(getattr(Builder, name), "an atomic"))


def _refusing(method: Callable[..., Any], what: str, allowed: Any = None) -> Callable[..., Any]:
    def refused(self: Any, *given: Any) -> Any:
        if allowed is None or given[-1] is not allowed:
            _refuse_bfloat16(what, given)
        return method(self, *given)

    return refused
