"""A child process that runs one operation's competitors on command: for peak memory, and for another revision's code.

The parent writes one JSON object a line, {"do": "time" | "memory" | "answer", "name": ...}, and reads one back. The
inputs come from a file, so every process works on the same bits.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.harness import stopwatch

ROOT = Path(__file__).resolve().parent.parent
KIB = 1024
NO_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}  # of a child whose torch multiplies bfloat16 without AMX


def said(environment: Mapping[str, str]) -> str:
    """As a shell writes it."""
    return " ".join(f"{name}={value}" for name, value in environment.items())


@dataclasses.dataclass(frozen=True)
class Apart:
    """A competitor that runs in a process of its own, whose environment has these variables too."""

    name: str
    runs: str  # the name it has there
    tree: Path = ROOT  # whose mrtkern it imports
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""
    scale: float = 1.0  # as of a Competitor
    has_memory: bool = False  # whether the same program can be measured under `name`


class Worker:
    """The parent's end. `tree` is the folder whose mrtkern the child imports, `inputs` a file made by torch.save."""

    def __init__(self, op: str, inputs: Path, tree: Path = ROOT, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "bench.worker", op, str(inputs), str(tree), str(torch.get_num_threads())]
        variables = {**os.environ, **(environment or {}), "PYTHONPATH": str(ROOT)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=variables, stdin=pipe, stdout=pipe, text=True)
        self.hello = self.read()
        if not Path(self.hello["package"]).is_relative_to(tree.resolve()):
            raise RuntimeError(f"bench: the child must import mrtkern from {tree}, got {self.hello['package']}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def read(self) -> dict[str, Any]:
        """The child's next line; RuntimeError with what went wrong there."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        said = json.loads(line) if line else {"error": f"the child process ended with status {self.process.wait()}"}
        if "error" in said:
            raise RuntimeError(f"bench: {said['error']}")
        return said

    def ask(self, do: str, name: str, **more: str) -> Any:
        """Let the child do something with the competitor of that name."""
        assert self.process.stdin is not None
        print(json.dumps({"do": do, "name": name, **more}), file=self.process.stdin, flush=True)
        return self.read()["result"]


def peak_bytes(run: Callable[[], Any]) -> int | None:
    """Memory at the worst moment of a call beyond what was in use before it and its result; None: cannot be measured.

    The kernel's high-water mark is reset first, and what earlier calls freed goes back to the kernel, so that reuse
    does not hide use.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    reset.write_text("5")
    before = _status(status, "VmRSS")
    result = run()
    return max(0, _status(status, "VmHWM") - before - result_bytes(result))


def _status(path: Path, field: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * KIB


def result_bytes(result: Any) -> int:
    """Bytes of all tensors and arrays in a result; storage shared by several counts once."""
    found: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, np.ndarray):
            found[value.ctypes.data] = value.nbytes
        elif isinstance(value, (tuple, list)):
            for part in value:
                visit(part)
        elif dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                visit(getattr(value, field.name))

    visit(result)
    return sum(found.values())


def serve(op: Any, inputs: Any, read: Any, write: Callable[[Any], None]) -> None:
    """Answer commands until the parent closes the pipe."""
    found = {competitor.name: competitor for competitor in [*op.own(inputs), *op.others(inputs)]}
    warm = {competitor.name: competitor for competitor in [*op.own(op.tiny(inputs)), *op.others(op.tiny(inputs))]}
    for line in read:
        command = json.loads(line)
        competitor = found[command["name"]]
        if command["do"] == "time":
            write({"result": (competitor.clock or partial(stopwatch, competitor.run))()})
        elif command["do"] == "memory":
            warm[command["name"]].run()
            write({"result": peak_bytes(competitor.run)})
        else:
            torch.save(op.answer(inputs, competitor.run()), command["file"])
            write({"result": None})


def main() -> None:
    """Import mrtkern from the given tree, then serve."""
    name, inputs, tree, threads = sys.argv[1:]
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what peers print must not reach the parent

    def write(said: Any) -> None:
        print(json.dumps(said), file=pipe, flush=True)

    torch.set_num_threads(int(threads))
    try:
        sys.path.insert(0, tree)
        package = importlib.import_module("mrtkern")
        del sys.path[0]
        write({"package": package.__file__, "has_kernels": importlib.util.find_spec("mrtkern._C") is not None})
        gc.disable()
        serve(importlib.import_module(f"bench.{name}"), torch.load(inputs), sys.stdin, write)
    except Exception as error:  # noqa: BLE001  whatever it is, the parent has to say it
        traceback.print_exc()
        write({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
