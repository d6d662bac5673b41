"""Build mrtkern._C and mrtkern._cuda with setuptools and pybind11 alone; everything declarative is in pyproject.toml.

_C     one object per source, each with its own instruction set: one binary holds every path and asks the machine at run
       time. No compiler: the extension is left out and the PyTorch reference runs.
_cuda  with MRTKERN_CUDA=1, or MRTKERN_CUDA=auto where nvcc and a driver are found: the .cu files, for each architecture
       of MRTKERN_CUDA_ARCHS. CUDA's runtime is linked in, so the module loads on machines without a driver.
A compiler that fails: the installation fails.
"""

from __future__ import annotations

import ctypes.util
import os
import platform
import re
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
# A100, H100, B200 and consumer Blackwell; what has none of these codes compiles the PTX of the first when it starts.
CUDA_ARCHS = "80+ptx;90;100;120"
CUDA_FLAGS = [
    "-std=c++17", "-O3", "-fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden",
]  # fmt: skip
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


def find_nvcc() -> str | None:
    """CUDA's compiler: that of $CUDA_HOME if it is set, else of PATH or of the usual folder; or None."""
    if home := os.environ.get("CUDA_HOME"):
        return shutil.which(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def wants_cuda() -> bool:
    """What MRTKERN_CUDA asks for; one sentence where it cannot be had."""
    asked = os.environ.get("MRTKERN_CUDA") or "0"
    if asked not in ("0", "1", "auto"):
        raise SystemExit(f"mrtkern: MRTKERN_CUDA must be 0, 1 or auto, got {asked!r}")
    if asked == "1" and find_nvcc() is None:
        raise SystemExit("mrtkern: MRTKERN_CUDA=1 needs nvcc, found none in $CUDA_HOME, or PATH and /usr/local/cuda")
    if asked == "1" and find_compiler() is None:
        raise SystemExit("mrtkern: MRTKERN_CUDA=1 needs a C++ compiler, found none")
    has_all = find_nvcc() is not None and find_compiler() is not None
    return asked == "1" or (asked == "auto" and has_all and ctypes.util.find_library("cuda") is not None)


def cuda_archs() -> list[str]:
    """MRTKERN_CUDA_ARCHS: compute capabilities without the point, +ptx where the intermediate form is kept as well."""
    archs = (os.environ.get("MRTKERN_CUDA_ARCHS") or CUDA_ARCHS).split(";")
    for arch in archs:
        if not re.fullmatch(r"\d{2,3}[af]?(\+ptx)?", arch):
            raise SystemExit(f"mrtkern: MRTKERN_CUDA_ARCHS must be like {CUDA_ARCHS}, got {arch!r}")
    return archs


def sources() -> list[Path]:
    """The C++ files of mrtkern._C. Those of csrc/isa are the longest to compile, so they come first."""
    left_out = {CSRC / "isa" / f"{name}.cpp" for name in ISA_FLAGS if name != "portable" and not is_x86_64()}
    left_out.add(CSRC / "bindings_cuda.cpp")
    return sorted({*CSRC.rglob("*.cpp")} - left_out, key=lambda path: (path.parent.name != "isa", path))


def cuda_sources() -> list[Path]:
    """The files of mrtkern._cuda; only the bindings see pybind11, which nvcc takes long to read."""
    return [*sorted(CSRC.rglob("*.cu"), reverse=True), CSRC / "bindings_cuda.cpp"]


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


def nvcc_command(nvcc: str, source: Path, target: Path, archs: list[str]) -> list[str]:
    """The command that makes an object of a .cu file for all architectures, with a list of the headers it read."""
    numbers = [(arch.removesuffix("+ptx"), arch.endswith("+ptx")) for arch in archs]
    codes = [(arch, f"[sm_{arch},compute_{arch}]" if with_ptx else f"sm_{arch}") for arch, with_ptx in numbers]
    return [
        nvcc, *CUDA_FLAGS, f"--threads={JOBS}", *(f"-gencode=arch=compute_{arch},code={code}" for arch, code in codes),
        f"-I{CSRC}", "-MMD", "-MF", f"{target}.d", "-c", str(source), "-o", str(target),
    ]  # fmt: skip


def cuda_link_command(nvcc: str, objects: list[str], target: Path) -> list[str]:
    """The command that links mrtkern._cuda. nvcc knows where its libraries are."""
    return [nvcc, "-shared", "-cudart=static", "-Xcompiler=-pthread", *objects, "-o", str(target)]


def is_fresh(target: Path, command: list[str]) -> bool:
    """Whether `target` was made by this very command from files that have not changed since."""
    record, headers = Path(f"{target}.cmd"), Path(f"{target}.d")
    if not (target.exists() and headers.exists() and record.exists() and record.read_text() == shlex.join(command)):
        return False
    read = shlex.split(headers.read_text().replace("\\\n", " ").partition(":")[2])
    return all(os.path.exists(path) and os.path.getmtime(path) <= target.stat().st_mtime for path in read)


class BuildExt(build_ext):
    """Compiles what has changed, JOBS or --parallel at a time, and links. The objects in build/ are used again."""

    def build_extension(self, ext: Extension) -> None:
        compiler = find_compiler()
        assert compiler is not None  # otherwise setup() was given no extension
        nvcc = find_nvcc() if ext.name == "mrtkern._cuda" else None
        folder = ROOT / "build" / f"objects-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        pool = ThreadPoolExecutor(self.parallel or JOBS)
        compiled = [pool.submit(self.compile_object, compiler, nvcc, ROOT / source, folder) for source in ext.sources]
        wait(compiled, return_when=FIRST_EXCEPTION)
        pool.shutdown(cancel_futures=True)  # after an error nothing new starts
        objects = [str(future.result()) for future in compiled]
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if nvcc is not None:
            self.call(cuda_link_command(nvcc, objects, target))
            return
        shared = ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
        link_flags = ["-pthread", *shlex.split(os.environ.get("LDFLAGS", ""))]
        self.call([*compiler, *shared, *objects, *link_flags, "-o", str(target)])

    def compile_object(self, compiler: list[str], nvcc: str | None, source: Path, folder: Path) -> Path:
        """The object of one source: an earlier one if it is fresh."""
        target = folder / ("-".join(source.relative_to(CSRC).parts).removesuffix(".cpp") + ".o")
        if source.suffix == ".cu":
            assert nvcc is not None
            command = nvcc_command(nvcc, source, target, cuda_archs())
        else:
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
    """What can be built here and is asked for; one line where the compiler is missing."""
    found = [Extension("mrtkern._cuda", relative(cuda_sources()), language="c++")] if wants_cuda() else []
    if find_compiler() is not None:
        return [Extension("mrtkern._C", relative(sources()), language="c++"), *found]
    if {"bdist_wheel", "editable_wheel", "build_ext"} & set(sys.argv):  # not while only the metadata are asked for
        looked = os.environ.get("CXX") or "c++, g++, clang++"
        print(f"mrtkern: no C++ compiler ({looked}): installing without compiled kernels", file=sys.stderr)
    return []


def relative(paths: list[Path]) -> list[str]:
    """The names of sources as setuptools wants them: it refuses absolute ones."""
    return [str(path.relative_to(ROOT)) for path in paths]


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt})
