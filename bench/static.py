"""Machine code of every Triton kernel, compiled for devices that need not be here, and the limits it is held to.

`python -m bench --static [op ...]` compiles all SIGNATURES of operations for their targets in two child
processes (Triton can interpret or compile in a process, not both) and the CUDA kernels (bench/static_cuda.py), prints a
table, and writes `bench/limits/<op>.json` unless a rule is broken. tests/kernels/test_static.py holds later code to
these.

Rules: no spills; matrix instructions where products are of 16-bit numbers; at least 90 % of the bytes that hot loops
load come 16 at a time where inputs are aligned; shared memory within the target. Registers and instructions may exceed
what is committed by a tenth; occupancy (bench/occupancy.py) may not fall.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bench import occupancy
from mrtkern.ops import OPS

LIMITS = Path(__file__).with_name("limits")
ROOT = Path(__file__).resolve().parent.parent
PROCESSES = 2
WIDE = 0.9  # share of the bytes loaded in hot loops that come 16 at a time
SLACK = 1.1  # of registers and instructions, so that an innocent change needs no new limits

MATRIX = ("HMMA", "HGMMA", "UTCHMMA", "IMMA", "v_mfma")
ASYNC = ("LDGSTS", "UTMALDG", "UTMASTG", "UBLKCP")
LOADED = {  # bytes per thread of a load, by what its opcode contains; 4 otherwise
    "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1,
    "dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "short": 2, "ushort": 2, "sshort": 2, "ubyte": 1, "sbyte": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Code:
    """What one signature became on one target."""

    op: str
    kernel: str
    arch: str
    registers: int
    spills: int
    shared: int  # bytes
    matrix: str  # kind of matrix instruction, or ""
    products: int  # how many of them
    copies: int  # asynchronous copies
    wide: float  # share of the bytes loaded in hot loops that come 16 at a time
    instructions: int
    warps: int  # of a program
    resident: int  # programs on a multiprocessor at once
    rules: tuple[str, ...]  # of "matrix", "wide", "some wide": what must hold
    room: int  # bytes of shared memory of the target

    @property
    def key(self) -> str:
        """Where it stands in the file of limits."""
        return f"{self.kernel} | {self.arch}"

    @property
    def occupancy(self) -> float:
        """Share of a multiprocessor's places for warps that are taken."""
        return occupancy.occupancy(self.arch, self.resident, self.warps)


COMMITTED = (
    "registers", "shared", "matrix", "products", "copies", "wide", "instructions", "warps", "resident", "occupancy"
)  # fmt: skip


def faults(code: Code, committed: dict[str, Any] | None) -> list[str]:
    """Every broken rule in a sentence."""
    found = []
    if code.spills:
        found.append(f"{code.spills} spills")
    if code.shared > code.room:
        found.append(f"{code.shared} bytes of shared memory where there are {code.room}")
    if not code.resident:
        found.append(f"a program of {code.warps} warps with {code.registers} registers fits no multiprocessor")
    if "matrix" in code.rules and not code.products:
        found.append("no matrix instruction in a 16-bit product")
    if "wide" in code.rules and code.wide < WIDE:
        found.append(f"only {code.wide:.0%} of the bytes in hot loops loaded 16 at a time")
    if "some wide" in code.rules and code.wide == 0:
        found.append("no byte in hot loops loaded 16 at a time")
    if committed is not None:
        for name in ("registers", "instructions"):
            now, before = getattr(code, name), committed[name]
            if now > SLACK * before:
                found.append(f"{now} {name} where {before} are committed")
        if code.occupancy < committed["occupancy"]:
            found.append(f"occupancy {code.occupancy:.1%} where {committed['occupancy']:.1%} is committed")
        if code.matrix != committed["matrix"]:
            found.append(
                f"matrix instruction {code.matrix or 'none'} where {committed['matrix'] or 'none'} is committed"
            )
    return [f"{code.op}, {code.key}: {text}" for text in found]


# Reading machine code


