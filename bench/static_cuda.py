"""Machine code of the CUDA kernels: what nvcc makes of every .cu for every architecture, as rows of bench/static.

The flags are those of setup.py; the disassembler is that of Triton's wheel. A kernel serves every type and alignment,
so of its loads only some must come 16 bytes at a time. How much shared memory a launch asks for depends on the call:
occupancy is that of the largest block and of the memory which the kernel declares. Limits:
`bench/limits/<op>.cuda.json`.
"""

from __future__ import annotations

import math
import re
import runpy
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import occupancy, static
from mrtkern import _triton

BUILD: dict[str, Any] = runpy.run_path(str(static.ROOT / "setup.py"))
ARCHS = BUILD["CUDA_ARCHS"].split(";")
RULES = ("some wide",)
MOST_THREADS = 1024  # of a block whose kernel has no __launch_bounds__


def objects(folder: Path, parts: Iterable[str]) -> dict[Path, Path]:
    """The .cu files of some folders of csrc and their objects for all architectures. A warning is an error."""
    sources = [path for path in BUILD["cuda_sources"]() if path.suffix == ".cu" and path.parent.name in parts]
    if BUILD["find_nvcc"]() is None:
        return {}

    def compiled(source: Path) -> Path:
        target = folder / f"{source.parent.name}-{source.stem}.o"
        command = BUILD["nvcc_command"](BUILD["find_nvcc"](), source, target, ARCHS)
        done = subprocess.run([*command, "-Werror=all-warnings"], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"bench: compiling {source.name} failed\n{done.stdout}{done.stderr}")
        return target

    with ThreadPoolExecutor(BUILD["JOBS"]) as pool:
        return dict(zip(sources, pool.map(compiled, sources), strict=True))


def codes(objects: dict[Path, Path]) -> list[static.Code]:
    """All kernels of these objects on all architectures."""
    found = [code for source, target in objects.items() for code in codes_of(f"{source.parent.name}.cuda", target)]
    return sorted(found, key=lambda code: (code.op, code.kernel, code.arch))


def codes_of(op: str, target: Path) -> Iterator[static.Code]:
    """The kernels of one object."""
    with tempfile.TemporaryDirectory() as folder:
        tool = static.programs() / "cuobjdump"
        subprocess.run([tool, "--extract-elf", "all", target.resolve()], cwd=folder, check=True, capture_output=True)
        for cubin in sorted(Path(folder).glob("*.cubin")):
            arch = cubin.suffixes[-2].removeprefix(".")
            usage = static.tool("cuobjdump", "--dump-resource-usage", data=cubin.read_bytes())
            resources = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
            parts = kernels(static.tool("nvdisasm", "-c", data=cubin.read_bytes()).splitlines()) if resources else {}
            threads = largest_blocks(static.tool("cuobjdump", "--dump-elf", data=cubin.read_bytes()))
            for symbol, registers, stack, shared, local in resources:
                numbers = static.sass(parts[symbol], int(registers))
                numbers["spills"] += int(stack) + int(local)
                takes = {"shared": declared(arch, int(shared)), "warps": threads.get(symbol, MOST_THREADS) // 32}
                resident = occupancy.resident(arch, registers=int(registers), **takes)
                yield static.Code(
                    op, name(symbol), arch, resident=resident, rules=RULES, room=_triton.SHARED[arch], **takes,
                    **numbers,
                )  # fmt: skip


def declared(arch: str, shared: int) -> int:
    """Bytes of shared memory that a kernel declares: from sm_90 on cuobjdump adds what the driver keeps."""
    return shared - occupancy.MULTIPROCESSORS[arch].kept * (int(arch[3:]) >= 90)


def largest_blocks(elf: str) -> dict[str, int]:
    """Threads of the largest block of each kernel, as its __launch_bounds__ say."""
    pattern = r"^\.nv\.info\.(\S+)$|EIATTR_MAX_THREADS\s+Format:\s+\S+\s+Value:((?:\s+0x[0-9a-f]+){3})"
    found, kernel = {}, ""
    for symbol, sizes in re.findall(pattern, elf, flags=re.MULTILINE):
        kernel = symbol or kernel
        if sizes:
            found[kernel] = math.prod(int(size, 16) for size in sizes.split())
    return found


def kernels(lines: list[str]) -> dict[str, list[str]]:
    """The disassembly of a file by its kernels."""
    parts: dict[str, list[str]] = {}
    current: list[str] = []
    for line in lines:
        if found := re.match(r"\.text\.(\S+):$", line):
            current = parts[found[1]] = []
        current.append(line)
    return parts


def name(symbol: str) -> str:
    """A kernel as it is written: without its namespaces, its result and its parameters."""
    text = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    return re.sub(r"\(anonymous namespace\)::|\b\w+::|^void |\([^()]*\)$", "", text)


def compile_kernels(ops: Iterable[str]) -> list[static.Code]:
    """The kernels of some operations, compiled now; none where there is no nvcc."""
    with tempfile.TemporaryDirectory() as folder:
        return codes(objects(Path(folder), ops))
