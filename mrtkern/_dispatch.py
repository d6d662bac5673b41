"""Choose which backend runs a problem: the only place where that decision is made.

A backend is a file `mrtkern/ops/<op>/<backend>.py`; its name is the `backend=` string. It exports `why_not(problem)`,
which sees sizes and types but no data, so the choice made for a GPU can be tested without one. A file that is absent is
an answer: ABSENT of the operation's problem.py has the reason.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from types import ModuleType
from typing import Any

BACKENDS = ("cuda", "triton", "cpu", "reference")  # in order of preference
OPTIONAL = ("triton", "mrtkern._C", "mrtkern._cuda")  # what an installation may lack
OLDEST_TRITON = "3.4"  # the first with triton.tools.tensor_descriptor


@functools.cache
def load(op: str, backend: str) -> ModuleType | str:
    """The backend's module, or the reason why there is none."""
    if not has_file(op, backend):
        absent: dict[str, str] = importlib.import_module(f"mrtkern.ops.{op}.problem").ABSENT
        present = [name for name in BACKENDS if has_file(op, name)]
        return f"{absent[backend]}; it has {', '.join(present)}"
    try:
        return importlib.import_module(f"mrtkern.ops.{op}.{backend}")
    except ModuleNotFoundError as error:  # not ImportError: a binary that does not load is broken, not absent
        missing = error.name or ""
        if not any(missing == part or missing.startswith(part + ".") for part in OPTIONAL):
            raise
        return too_old_triton(missing) if missing.startswith("triton.") else f"{missing} is not installed"


def too_old_triton(missing: str) -> str:
    """The sentence about a Triton that is there, but lacks a module."""
    version = importlib.import_module("triton").__version__
    return f"needs Triton {OLDEST_TRITON} or later, got {version}, which lacks {missing}"


def has_file(op: str, backend: str) -> bool:
    """Whether the operation has this backend, installed or not."""
    return importlib.util.find_spec(f"mrtkern.ops.{op}.{backend}") is not None


def why_not(op: str, backend: str, problem: Any) -> str | None:
    """None when `backend` can run `problem`, otherwise one sentence that says why it cannot."""
    module = load(op, backend)
    if isinstance(module, str):
        return module
    reason: str | None = module.why_not(problem)
    return reason


def check(op: str, backend: Any) -> None:
    """Refuse what names no backend; public functions do so before an operator sees it."""
    if backend is None or (isinstance(backend, str) and backend in BACKENDS):
        return
    error = ValueError if isinstance(backend, str) else TypeError
    raise error(f"{op}: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")


def choose(op: str, backend: str | None, problem: Any, caller: str | None = None) -> str:
    """Name of the backend to run. An explicit request is obeyed or refused, never replaced.

    caller: the function that the user called, where it is not the operation whose backends run.
    """
    check(caller or op, backend)
    if backend is None:
        name = next(name for name in BACKENDS if why_not(op, name, problem) is None)
        if name == "reference" and isinstance(load(op, "cpu"), str):
            warn_pure_python()
        return name
    if reason := why_not(op, backend, problem):
        raise ValueError(f"{caller or op}: backend {backend!r} cannot run this: {reason}")
    return backend


def run(op: str, backend: str | None, problem: Any, caller: str | None = None) -> Any:
    """The module of the backend that `choose` names."""
    return load(op, choose(op, backend, problem, caller))


@functools.cache
def warn_pure_python() -> None:
    """Say once per process that the compiled kernels are missing."""
    warnings.warn(
        "mrtkern was installed without its compiled kernels: the PyTorch reference runs instead", stacklevel=4
    )
