"""The compiled kernels under sanitizers: csrc built with them in a copy of the repository, and its own tests run there.

address   AddressSanitizer and UndefinedBehaviorSanitizer: every test that names the cpu backend, on every path
thread    ThreadSanitizer: every test about threads and concurrent callers, on every path

Only csrc is instrumented: reads beyond the memory of a tensor are seen because the runtime, loaded first, hands it out.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.tools import process
from tests.tools.repository import ROOT

BUILD = runpy.run_path(str(ROOT / "setup.py"))
FLAGS = {  # after those of setup.py, so that these count
    "address": ["-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=thread"],
}
BINDINGS = [
    "-O0",
    "-fno-sanitize=undefined",
]  # pybind11's templates: checked for undefined behaviour they take a minute
RUNTIMES = {"address": "libasan.so", "thread": "libtsan.so"}
FAILED = 66  # exit status of a process with a report
OPTIONS = {
    "ASAN_OPTIONS": f"detect_leaks=0:exitcode={FAILED}",  # the interpreter frees nothing at its end
    "UBSAN_OPTIONS": f"print_stacktrace=1:exitcode={FAILED}",
    "TSAN_OPTIONS": f"ignore_noninstrumented_modules=1:exitcode={FAILED}",  # torch and Python are not instrumented
}
SELECTIONS = {"address": process.KERNEL_TESTS, "thread": "concurrent or number_of_threads"}
LEFT_OUT = shutil.ignore_patterns(".*", "build", "demo", "*.so", "*.egg-info", "__pycache__")

FAULTS = """
#include <climits>
#include <thread>
#define MRT_FAULT extern "C" __attribute__((visibility("default")))
MRT_FAULT int beyond(int i) {
  volatile int size = 4;  // unknown to the compiler, so that the memory speaks and not the type
  int* const four = new int[size]();
  const int value = four[i];
  delete[] four;
  return value;
}
MRT_FAULT int overflow(int i) { return INT_MAX + i; }
MRT_FAULT int race(int i) {
  int sum = 0;
  std::thread first([&] { for (int n = 0; n < 1000; ++n) sum += i; });
  std::thread second([&] { for (int n = 0; n < 1000; ++n) sum += i; });
  first.join();
  second.join();
  return sum;
}
"""

pytestmark = [
    pytest.mark.sanitize,
    pytest.mark.skipif(
        platform.system() != "Linux" or importlib.util.find_spec("pybind11") is None, reason="needs Linux and pybind11"
    ),
]


@functools.cache
def runtime(sanitizer: str) -> str:
    """The libraries that a process must load first; skips where the compiler has none."""
    compiler = BUILD["find_compiler"]()
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    found = []
    for name in (RUNTIMES[sanitizer], "libstdc++.so.6"):  # the runtime looks there for what throws, when it starts
        command = [*compiler, f"-print-file-name={name}"]
        found.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
        if not Path(found[-1]).is_absolute():
            pytest.skip(f"the compiler has no {name}")
    return ":".join(found)


def compiled(sanitizer: str, source: Path, target: Path) -> Path:
    """The instrumented object of one source."""
    flags = FLAGS[sanitizer] + (BINDINGS if source.name == "bindings.cpp" else [])
    subprocess.run([*BUILD["compile_command"](BUILD["find_compiler"](), source, target), *flags], check=True)
    return target


def linked(sanitizer: str, objects: list[Path], target: Path) -> Path:
    """The instrumented library of some objects."""
    flags = ["-shared", "-pthread", *FLAGS[sanitizer]]
    subprocess.run([*BUILD["find_compiler"](), *flags, *map(str, objects), "-o", str(target)], check=True)
    return target


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """tree(sanitizer): a copy of the repository with an instrumented extension, built once per run."""

    @functools.cache
    def build(sanitizer: str) -> Path:
        runtime(sanitizer)
        copy = tmp_path_factory.mktemp(sanitizer) / "copy"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        sources = sorted(BUILD["sources"](), key=lambda path: path.name != "bindings.cpp")  # the longest first
        with ThreadPoolExecutor(BUILD["JOBS"]) as pool:
            targets = [copy.parent / f"{number}.o" for number in range(len(sources))]
            objects = list(pool.map(functools.partial(compiled, sanitizer), sources, targets))
        linked(sanitizer, objects, copy / "mrtkern" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}")
        return copy

    return build


def run(sanitizer: str, folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Python with the sanitizer's runtime, at addresses that do not change: those of ThreadSanitizer are fixed."""
    command = ["setarch", "-R", sys.executable, *arguments]
    preload = {"LD_PRELOAD": runtime(sanitizer)}
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **OPTIONS, **preload, **env}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def passes(sanitizer: str, folder: Path, selection: str, tests: str = "tests", **env: str) -> None:
    """The selected tests of the copy pass, there are some, and nothing is reported. -s: a report ends the process."""
    command = ["-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-k", selection, tests]
    done = run(sanitizer, folder, *command, **env)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "Sanitizer" not in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("sanitizer", "fault", "report"),
    [
        ("address", "beyond", "heap-buffer-overflow"),
        ("address", "overflow", "signed integer overflow"),
        ("thread", "race", "data race"),
    ],
)
def test_a_planted_fault_is_reported(sanitizer: str, fault: str, report: str, tmp_path: Path) -> None:
    """Through the very flags, runtime and options of the tests below; the same call without the fault is silent."""
    runtime(sanitizer)
    (tmp_path / "faults.cpp").write_text(FAULTS)
    library = linked(
        sanitizer, [compiled(sanitizer, tmp_path / "faults.cpp", tmp_path / "faults.o")], tmp_path / "faults.so"
    )
    call = f"import ctypes; print(ctypes.CDLL({str(library)!r}).{{}}({{}}))"
    silent = run(sanitizer, tmp_path, "-c", call.format(*(("beyond", 1) if fault == "race" else (fault, 0))))
    assert silent.returncode == 0 and "Sanitizer" not in silent.stdout, silent.stdout
    loud = run(sanitizer, tmp_path, "-c", call.format(fault, 4))
    assert loud.returncode == FAILED and report in loud.stdout, loud.stdout


@pytest.mark.full
def test_concurrent_callers_are_clean(tree: Callable[[str], Path]) -> None:
    """The short one: one file, or collecting the others would take longer than running it."""
    passes("address", tree("address"), "concurrent", "tests/facility_location/test_facility_location_threads.py")


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("sanitizer", SELECTIONS)
def test_kernels_are_clean(tree: Callable[[str], Path], sanitizer: str, isa: str) -> None:
    extension = pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
    if isa not in extension.isas():
        pytest.skip(f"this machine has no {isa}")
    passes(sanitizer, tree(sanitizer), SELECTIONS[sanitizer], MRTKERN_ISA=isa)
