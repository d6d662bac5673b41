"""Machine code of Triton's kernels: the committed limits hold, and the report finds what is planted."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton.tools.tensor_descriptor", reason="needs Triton 3.4 or later")

import mrtkern
from bench import static
from mrtkern.ops import OPS
from tests.tools.repository import ROOT

GOOD = static.Code(
    op="op", kernel="kernel", arch="sm_80", registers=100, spills=0, shared=1000, matrix="HMMA", products=8, copies=4,
    wide=1.0, instructions=500, warps=4, resident=4, rules=("matrix", "wide"), room=1000,
)  # fmt: skip
LIMITS = {"registers": 100, "instructions": 500, "matrix": "HMMA", "occupancy": 0.25}


@pytest.mark.compile
@pytest.mark.parametrize("archs", [("sm_90",), pytest.param((), marks=pytest.mark.full)], ids=["one", "all"])
def test_every_kernel_keeps_its_limits_on_every_target(archs: tuple[str, ...]) -> None:
    version = importlib.metadata.version("triton")
    if f"triton=={version}\n" not in (ROOT / "constraints.txt").read_text(encoding="utf-8"):
        pytest.skip(f"the limits are of the compiler in constraints.txt, this is Triton {version}")
    codes = static.compile_modules(static.modules_of(OPS), archs)
    limits = {op: static.committed(op) for op in OPS}
    new = [f"{code.op}, {code.key}" for code in codes if code.key not in limits[code.op]]
    assert new == [], "run `python -m bench --static` and commit what it writes"
    assert [text for code in codes for text in static.faults(code, limits[code.op][code.key])] == []


@pytest.mark.compile
def test_planted_faults_of_machine_code_are_found() -> None:
    codes = {code.kernel: code for code in static.compile_modules(["tests.tools.static_faults"])}
    found = {kernel: " ".join(static.faults(code, None)) for kernel, code in codes.items()}
    assert found["good"] == ""
    assert "spills" in found["a tile that spills"]
    assert "loaded 16 at a time" in found["loads of two bytes"]
    assert "no matrix instruction" in found["no tensor cores"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"spills": 1}, "1 spills"),
        ({"shared": 1001}, "1001 bytes of shared memory where there are 1000"),
        ({"wide": 0.89}, "only 89% of the bytes in hot loops loaded 16 at a time"),
        ({"rules": ("some wide",), "wide": 0.0}, "no byte in hot loops loaded 16 at a time"),
        ({"matrix": "", "products": 0}, "no matrix instruction in a 16-bit product"),
        ({"registers": 111}, "111 registers where 100 are committed"),
        ({"instructions": 551}, "551 instructions where 500 are committed"),
        ({"resident": 3}, "occupancy 18.8% where 25.0% is committed"),
        ({"resident": 0, "warps": 32}, "a program of 32 warps with 100 registers fits no multiprocessor"),
        ({"matrix": "HGMMA"}, "matrix instruction HGMMA where HMMA is committed"),
    ],
)
def test_a_regression_is_said_in_a_sentence(change: dict[str, object], sentence: str) -> None:
    assert static.faults(GOOD, LIMITS) == []
    assert static.faults(replace(GOOD, **change), LIMITS)[0] == f"op, kernel | sm_80: {sentence}"  # type: ignore[arg-type]


def test_fewer_programs_of_more_warps_are_no_lower_occupancy() -> None:
    assert static.faults(replace(GOOD, resident=2, warps=8), LIMITS) == []


def test_the_innermost_loops_that_load_are_the_hot_ones() -> None:
    text = [
        ".L_outer:", "LDG.E", ".L_inner:", "LDG.E.128", "FADD", "BRA .L_inner", ".L_sum:", "FADD", "BRA .L_sum",
        "BRA .L_outer", "EXIT",
    ]  # fmt: skip
    opcodes, hot = static.hot_loops(text, r"\.(L_\w+):", r"BRA \.(L_\w+)", r"([A-Z.0-9]+)")
    assert len(opcodes) == 8
    assert hot == ["LDG.E.128", "FADD", "BRA"]


def test_a_loop_that_goes_on_from_two_places_is_one_loop() -> None:
    text = [".L_loop:", "LDG.E.128", "BRA .L_loop", "LDG.E", "BRA .L_loop", "EXIT"]
    assert static.hot_loops(text, r"\.(L_\w+):", r"BRA \.(L_\w+)", r"([A-Z.0-9]+)")[1] == [
        "LDG.E.128", "BRA", "LDG.E", "BRA",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("opcodes", "share"),
    [
        (["LDG.E.128.CONSTANT", "LDG.E.U16"], 16 / 18),
        (["LDGSTS.E.BYPASS.128", "LDGSTS.E"], 16 / 20),
        (["global_load_dwordx4", "buffer_load_ushort", "global_load_dwordx2"], 16 / 26),
        (["UTMALDG.2D", "FADD"], 1.0),
    ],
)
def test_bytes_are_counted_by_the_width_of_their_load(opcodes: list[str], share: float) -> None:
    assert static.wide_share(opcodes) == share


MODULES = [importlib.import_module(name) for name in static.modules_of(OPS)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_kernels_for_triton_state_aligned_and_unaligned_signatures(module: Any) -> None:
    assert {signature.has_wide_loads for signature in module.SIGNATURES} == {False, True}
    built = [(signature.name, arch) for signature in module.SIGNATURES for arch in signature.targets]
    assert len(set(built)) == len(built)


# Every kernel that is launched is in the report


def launched(source: str) -> set[str]:
    """Names of the kernels that a program launches: `name` of every name[grid](...)."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    kernels = [function.value for function in calls if isinstance(function, ast.Subscript)]
    return {ast.unparse(kernel).split(".")[-1] for kernel in kernels}


def jitted(source: str) -> set[str]:
    """Names of the functions that Triton compiles."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return {f.name for f in functions if "triton.jit" in map(ast.unparse, f.decorator_list)}


def test_a_launch_is_known_by_the_name_of_its_kernel() -> None:
    source = "kernels.pull[(1, 2)](x, BLOCK=3)\nscale[grid](y)\ntable[0]\n@triton.jit\ndef scale(Y):\n    helper(Y)\n"
    assert launched(source) == {"pull", "scale"}
    assert jitted(source) == {"scale"}


def test_every_kernel_that_is_launched_has_a_signature() -> None:
    root = Path(mrtkern.__file__).parent
    sources = {path: path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    kernels = set().union(*map(jitted, sources.values()))
    launches = {path: launched(source) for path, source in sources.items() if "import triton" in source}
    unknown = {str(path): names - kernels for path, names in launches.items() if names - kernels}
    assert unknown == {}, "launch a kernel by its own name"
    stated = {signature.kernel.fn.__name__ for module in MODULES for signature in module.SIGNATURES}
    assert set().union(*launches.values()) == stated
