"""The CUDA sources compiled for the CPU: programs and the extension, with each sanitizer, once per run of the tests.

    python -m tests.tools.emulated    prints what each planted fault of tests/emulator/faults.cu is answered with

The machine (tests/emulator/device) is compiled without sanitizers, so that they watch nothing but the kernels. Its
language is included before every other source.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import mrtkern
from mrtkern import _dispatch
from mrtkern.ops import OPS
from tests.kernels import test_sanitize
from tests.kernels.test_sanitize import BINDINGS, BUILD, FLAGS, OPTIONS, ROOT, runtime

CSRC, PROGRAMS = ROOT / "csrc", ROOT / "tests" / "emulator"
MACHINE = PROGRAMS / "device"
PRIMITIVES = ("main", "warps", "blocks", "numbers", "launches")  # files of one program
PLAIN = "plain"
SANITIZED = {PLAIN: ["-O1"], **FLAGS}
ORDERS = ("forward", "reverse", "random:1")
NAN = "nan"
# Fault of tests/emulator/faults.cu: who speaks, and a part of what is said. `plain`: the machine itself.
FAULTS = {
    "missing_barrier": ("thread", "data race"),
    "missing_second_barrier": ("thread", "data race"),
    "race_of_blocks": ("thread", "data race"),
    "shared_read_after_shuffle": ("thread", "data race"),
    "missing_fence": ("thread", "data race"),
    "missing_grid_barrier": ("thread", "data race"),
    "dynamic_shared_overflow": ("address", "heap-buffer-overflow"),
    "declared_shared_overflow": ("address", "use-after-poison"),
    "declared_index_out_of_range": ("address", "out of bounds for type 'float [64]'"),
    "global_overflow": ("address", "heap-buffer-overflow"),
    "misaligned_vector": ("address", "requires 16 byte alignment"),
    "integer_overflow": ("address", "signed integer overflow"),
    "divergent_barrier": (
        PLAIN,
        "no thread can go on; block (0, 0, 0): 48 at __shfl_sync with mask 0xffffffff, 16 at __sy",
    ),
    "absent_lane": (PLAIN, "2 at __ballot_sync with mask 0xffffffff, 62 at __shfl_sync with mask 0xffffffff"),
    "read_of_an_exited_lane": (PLAIN, "thread (0, 0, 0): __shfl_sync reads lane 5, which does not take part"),
    "mask_without_the_caller": (PLAIN, "__syncwarp is called by a lane that its mask leaves out"),
    "uninitialised_declared": (PLAIN, NAN),
    "uninitialised_dynamic": (PLAIN, NAN),
    "too_much_declared": (PLAIN, "a block may declare 48 KiB of shared memory"),
    "grid_barrier_without_cooperation": (PLAIN, "the grid's barrier needs a cooperative launch"),
}


class Workshop:
    """Builds in a folder what is asked for, each thing once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects = functools.cache(self.objects)  # type: ignore[method-assign]
        self.program = functools.cache(self.program)  # type: ignore[method-assign]
        self.extension = functools.cache(self.extension)  # type: ignore[method-assign]

    def objects(self, sources: tuple[Path, ...], flags: tuple[str, ...]) -> list[Path]:
        """The objects of some sources, two at a time."""
        compiler = BUILD["find_compiler"]()
        if compiler is None:
            pytest.skip("needs a C++ compiler")
        folder = Path(tempfile.mkdtemp(dir=self.folder))

        def compiled(source: Path) -> Path:
            target = folder / f"{source.stem}.o"
            command = BUILD["compile_command"]([*compiler, "-x", "c++"], source, target)
            command += ["-Wno-unknown-pragmas", "-Werror", f"-I{PROGRAMS}", *flags]
            command += ["-include", str(MACHINE / "language.h")] if source.suffix == ".cu" else []
            command += BINDINGS if source.name == "bindings_cuda.cpp" else []
            subprocess.run(command, check=True)
            return target

        with ThreadPoolExecutor(BUILD["JOBS"]) as pool:
            return list(pool.map(compiled, sources))

    def linked(self, target: Path, sanitizer: str, objects: list[Path], *flags: str) -> Path:
        if sanitizer != PLAIN:
            runtime(sanitizer)  # skips where the compiler has none
        command = [*BUILD["find_compiler"](), *flags, *SANITIZED[sanitizer], "-pthread", *map(str, objects)]
        subprocess.run([*command, "-o", str(target)], check=True)
        return target

    def machine(self, *flags: str) -> list[Path]:
        """The emulated device."""
        return self.objects(tuple(sorted(MACHINE.glob("*.cpp"))), ("-O2", *flags))

    def program(self, names: tuple[str, ...], sanitizer: str, *machine_flags: str) -> Path:
        """The program of some files of tests/emulator."""
        sources = (*(PROGRAMS / f"{name}.cu" for name in names), CSRC / "common" / "cuda.cu")
        objects = self.objects(sources, tuple(SANITIZED[sanitizer])) + self.machine(*machine_flags)
        return self.linked(Path(tempfile.mkdtemp(dir=self.folder)) / names[0], sanitizer, objects)

    def extension(self, sanitizer: str) -> Path:
        """mrtkern._cuda on the emulated devices, to be loaded from there."""
        objects = self.objects(tuple(BUILD["cuda_sources"]()), tuple(SANITIZED[sanitizer])) + self.machine()
        target = Path(tempfile.mkdtemp(dir=self.folder)) / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
        return self.linked(target, sanitizer, objects, "-shared")


