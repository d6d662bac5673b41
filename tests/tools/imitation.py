"""A pytest plugin that imitates a GPU where there is none: `python -m pytest -p tests.tools.imitation -m gpu`.

Tensors made on "cuda" say that they lie there and keep their numbers in one of the CPU. An operator that meets a tensor
of either kind raises, as a device would: tests marked `gpu` find the tensor of the CPU that strays into a call. Kernels
in Triton run in the guarded interpreter, those in CUDA C++ on the emulated device. What it cannot show: a device's
arithmetic, its clock, its streams and graphs; tests of these are marked `hardware` as well and skipped here.
"""

from __future__ import annotations

import contextlib
import os
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tests.tools import triton_parts

THERE, HERE = torch.device("cuda", 0), torch.device("cpu")
# What torch's own code takes the tensors for: a device that is not the CPU, and that every build of torch knows.
INSIDE = torch.device("meta")
NAME = "imitated device"
MULTIPROCESSORS = 2  # so that a persistent program takes several tiles
# Operators that a device lets read from the CPU: copies, and row numbers.
CROSSING = {"aten::copy_", "aten::_to_copy"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({})"


class Imitated(Tensor):
    """A tensor that says it lies on cuda:0; `host` has its numbers."""

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> Imitated:
        made = Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            device=INSIDE,
        )  # fmt: skip
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return THERE

    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(of_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(of_tensors(index), value)

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def untyped_storage(self) -> Any:
        return self.host.untyped_storage()

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": THERE, **kwargs})

    def tolist(self) -> Any:
        return self.host.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def __repr__(self, **_: Any) -> str:
        return f"Imitated({self.host!r})"


class Imitation(TorchDispatchMode):
    """Sees the operators that make tensors on "cuda" out of nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


def is_there(device: Any) -> bool:
    """Whether this names the imitated device."""
    return device is not None and torch.device(device).type in (THERE.type, INSIDE.type)


def of_tensors(index: Any) -> Any:
    """An index whose lists are tensors: torch would make them inside, without numbers."""
    if isinstance(index, tuple):
        return tuple(map(of_tensors, index))
    return torch.tensor(index, device=THERE) if isinstance(index, list) else index


def host_of(value: Any) -> Any:
    """The numbers of a tensor there; anything else as it is."""
    return value.host if isinstance(value, Imitated) else value


def refuse_mixtures(name: str, args: Any, flat: list[Any]) -> None:
    """Raise as a device does where tensors of both sides meet; numbers without a dimension may come from the CPU."""
    tensors = [value for value in flat if isinstance(value, Tensor)]
    if any(value.is_meta for value in tensors):
        raise NotImplementedError(f"{name} meets a tensor that torch made inside, without numbers")
    if name in CROSSING or not any(isinstance(value, Imitated) for value in tensors):
        return
    if name in INDEXING and isinstance(args[0], Imitated):
        tensors = [value for value in tree_flatten((args[0], args[2:]))[0] if isinstance(value, Tensor)]
    if any(not isinstance(value, Imitated) and value.ndim > 0 for value in tensors):
        raise RuntimeError(MIXED.format(name))


def dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator: on the numbers, its results there where a device would have them."""
    name, (flat, spec) = func._schema.name, tree_flatten((args, kwargs))
    refuse_mixtures(name, args, flat)
    if func.namespace == "mrtkern":
        with Imitation():
            return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
    has_there = any(isinstance(value, Imitated) for value in flat)
    device = kwargs.get("device")
    is_result_there = has_there if device is None else is_there(device)
    if name == "aten::copy_":
        is_result_there = isinstance(args[0], Imitated)
    hosts = [host_of(value) for value in flat]
    host_args, host_kwargs = tree_unflatten(hosts, spec)
    if is_there(device):
        host_kwargs["device"] = HERE
    result = func(*host_args, **host_kwargs)
    if not is_result_there:
        return result
    known = {id(host): value for host, value in zip(hosts, flat, strict=True) if isinstance(value, Imitated)}
    return tree_map(lambda found: there(found, known) if isinstance(found, Tensor) else found, result)


def there(found: Tensor, known: dict[int, Imitated]) -> Imitated:
    """The tensor there that has these numbers: one that was given, or a new one."""
    return known[id(found)] if id(found) in known else Imitated(found)


# What asks for a device by name


def named_inside(value: Any) -> Any:
    """The device as torch's own code may know it; anything else as it is."""
    return INSIDE if isinstance(value, (str, torch.device)) and is_there(value) else value


def moving(to: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`Tensor.to`, which would look for a driver."""
    return lambda self, *args, **kwargs: to(
        self, *map(named_inside, args), **{name: named_inside(value) for name, value in kwargs.items()}
    )


def placed(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` and its like, whose device is a word."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        found = data if isinstance(data, Imitated) else make(data, *args, **kwargs)
        return found if device is None else found.to(device)

    return made


class Event:
    """A clock of the host."""

    def __init__(self, **_: Any) -> None:
        self.time = 0.0

    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.time - self.time)


PROPERTIES = types.SimpleNamespace(
    name=NAME, major=9, minor=0, total_memory=80 << 30, multi_processor_count=MULTIPROCESSORS
)
ANSWERS: dict[str, Any] = {
    "_lazy_init": None, "_sleep": None, "synchronize": None, "reset_peak_memory_stats": None, "is_available": True,
    "device_count": 1, "current_device": 0, "get_device_capability": (9, 0), "get_device_name": NAME,
    "get_device_properties": PROPERTIES, "device": contextlib.nullcontext(), "memory_allocated": 0,
    "max_memory_allocated": 0, "current_stream": types.SimpleNamespace(cuda_stream=0),
}  # fmt: skip


def answered(value: Any) -> Callable[..., Any]:
    """A function that gives this, whatever it is asked."""
    return lambda *_, **__: value


def no_profiler(**_: Any) -> NoReturn:
    """As on a machine whose driver lets nobody watch: the host's own would make the interpreter ten times slower."""
    raise RuntimeError("an imitated device has no profiler")


torch.profiler.profile = no_profiler  # type: ignore[misc,assignment]
Tensor.to = moving(Tensor.to)  # type: ignore[assignment,method-assign]
Tensor.cuda = lambda self, *_, **__: self.to(THERE)  # type: ignore[assignment,method-assign]
torch.tensor, torch.as_tensor = placed(torch.tensor), placed(torch.as_tensor)
torch.cuda.Event = Event  # type: ignore[misc,assignment]
for word, answer in ANSWERS.items():
    setattr(torch.cuda, word, answered(answer))


# Kernels


def launched(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Launches of Triton: on the numbers of tensors there, and of no others."""

    def of(value: Any) -> Any:
        if hasattr(value, "block_shape") and isinstance(value.base, Imitated):
            return type(value)(value.base.host, value.shape, value.strides, value.block_shape)
        if isinstance(value, Tensor) and not isinstance(value, Imitated):
            raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        return host_of(value)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return launch(self, *map(of, args), **{name: of(value) for name, value in kwargs.items()})

    return call


def with_large_blocks(patch: pytest.MonkeyPatch) -> None:
    """The blocks of the interpreter, which takes as long for a small one as for a large one."""
    from mrtkern._triton import rows as lattice_rows
    from mrtkern.ops.facility_location.triton import launch as pairs
    from mrtkern.ops.neighbors.triton import chains, launch

    block = lattice_rows._block
    patch.setattr(lattice_rows, "_block", lambda device, rows: block(HERE, rows))
    patch.setattr(pairs, "ON_DEVICE", pairs.INTERPRETED)
    for module in (launch, chains):
        patch.setattr(module, "ON_DEVICE", launch.INTERPRETED)


@pytest.fixture(scope="session")
def emulated_kernels(workshop: Any) -> Iterator[None]:
    """backend="cuda" is the emulated device's."""
    from tests.tools import emulated

    with emulated.installed(workshop.extension(emulated.PLAIN)):
        yield


@pytest.fixture(autouse=True)
def imitated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test runs as on a device."""
    from triton.runtime.interpreter import GridExecutor

    from mrtkern import _check
    from tests.tools import interpreter

    interpreter.guard(monkeypatch)
    monkeypatch.setattr(_check, "PLAIN", (*_check.PLAIN, Imitated))  # their numbers are theirs
    with_large_blocks(monkeypatch)
    monkeypatch.setattr(GridExecutor, "__call__", launched(GridExecutor.__call__))
    if "facility_location" in request.node.nodeid:
        request.getfixturevalue("emulated_kernels")
    with Imitation():
        yield


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One parameter of every test, from the middle, unless all are asked for: most take the same way through the host's
    code. Tests of the device itself are skipped, visibly; all are where no kernel is interpreted."""
    missing = triton_parts.without_interpreter()
    found: dict[Any, list[pytest.Item]] = {}
    for item in items:
        found.setdefault((item.path, getattr(item, "originalname", item.name)), []).append(item)
        if missing or item.get_closest_marker("hardware"):
            item.add_marker(pytest.mark.skip(reason=missing or "of a device itself, which is imitated here"))
    if config.getoption("--every-parameter"):
        return
    kept = {id(group[len(group) // 2]) for group in found.values()}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long a run may take."""
    parser.addoption("--every-parameter", action="store_true", help="imitate a device for all parameters of a test")