def hot_loops(lines: Iterable[str], label: str, jump: str, opcode: str) -> tuple[list[str], list[str]]:
    """All opcodes, and those of the innermost loops that load most, or half as much (all of them where no loop loads).

    label, jump: patterns whose group 1 is a label; opcode: a pattern whose group 1 is the opcode of a line.
    """
    labels: dict[str, int] = {}
    opcodes: list[str] = []
    ends: dict[int, int] = {}  # begin of a loop -> its end: the last of the jumps there
    for line in lines:
        if found := re.match(label, line):
            labels[found[1]] = len(opcodes)
        elif found := re.match(opcode, line):
            opcodes.append(found[1])
            target = re.search(jump, line)
            if target and labels.get(target[1], len(opcodes)) < len(opcodes) - 1:
                ends[labels[target[1]]] = len(opcodes)
    spans = list(ends.items())
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    loops = [opcodes[begin:end] for begin, end in inner]
    most = max((loaded(loop).total() for loop in loops), default=0)
    hot = [name for loop in loops if most and 2 * loaded(loop).total() >= most for name in loop]
    return opcodes, hot or opcodes


def is_load(opcode: str) -> bool:
    """Whether it loads from global memory into a thread's registers or, by the thread, into shared memory."""
    return opcode.startswith(("LDG.", "LDGSTS", "UTMALDG", "global_load", "buffer_load"))


def loaded(opcodes: Iterable[str]) -> Counter[int]:
    """Size of a thread's load -> bytes loaded so; a tensor descriptor's copies count as 16 at a time."""
    sizes = Counter[int]()
    for opcode in filter(is_load, opcodes):
        parts = re.split(r"[._]", opcode)
        size = 16 if opcode.startswith("UTMALDG") else next((LOADED[part] for part in parts if part in LOADED), 4)
        sizes[size] += size
    return sizes


def wide_share(opcodes: Iterable[str]) -> float:
    """Share of the bytes loaded that come 16 at a time."""
    sizes = loaded(opcodes)
    return sizes[16] / sizes.total() if sizes else 1.0


def programs() -> Path:
    """Where Triton's wheel has NVIDIA's programs that read machine code."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def tool(name: str, *arguments: str, data: bytes) -> str:
    """Output of a program of Triton's wheel about a binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(data)
        file.flush()
        command = [str(programs() / name), *arguments, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def nvidia(compiled: Any) -> dict[str, Any]:
    """Numbers of a cubin."""
    usage = tool("cuobjdump", "--dump-resource-usage", data=compiled.asm["cubin"])
    lines = tool("nvdisasm", "-c", data=compiled.asm["cubin"]).splitlines()
    found = re.search(r"REG:(\d+)", usage)
    assert found is not None
    return sass(lines, int(found[1]))


def sass(lines: Iterable[str], registers: int) -> dict[str, Any]:
    """Numbers of one kernel's disassembly. Every use of local memory counts as a spill."""
    all_, hot = hot_loops(
        lines, r"^\s*\.(L_[\w.$]+):", r"\bBRA\b.*\(\.(L_[\w.$]+)\)",
        r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)",
    )  # fmt: skip
    return summary(all_, hot, registers, sum(name.startswith(("STL", "LDL")) for name in all_))


def amd(compiled: Any) -> dict[str, Any]:
    """Numbers of an assembly text."""
    text = compiled.asm["amdgcn"]
    counts = {name: int(value) for name, value in re.findall(r"\.(\w+_count):\s+(\d+)", text)}
    all_, hot = hot_loops(
        text.splitlines(), r"^(\.LBB\w+):", r"\bs_c?branch\w*\s+(\.LBB\w+)", r"^\t(?!s_nop)([a-z][a-z0-9_]+)"
    )
    # Scalar registers are spilled to lanes of vector registers, not to memory.
    return summary(all_, hot, counts["vgpr_count"], counts["vgpr_spill_count"])


def summary(all_: list[str], hot: list[str], registers: int, spills: int) -> dict[str, Any]:
    """What both kinds of machine code have."""
    products = [name for name in all_ if name.startswith(MATRIX)]
    kind = next((name for name in MATRIX if products and products[0].startswith(name)), "")
    return {
        "registers": registers,
        "spills": spills,
        "matrix": kind,
        "products": len(products),
        "copies": sum(name.startswith(ASYNC) for name in all_),
        "wide": round(wide_share(hot), 3),
        "instructions": len(all_),
    }


# Compiling


