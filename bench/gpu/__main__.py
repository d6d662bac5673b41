"""`python -m bench.gpu`, which `make gpu` runs: build, test, time and sanitize on the GPU of this machine."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench import device, report
from bench.gpu import summary
from bench.gpu.steps import Runner, Step
from bench.worker import ROOT

BUDGET = 470.0  # seconds of all steps
RESERVED = 5.0  # of them for the last table
LIMITS = {"facts": 45.0, "peers": 30.0, "build": 150.0, "info": 30.0, "tests": 150.0, "sanitizer": 40.0, "stress": 90.0}
BENCH = 220.0  # of all operations together
ENDING = 15.0  # between the last case that is begun and the limit of its step
MOST_WORKERS = 8  # processes of pytest: they share one GPU
CHECKERS = ("memcheck", "racecheck", "synccheck")
STRESS = "tests/kernels/test_stress.py"  # a thousand shapes an operation: what time is left
# small, and all of the kernel
SANITIZED = "tests/facility_location/test_facility_location_cuda.py", "every_place_takes_every_option"
KERNEL = "select_groups"
DRY = "dry run"
DRY_TIMES = 4  # as long as on a machine with a GPU: two cores, and others at work on them


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for results and log (default: bench/results)")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="N", help=f"seconds in all ({BUDGET:.0f})")
    parser.add_argument("--dry", action="store_true", help="every step without a GPU: tests are named, cases are tiny")
    return parser.parse_args(arguments)


def python(*words: str) -> list[str]:
    """A command of the Python that runs this."""
    return [sys.executable, *words]


def prepared(folder: Path, is_dry: bool) -> Iterator[Step]:
    """Facts, peers, and the extensions for the card at hand."""
    yield Step("facts", LIMITS["facts"], python("-m", "bench.gpu.facts", str(folder / "facts.json")))
    wheels = sorted(map(str, (ROOT / ".whl").glob("*.whl")))
    if wheels:
        beside = ("--no-index", "--no-deps", "--no-compile", "--target", str(folder / "site"))
        yield Step("peers", LIMITS["peers"], python("-m", "pip", "install", "-q", *beside, *wheels))
    build = ["setup.py", "-q", "build_ext", "--inplace", "--parallel", str(os.cpu_count() or 1)]
    capability = summary.loaded(folder / "facts.json").get("capability")
    archs = {"MRTKERN_CUDA_ARCHS": "".join(map(str, capability))} if capability else {}
    yield Step("build", LIMITS["build"], python(*build), {} if is_dry else {"MRTKERN_CUDA": "1", **archs})
    yield Step("info", LIMITS["info"], python("-m", "mrtkern", "info"))


def pytest(folder: Path, name: str, *words: str) -> Step:
    """A step that runs tests marked `gpu` in several processes, each for two minutes at most."""
    command = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb", "short", *words]
    command += ["--continue-on-collection-errors"]  # a file may need what this machine lacks
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(MOST_WORKERS, os.cpu_count() or 1))]
    command += ["--junitxml", str(folder / f"{name}.xml")]
    return Step(name, LIMITS[name], python(*command), {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"})


def tested(folder: Path, is_dry: bool) -> Iterator[Step]:
    """The tests marked `gpu`; without a GPU their names."""
    if is_dry:
        words = ("-m", "pytest", "-qq", "-m", "gpu", "-p", "no:cacheprovider", "--collect-only")
        yield Step("tests", LIMITS["tests"], python(*words))
        return
    yield pytest(folder, "tests", "--ignore", STRESS, "--timeout", "120")


def timed(folder: Path, is_dry: bool, left: float) -> Iterator[Step]:
    """The benchmarks, an operation in each process: what one does to the device is not the next one's."""
    names = device.ops()
    each = max(min(BENCH, left) / len(names), ENDING)
    for op in names:
        words = ["-m", "bench", op, "--device", "--seconds", f"{each - ENDING:.0f}"]
        words += ["--json", str(folder / f"bench-{op}.json"), *(["--dry", "--rounds", "1"] if is_dry else [])]
        yield Step(op, each, python(*words), {"TORCHDYNAMO_DISABLE": "1"} if is_dry else {})


def sanitized() -> Iterator[Step]:
    """The kernel in CUDA C++ under each checker of compute-sanitizer."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    file, test = SANITIZED
    pytest = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    tests = python(*pytest, file, "-k", test)
    for checker in CHECKERS:
        options = ["--tool", checker, "--kernel-name", f"kns={KERNEL}", "--target-processes", "application-only"]
        command = [tool or "compute-sanitizer", *options, "--error-exitcode", "9", "--print-limit", "5", *tests]
        yield Step(checker, LIMITS["sanitizer"], command)


def steps(folder: Path, is_dry: bool, runner: Runner) -> Iterator[Step]:
    """All of them, each made when its turn has come; what a dry run leaves out needs a device in every line."""
    yield from prepared(folder, is_dry)
    yield from tested(folder, is_dry)
    yield from timed(folder, is_dry, runner.left())
    if not is_dry:
        yield pytest(folder, "stress", STRESS)
        yield from sanitized()


def main(arguments: list[str] | None = None) -> int:
    """Run every step, write the results and print the table; status 1 where a step did not end well."""
    args = parse(arguments)
    out = args.out or (Path(tempfile.mkdtemp(prefix="bench-gpu-")) if args.dry else device.RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as name:
        folder = Path(name)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(folder / "site")])
        times = DRY_TIMES if args.dry else 1
        runner = Runner(times * args.budget - RESERVED, out / "gpu.log", folder)
        for step in steps(folder, args.dry, runner):
            runner.take(replace(step, limit=times * step.limit))
        found = summary.collected(folder, runner.done)
    card = DRY if args.dry else found["facts"].get("device", "unknown")
    path = out / device.file_of(card).name
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "gpu.log").replace(path.with_suffix(".log"))
    print(f"\n{summary.text(found)}\nwritten: {path} and {path.with_suffix('.log').name}")
    is_wrong = any(row["name"] == report.OURS and row["fault"].startswith("wrong") for row in found["rows"])
    return 0 if all(done.ended == "ok" for done in runner.done) and not found["failed tests"] and not is_wrong else 1


if __name__ == "__main__":
    sys.exit(main())