@contextlib.contextmanager
def installed(extension: Path) -> Iterator[Callable[[str], None]]:
    """While it lasts backend="cuda" takes CPU tensors and runs the kernels of an emulated extension on them.

    Gives the function that sets the order of blocks and threads.
    """
    names = ["mrtkern._cuda", *(f"mrtkern.ops.{op}.cuda" for op in OPS)]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    spec = importlib.util.spec_from_file_location("mrtkern._cuda", extension)
    assert spec is not None and spec.loader is not None
    sys.modules["mrtkern._cuda"] = mrtkern._cuda = importlib.util.module_from_spec(spec)  # type: ignore[attr-defined]
    spec.loader.exec_module(sys.modules["mrtkern._cuda"])
    _dispatch.load.cache_clear()
    for module in (_dispatch.load(op, "cuda") for op in OPS):
        if not isinstance(module, str) and hasattr(module, "DEVICES"):
            module.DEVICES = ("cuda", "cpu")  # type: ignore[attr-defined]
    machine = ctypes.CDLL(str(extension))

    def set_order(order: str) -> None:
        assert machine.mrt_emulator_set_order(order.encode()) == 0, order

    set_order("forward")
    try:
        yield set_order
    finally:
        for name in names:
            sys.modules.pop(name, None)
            package, _, attribute = name.rpartition(".")
            vars(sys.modules[package]).pop(attribute, None)
        for name, module in before.items():
            package, _, attribute = name.rpartition(".")
            sys.modules[name] = module
            setattr(sys.modules[package], attribute, module)
        _dispatch.load.cache_clear()


def passes(workshop: Workshop, sanitizer: str, selection: str, tests: str) -> None:
    """The selected tests marked `emulator` of a file pass on an extension under a sanitizer, and nothing is said."""
    extension = workshop.extension(sanitizer)
    arguments = ["-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "--emulated-extension", str(extension)]
    done = test_sanitize.run(sanitizer, ROOT, *arguments, "-m", "emulator and not full", "-k", selection, tests)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "Sanitizer" not in done.stdout, done.stdout


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program, at addresses that do not change: those of ThreadSanitizer are fixed."""
    return subprocess.run(
        ["setarch", "-R", str(program), *arguments], env={**os.environ, **OPTIONS}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def answer(workshop: Workshop, fault: str, state: str, *order: str) -> tuple[int, str]:
    """Status and output of a fault under the sanitizer that should speak."""
    done = run(workshop.program(("faults",), FAULTS[fault][0]), fault, state, *order)
    return done.returncode, done.stdout


def said(fault: str, output: str) -> str | None:
    """The line of the output that names the fault."""
    return next((line for line in output.splitlines() if FAULTS[fault][1] in line), None)


def main() -> int:
    """The planted-fault report; status 1 where a fault was passed over."""
    lines = {}
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder))
        for fault, (sanitizer, _) in FAULTS.items():
            lines[fault] = said(fault, answer(workshop, fault, "planted")[1])
            print(f"{fault:34}{sanitizer:9}{(lines[fault] or 'PASSED OVER')[:100]}", flush=True)
    return 1 if None in lines.values() else 0


if __name__ == "__main__":
    sys.exit(main())
