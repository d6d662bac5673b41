"""What a host may not do while a device works: ask it for a value, or for a size that depends on one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mrtkern import _device

WAITING = {  # operators whose result, or its size, is known to the device alone
    "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim",
    "unique_consecutive",
}  # fmt: skip


class Refusing(TorchDispatchMode):
    """Raises on an operator that waits. The library's own operators are entered, not passed over."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        sizes_given = (kwargs or {}).get("output_size") is not None
        if name in WAITING or (name == "repeat_interleave" and not sizes_given):
            raise AssertionError(f"{name} waits for the device")
        if name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        ):
            raise AssertionError(f"{name} by a mask waits for the device")
        if func.namespace == "mrtkern":
            with self:
                return func._op_dk(torch._C.DispatchKey.CPU, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def refused() -> Iterator[None]:
    """As on a device: nothing may be asked of a tensor, also not by the interpreter's host side."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_device, "may_wait", lambda device, check=None: bool(check))
        with Refusing():
            yield
