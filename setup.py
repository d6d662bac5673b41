"""Build mrtkern._C with setuptools and pybind11 alone; everything declarative is in pyproject.toml.

One object per source, each with its own instruction set: one binary holds every path and asks the machine at run time.
No compiler: the extension is left out and the PyTorch reference runs. A compiler that fails: the installation fails.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

# Results must not depend on the compiler: a fused multiply-add stands only where the source asks for one.
COMMON_FLAGS = [
    "-std=c++17", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math", "-Wall", "-Wextra",
]  # fmt: skip
ISA_FLAGS = {  # csrc/isa/<name>.cpp; every other source is compiled for the baseline machine
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [
        "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mavx2", "-mfma", "-mf16c",
        "-mprefer-vector-width=512",
    ],
}  # fmt: skip
JOBS = 2  # sources compiled at a time: enough that the longest of them decides how long a build takes, not their sum


def is_x86_64() -> bool:
    """Whether the AVX paths exist here; a 32-bit Python on a 64-bit machine has only the portable one."""
    return platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32


def find_compiler() -> list[str] | None:
    """The C++ compiler as the start of a command: $CXX if it is set, else the first of c++, g++, clang++; or None."""
    if os.name == "nt":  # the flags above are those of gcc and clang; Windows gets the pure-Python installation
        return None
    asked = shlex.split(os.environ.get("CXX", ""))
    for command in [asked] if asked else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    return None


def sources() -> list[Path]:
    """The C++ files of the extension. Those of csrc/isa are the longest to compile, so they come first."""
    left_out = {CSRC / "isa" / f"{name}.cpp" for name in ISA_FLAGS if name != "portable" and not is_x86_64()}
    found = {path for path in CSRC.rglob("*.cpp") if path.parent.name != "emulator"} - left_out
    return sorted(found, key=lambda path: (path.parent.name != "isa", path))


def compile_command(compiler: list[str], source: Path, target: Path) -> list[str]:
    """The command that makes `target` of `source`, with a list of the headers it read beside it."""
    import pybind11  # here, so that the tests can read the flags without it

    include = [CSRC, pybind11.get_include(), sysconfig.get_path("include"), sysconfig.get_path("platinclude")]
    flags = ISA_FLAGS.get(source.stem, []) if source.parent.name == "isa" else []
    # CXXFLAGS is not read: -march=native or -ffast-math would give one machine other results than the next.
    return [
        *compiler, *shlex.split(os.environ.get("CPPFLAGS", "")), *COMMON_FLAGS, *flags,
        *(f"-I{path}" for path in dict.fromkeys(map(str, include))),
        "-MMD", "-MF", f"{target}.d", "-c", str(source), "-o", str(target),
    ]  # fmt: skip


def is_fresh(target: Path, command: list[str]) -> bool:
    """Whether `target` was made by this very command from files that have not changed since."""
    record, headers = Path(f"{target}.cmd"), Path(f"{target}.d")
    if not (target.exists() and headers.exists() and record.exists() and record.read_text() == shlex.join(command)):
        return False
    read = shlex.split(headers.read_text().replace("\\\n", " ").partition(":")[2])
    return all(os.path.exists(path) and os.path.getmtime(path) <= target.stat().st_mtime for path in read)


class BuildExt(build_ext):
    """Compiles what has changed, JOBS at a time, and links. The objects in build/ serve every kind of installation."""

    def build_extension(self, ext: Extension) -> None:
        compiler = find_compiler()
        assert compiler is not None  # otherwise setup() was given no extension
        folder = ROOT / "build" / f"objects-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        pool = ThreadPoolExecutor(JOBS)
        compiled = [pool.submit(self.compile_object, compiler, ROOT / source, folder) for source in ext.sources]
        wait(compiled, return_when=FIRST_EXCEPTION)
        pool.shutdown(cancel_futures=True)  # after an error nothing new starts
        objects = [future.result() for future in compiled]
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
        link_flags = ["-pthread", *shlex.split(os.environ.get("LDFLAGS", ""))]
        self.call([*compiler, *shared, *map(str, objects), *link_flags, "-o", str(target)])

    def compile_object(self, compiler: list[str], source: Path, folder: Path) -> Path:
        """The object of one source: an earlier one if it is fresh."""
        target = folder / ("-".join(source.relative_to(CSRC).with_suffix("").parts) + ".o")
        command = compile_command(compiler, source, target)
        if not is_fresh(target, command):
            target.unlink(missing_ok=True)
            self.call(command)
            Path(f"{target}.cmd").write_text(shlex.join(command))
        return target

    def call(self, command: list[str]) -> None:
        """Run one command; its failure is the installation's."""
        self.announce(shlex.join(command), level=2)
        if status := subprocess.run(command, check=False).returncode:
            raise SystemExit(f"mrtkern: compiling failed with status {status}: {shlex.join(command)}")


def extensions() -> list[Extension]:
    """mrtkern._C, or nothing (and one line) where there is no compiler."""
    if find_compiler() is None:
        if {"bdist_wheel", "editable_wheel", "build_ext"} & set(sys.argv):  # not while only the metadata are asked for
            looked = os.environ.get("CXX") or "c++, g++, clang++"
            print(f"mrtkern: no C++ compiler ({looked}): installing without compiled kernels", file=sys.stderr)
        return []
    relative = [str(path.relative_to(ROOT)) for path in sources()]  # setuptools refuses absolute names
    return [Extension("mrtkern._C", relative, language="c++")]


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt})