def compile_signature(op: str, signature: Any, arch: str) -> Code:
    """One signature for one target."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mrtkern import _triton

    launch = signature.launch(arch) if signature.launch else None
    constants = {**(launch.blocks if launch else {}), **signature.constants}
    constants = {name: value for name, value in constants.items() if name in signature.kernel.arg_names}
    options = {**(launch.options if launch else {}), **signature.options}
    types = {name: signature.types.get(name, "constexpr") for name in signature.kernel.arg_names}
    missing = [name for name, kind in types.items() if kind == "constexpr" and name not in constants]
    if missing or "enable_fp_fusion" not in options:
        raise ValueError(f"{op}, {signature.name}: needs enable_fp_fusion and values of {missing}")
    aligned = {(list(types).index(name),): [["tt.divisibility", 16]] for name in signature.aligned}
    is_amd = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if is_amd else GPUTarget("cuda", int(arch[3:]), 32)
    source = ASTSource(signature.kernel, types, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=target, options=options)
    rules = ("matrix",) * signature.has_matrix + ("wide",) * signature.has_wide_loads
    numbers = amd(compiled) if is_amd else nvidia(compiled)
    shared, warps = int(compiled.metadata.shared), int(compiled.metadata.num_warps)
    resident = occupancy.resident(
        arch, registers=numbers["registers"], shared=shared, warps=warps,
        tensor_columns=getattr(compiled.metadata, "tmem_size", 0),
    )  # fmt: skip
    return Code(
        op, signature.name, arch, shared=shared, warps=warps, resident=resident, rules=rules, room=_triton.SHARED[arch],
        **numbers,
    )  # fmt: skip


def work(modules: Sequence[str], archs: Sequence[str], index: int, count: int) -> None:
    """In a child: compile every `count`-th signature and print each result as a line of JSON."""
    jobs = [
        (name.removeprefix("mrtkern.ops.").partition(".")[0], signature, arch)
        for name in modules
        for signature in importlib.import_module(name).SIGNATURES
        for arch in signature.targets
        if not archs or arch in archs
    ]
    for job in jobs[index::count]:
        print(json.dumps(asdict(compile_signature(*job))), flush=True)


def compile_modules(modules: Sequence[str], archs: Sequence[str] = ()) -> list[Code]:
    """All signatures of these modules for these targets, or for all, compiled in child processes."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.static", str(index), str(PROCESSES), ",".join(archs), *modules],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(PROCESSES)
    ]  # fmt: skip
    texts = [child.communicate() for child in children]
    for child, (_, error) in zip(children, texts, strict=True):
        if child.returncode:
            raise RuntimeError(f"bench: compiling failed\n{error}")
    rows = (json.loads(line) for output, _ in texts for line in output.splitlines())
    codes = [Code(**{**row, "rules": tuple(row["rules"])}) for row in rows]
    return sorted(codes, key=lambda code: (code.op, code.kernel, code.arch))


def modules_of(ops: Iterable[str]) -> list[str]:
    """Where operations have kernels for Triton; a benchmark may be of a part of an operation."""
    names = [f"mrtkern.ops.{op}.triton" for op in ops if op in OPS]
    return [name for name in names if importlib.util.find_spec(name) is not None]


# Limits and report


def committed(op: str) -> dict[str, Any]:
    """What an operation's code was when it was last written down."""
    path = LIMITS / f"{op}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def write(codes: Sequence[Code]) -> None:
    """Write down the numbers of every operation among `codes`."""
    LIMITS.mkdir(exist_ok=True)
    for op in {code.op for code in codes}:
        rows = {code.key: {name: getattr(code, name) for name in COMMITTED} for code in codes if code.op == op}
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
        (LIMITS / f"{op}.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def table(codes: Sequence[Code]) -> Iterator[str]:
    """One line per kernel and target, columns of equal width."""
    names = [*(field.name for field in fields(Code) if field.name not in ("rules", "room")), "occupancy"]
    rows = [names]
    for code in codes:
        shares = {"wide": f"{code.wide:.0%}", "occupancy": f"{code.occupancy:.0%}"}
        cells = {**asdict(code), "matrix": code.matrix or "-", **shares}
        rows.append([str(cells[name]) for name in names])
    widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        yield "  ".join([*texts, *(cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True))])


def publish(codes: Sequence[Code]) -> None:
    """Print, and write the limits unless a rule is broken."""
    print("\n".join(table(codes)))
    broken = [text for code in codes for text in faults(code, None)]
    if broken:
        raise SystemExit("\n".join(["bench: rules of machine code are broken", *broken]))
    write(codes)


if __name__ == "__main__":
    work(sys.argv[4:], sys.argv[3].split(",") if sys.argv[3] else (), int(sys.argv[1]), int(sys.argv[2]))
