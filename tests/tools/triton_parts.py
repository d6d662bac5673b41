"""What of Triton is here, by its files, because to import it takes a second: the kernels' parts, the interpreter's."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def folder() -> Path | None:
    """Where Triton is installed."""
    found = importlib.util.find_spec("triton")
    folders = found.submodule_search_locations if found else None
    return Path(folders[0]) if folders else None


def without_kernels() -> str | None:
    """Why no kernel in Triton runs or is compiled here."""
    root = folder()
    if root is None:
        return "triton is not installed"
    has_descriptors = (root / "tools" / "tensor_descriptor.py").exists()
    return None if has_descriptors else "this Triton has no tensor descriptors: needs 3.4 or later"


def without_interpreter() -> str | None:
    """Why no kernel in Triton is interpreted here: tests/tools/interpreter.py replaces private parts, those of 3.9."""
    root = folder()
    if root is None or without_kernels() is not None:
        return without_kernels()
    source = (root / "runtime" / "interpreter.py").read_text(encoding="utf-8")
    return None if "cache_policy" in source else "this Triton's interpreter is another: needs 3.9 or later"
