"""What a machine can hold of the house rules: where things stand, who imports whom, how long they are."""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mrtkern
from mrtkern._dispatch import BACKENDS
from mrtkern.ops import OPS
from tests.tools.repository import ROOT

TESTS = ROOT / "tests"
PYTHON = [
    ROOT / "setup.py",
    *(path for top in ("mrtkern", "tests", "bench", "examples") for path in sorted((ROOT / top).rglob("*.py"))),
]
PACKAGE = [path for path in PYTHON if path.is_relative_to(ROOT / "mrtkern")]
CSRC = [
    path
    for top in ("csrc", "tests")  # of the tests: what runs on the emulated device
    for path in sorted((ROOT / top).rglob("*"))
    if path.suffix in (".cpp", ".h", ".cu", ".cuh")
]
BUILD: dict[str, Any] = runpy.run_path(str(ROOT / "setup.py"))

REQUIRED = {"__init__", "problem", "op", "reference"}
# of one operation or two
PARTS = {
    "approximate", "arguments", "ground", "graphs", "rule", "limits", "admission", "explain", "stages", "polish",
    "units", "selection", "chance", "checkpoint", "grouped", "large", "owners", "lists", "deduplicate", "linkage",
    "chains", "chunks", "details", "library", "log_prob", "passes", "rows", "tiles", "traffic",
}  # fmt: skip
ALLOWED = REQUIRED | {*BACKENDS, *PARTS}
# who may import whom: what stands higher may import what stands lower, and its own kind; below all, what is named _…
STOREYS = (
    {"ops"},
    {"budget", "distributed", "ids", "loss", "objectives", "select"},
    {"digest", "integrations"},
    {"cli"},
)
VARIABLES = {"MRTKERN_CUDA", "MRTKERN_CUDA_ARCHS", "MRTKERN_ISA"}
LONGEST_FILE, LONGEST_FUNCTION = 500, 60
MOST_VALUES, MOST_PARAMETERS = 8, 10
# of torch, what takes its type or its device from the process where nobody says it
ALLOCATIONS = re.compile(
    r"torch\.(\w*Tensor|empty|empty_strided|zeros|ones|full|arange|range|linspace|logspace|eye|tensor|as_tensor"
    r"|scalar_tensor|rand|randn|randint|randperm|normal|tri[lu]_indices|\w+_window)"
)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def modules(folder: Path) -> dict[str, Path]:
    """Module name -> file; a module that grew into a package counts by its folder."""
    files = {path.stem: path for path in folder.glob("*.py")}
    return files | {path.parent.name: path for path in folder.glob("*/__init__.py")}


def imports(path: Path) -> Iterator[str]:
    """Absolute dotted names of everything a file of this repository imports."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


# Operations


def test_every_operation_has_one_folder() -> None:
    assert {path.parent.name for path in (ROOT / "mrtkern" / "ops").glob("*/__init__.py")} == set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_every_operation_has_the_same_files(op: str) -> None:
    found = set(modules(ROOT / "mrtkern" / "ops" / op))
    assert found >= REQUIRED
    assert found <= ALLOWED


@pytest.mark.parametrize("op", OPS)
def test_the_package_of_an_operation_holds_its_mathematics_and_nothing_executable(op: str) -> None:
    path = ROOT / "mrtkern" / "ops" / op / "__init__.py"
    assert ast.get_docstring(tree(path))
    assert len(tree(path).body) == 1


@pytest.mark.parametrize("op", OPS)
def test_backends_never_import_each_other(op: str) -> None:
    folder = ROOT / "mrtkern" / "ops" / op
    for backend in set(BACKENDS) & set(modules(folder)):
        files = (
            [folder / f"{backend}.py"]
            if (folder / f"{backend}.py").exists()
            else sorted((folder / backend).rglob("*.py"))
        )
        for path in files:
            reached = {
                part for target in imports(path) if target.startswith("mrtkern.ops.") for part in target.split(".")[3:4]
            }
            assert reached.isdisjoint(set(BACKENDS) - {backend}), name(path)


def storey(module: str) -> int:
    """0: the ground, what begins with _ and lattice; whose floor others are. Public names come from all operations."""
    part = module.split(".")[1]
    public = set(mrtkern.__all__) - {"__version__"}
    return 2 if part in public else next((i for i, parts in enumerate(STOREYS, 1) if part in parts), 0)


def test_no_import_runs_upwards() -> None:
    modules = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in PACKAGE}
    arrows = [
        f"{module} -> {target}"
        for path, module in modules.items()
        if path.parent.name != "mrtkern" or path.name not in ("__init__.py", "__main__.py")
        for target in imports(path)
        if target.startswith("mrtkern.") and storey(target) > storey(module)
    ]
    assert {storey(module) for module in modules.values()} == set(range(len(STOREYS) + 1))
    assert arrows == []


def test_integrations_and_examples_use_public_names_only() -> None:
    """What they can do, a user's own file can."""
    files = [*(ROOT / "mrtkern" / "integrations").rglob("*.py"), *(ROOT / "examples").glob("*.py")]
    used = {(name(path), target) for path in files for target in imports(path) if target.startswith("mrtkern.")}
    public = {f"mrtkern.{key}" for key in mrtkern.__all__}
    assert {(file, t) for file, t in used if t not in public and not t.startswith("mrtkern.integrations.")} == set()
    assert files


def test_only_distributed_talks_to_other_processes() -> None:
    talks = re.compile(r"(torch\.distributed|ray)(\.|$)")
    talking = {name(path) for path in PACKAGE for target in imports(path) if talks.match(target)}
    assert {path.split("/")[1] for path in talking} == {"distributed"}


def test_distributed_runs_backends_through_dispatch_alone() -> None:
    private = {*BACKENDS, "tiles", "library"}
    reached = {
        target
        for path in PACKAGE
        if path.is_relative_to(ROOT / "mrtkern" / "distributed")
        for target in imports(path)
        if target.startswith("mrtkern.ops.") and private & set(target.split(".")[3:])
    }
    assert reached == set()


@pytest.mark.parametrize("op", OPS)
def test_every_backend_says_what_it_cannot_run(op: str) -> None:
    """And runs the rest: of a backend that would only refuse there is a sentence instead of a file."""
    files = modules(ROOT / "mrtkern" / "ops" / op)
    for path in (files[backend] for backend in BACKENDS if backend in files):
        bound = {node.name for node in ast.walk(tree(path)) if isinstance(node, (ast.FunctionDef, ast.alias))}
        assert bound >= {"why_not", "forward"}, name(path)
    absent = importlib.import_module(f"mrtkern.ops.{op}.problem").ABSENT
    assert set(absent) == set(BACKENDS) - set(files)


# Tests


def test_every_test_lies_in_a_folder_of_what_it_tests() -> None:
    assert {path.name for path in TESTS.glob("*.py")} == {"conftest.py"}
    assert {path.name for path in TESTS.iterdir()} >= set(OPS)


def test_no_two_files_of_tests_have_the_same_name() -> None:
    """A module of pytest is called after its file alone."""
    names = [path.name for path in PYTHON if path.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))


# The public surface


def test_public_names_are_those_in_all_and_each_has_a_docstring() -> None:
    public = {key for key, value in vars(mrtkern).items() if key[0] != "_" and not isinstance(value, ModuleType)}
    assert public | {"__version__"} == set(mrtkern.__all__)
    assert [key for key in public if not getattr(mrtkern, key).__doc__] == []


def test_the_map_of_the_package_names_every_module() -> None:
    unnamed = set(modules(ROOT / "mrtkern")) - {"__init__", "__main__", "_check"}
    assert {module for module in unnamed if module not in (mrtkern.__doc__ or "")} == set()
    assert re.findall(r"[├└]─ (\w+)", mrtkern.__doc__ or "") == [*BACKENDS]


def test_make_check_takes_every_layer_that_make_test_leaves_out(pytestconfig: pytest.Config) -> None:
    options = pytestconfig.getini("addopts")
    left_out = set(re.findall(r"\w+", options[options.index("-m") + 1])) - {"not", "or"}
    layers = re.search(r"^LAYERS\s*:= (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert layers and left_out == {*layers[1].split(" or "), "full"}


def test_make_help_has_a_sentence_for_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert targets and re.findall(r"^([a-z]+):.* ## [A-Z].*\.$", makefile, re.MULTILINE) == targets[1].split()


def test_the_version_is_the_same_everywhere() -> None:
    quoted = {"pyproject.toml": 'version = "{}"\n', "CITATION.cff": "version: {}\n", "CHANGELOG.md": "## [{}]"}
    for file, pattern in quoted.items():
        assert pattern.format(mrtkern.__version__) in (ROOT / file).read_text(encoding="utf-8"), file


def test_there_are_at_most_three_environment_variables() -> None:
    sources = [path for path in PYTHON if not path.is_relative_to(TESTS)] + CSRC
    found = {word for path in sources for word in re.findall(r"\bMRTKERN_[A-Z_]+\b", path.read_text(encoding="utf-8"))}
    assert found <= VARIABLES


@pytest.mark.parametrize("module", ["_C", "_cuda"])
def test_the_stub_of_an_extension_names_what_it_offers(module: str) -> None:
    extension = pytest.importorskip(f"mrtkern.{module}", reason="installed without these kernels")
    stub = set()
    for node in tree(ROOT / "mrtkern" / f"{module}.pyi").body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            stub.add(node.name)
        elif isinstance(node, ast.AnnAssign):
            stub.add(ast.unparse(node.target))
    offered = {key: value for key, value in vars(extension).items() if key[0] != "_"}
    assert stub == set(offered)
    signatures = {
        key: str((value.__init__ if isinstance(value, type) else value).__doc__) for key, value in offered.items()
    }
    assert [key for key, text in signatures.items() if re.search(r"\barg\d+: ", text)] == [], (
        "py::arg names what it takes"
    )


def is_compiled_by_triton(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and "triton.jit" in map(ast.unparse, node.decorator_list)


def written(module: ast.Module) -> Iterator[ast.AST]:
    """All nodes but those inside of kernels for Triton, which know no names at a call."""
    waiting: list[ast.AST] = [module]
    while waiting:
        node = waiting.pop()
        if not is_compiled_by_triton(node):
            yield node
            waiting.extend(ast.iter_child_nodes(node))


def operators(module: ast.Module) -> set[str]:
    """Names of the functions that are registered with torch.library, whose schemas are flat."""
    calls = [call for call in ast.walk(module) if isinstance(call, ast.Call)]
    registered = [call.args[2:] for call in calls if ast.unparse(call.func) == "_operators.define"]
    return {ast.unparse(body) for bodies in registered for body in bodies}


def too_many(source: str) -> list[int]:
    """Lines of functions with too many parameters without names, and of calls with too many values without."""
    module = ast.parse(source)
    exempt = operators(module)
    functions = [
        node.lineno
        for node in written(module)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name not in exempt
        if len(node.args.posonlyargs + node.args.args) > MOST_PARAMETERS
    ]
    calls = [
        node.lineno
        for node in written(module)
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Subscript)  # name[grid](…) launches a kernel
        if len(node.args) > MOST_VALUES
    ]
    return sorted(functions + calls)


def test_what_is_handed_over_without_a_name_is_counted() -> None:
    nine, eleven = ", ".join("abcdefghi"), ", ".join("abcdefghijk")
    assert too_many(f"f({nine})\ndef f({eleven}): pass\nasync def g({eleven}): pass") == [1, 2, 3]
    assert too_many(f"f({nine[:-3]}, i=i)\ndef f({eleven[:-3]}, *, k): pass\nkernel[grid]({eleven})") == []
    assert too_many(f"@triton.jit\ndef f({eleven}):\n    f({eleven})\n") == []
    assert too_many(f"def _run({eleven}): pass\n_operators.define('f', '()', _run, _fake)") == []


def test_many_values_have_names() -> None:
    """At most 8 values of a call and 10 parameters of a function go by their place; kernels for Triton go free, and
    parameters of operators."""
    sources = [*PYTHON, *(ROOT / "mrtkern" / f"{module}.pyi" for module in ("_C", "_cuda"))]
    found = {name(path): lines for path in sources if (lines := too_many(path.read_text(encoding="utf-8")))}
    assert found == {}


def test_operators_are_registered_in_one_place_and_their_bodies_are_called_run() -> None:
    registers = re.compile(r"torch\.library\.(define|impl|register_\w+|custom_op)\b")
    assert {name(path) for path in PACKAGE if registers.search(path.read_text(encoding="utf-8"))} == {
        "mrtkern/_operators.py"
    }
    bodies = set().union(*(operators(tree(path)) for path in PACKAGE))
    assert {body for body in bodies if not re.fullmatch(r"_(run|fake)(_\w+)?", body)} == set()
    assert {"_run", "_fake"} <= bodies


def test_values_cross_the_borders_under_their_names() -> None:
    """Into an extension go no tuples of unknown length; what takes values there has at most 10 parameters."""
    by_position = [
        f"{name(path)}:{call.lineno}"
        for path in PYTHON
        for call in ast.walk(tree(path))
        if isinstance(call, ast.Call) and re.match(r"(_C|C|_cuda|extension)\.\w+$", ast.unparse(call.func))
        if any(isinstance(value, ast.Starred) for value in call.args)
    ]
    bound = [
        f"{name(path)}: {found[1]}"
        for path in CSRC
        if path.is_relative_to(ROOT / "csrc")
        for text in (re.sub(r"<[^<>]*>", "", path.read_text(encoding="utf-8")),)  # commas of types do not count
        for found in re.finditer(r"(\w+|\[\])\(([^(){};]*)\) \{", text)
        if found[2].count(",") + 1 > MOST_PARAMETERS
    ]
    assert by_position == bound == []


# C++


def test_csrc_knows_no_torch_and_only_the_bindings_know_pybind11() -> None:
    for path in CSRC:
        headers = re.findall(r'#\s*include\s*[<"]([^">]+)', path.read_text(encoding="utf-8"))
        assert not [header for header in headers if re.match(r"(torch|ATen|c10)/", header)], name(path)
        if path.parent.name != "bindings" and name(path) not in ("csrc/bindings.cpp", "csrc/bindings_cuda.cpp"):
            assert not [header for header in headers if header.startswith(("pybind11/", "Python.h"))], name(path)


def test_csrc_has_the_folders_of_the_layout() -> None:
    folders = {path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()}
    assert folders <= {"common", "tile", "isa", "digest", "bindings", *OPS}


def test_includes_of_csrc_run_down() -> None:
    """common ← tile ← operations ← isa: the tile engine knows no operation, and none knows another or who chooses."""
    below = {"common": set(), "tile": {"common"}, **{op: {"common", "tile"} for op in OPS}}
    up = {
        f"{name(path)}: {header}"
        for path in CSRC
        if path.is_relative_to(ROOT / "csrc") and path.parent.name in below
        for header in re.findall(r'#\s*include\s*"([^"]+)', path.read_text(encoding="utf-8"))
        if header.partition("/")[0] not in {path.parent.name, *below[path.parent.name]}
    }
    assert up == set()


def test_nothing_that_is_installed_includes_what_belongs_to_the_tests() -> None:
    own = [path for path in CSRC if path.is_relative_to(ROOT / "csrc")]
    included = {
        f"{name(path)}: {header}"
        for path in own
        for header in re.findall(r'#\s*include\s*"([^"]+)', path.read_text(encoding="utf-8"))
        if not (ROOT / "csrc" / header).is_file()
    }
    assert included == set()


def test_every_instruction_set_has_its_flags() -> None:
    assert {path.stem for path in (ROOT / "csrc" / "isa").glob("*.cpp")} == {*BUILD["ISA_FLAGS"], "choose"}


@pytest.mark.compile
@pytest.mark.parametrize(
    "isa", [pytest.param(isa, marks=() if isa == "avx512" else pytest.mark.full) for isa in BUILD["ISA_FLAGS"]]
)
def test_objects_of_an_instruction_set_compile_without_warnings_and_export_no_weak_symbols(
    isa: str, tmp_path: Path
) -> None:
    """The linker keeps one copy of a weak function: an AVX-512 one would then run on machines that lack it."""
    compiler = BUILD["find_compiler"]()
    if compiler is None or not shutil.which("nm") or importlib.util.find_spec("pybind11") is None:
        pytest.skip("needs a C++ compiler, nm and pybind11")
    if isa != "portable" and not BUILD["is_x86_64"]():
        pytest.skip("needs an x86-64 compiler")
    target = tmp_path / f"{isa}.o"
    command = BUILD["compile_command"](compiler, ROOT / "csrc" / "isa" / f"{isa}.cpp", target)
    subprocess.run([*command, "-Werror"], check=True)
    symbols = subprocess.run(["nm", "-C", str(target)], check=True, capture_output=True, text=True).stdout.splitlines()
    weak = [
        line for line in symbols if re.search(r" [WVu] (?!DW\.ref\.)", line)
    ]  # DW.ref: a pointer for unwinding, no code
    assert weak == []


# Sizes and texts


def test_no_file_is_too_long() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in PYTHON + CSRC}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def body_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.stmt]:
    return node.body[1:] if ast.get_docstring(node) else node.body


def test_no_python_function_is_too_long() -> None:
    """Of code: docstrings may breathe."""
    functions = {
        f"{name(path)}:{node.lineno} {node.name}": (node.end_lineno or 0) - body_of(node)[0].lineno + 1
        for path in PYTHON
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and body_of(node)
    }
    assert {key: length for key, length in functions.items() if length > LONGEST_FUNCTION} == {}


def test_no_cpp_function_is_too_long() -> None:
    """clang-format closes a block at the indentation of the line that opened it, four less where that begins with what
    a constructor initialises."""
    opening = re.compile(
        r"^(\s*)(?!namespace\b|extern\b|struct\b|class\b|enum\b|union\b|if\b|for\b|while\b|switch\b|}).*\{$"
    )
    too_long = []
    for path in CSRC:
        lines = path.read_text(encoding="utf-8").splitlines()
        for start, line in enumerate(lines):
            if found := opening.match(line):
                indent = found[1][4:] if line.lstrip().startswith(":") else found[1]
                closing = (i for i in range(start + 1, len(lines)) if lines[i].startswith(indent + "}"))
                if next(closing, start) - start + 1 > LONGEST_FUNCTION:
                    too_long.append(f"{name(path)}:{start + 1}")
    assert too_long == []


def test_every_file_says_first_what_it_is() -> None:
    assert [name(path) for path in PYTHON if not ast.get_docstring(tree(path))] == []
    assert [name(path) for path in CSRC if not path.read_text(encoding="utf-8").startswith("//")] == []


def test_every_allocation_names_its_type_and_its_device() -> None:
    """A process may have set other defaults: memory of another type, handed on by its address, is corrupted."""
    calls = [
        (path, call, ast.unparse(call.func))
        for path in PYTHON
        if path.is_relative_to(ROOT / "mrtkern")
        for call in ast.walk(tree(path))
        if isinstance(call, ast.Call)
    ]
    silent = [
        f"{name(path)}:{call.lineno} {function}"
        for path, call, function in calls
        if ALLOCATIONS.fullmatch(function) and not {"dtype", "device"} <= {keyword.arg for keyword in call.keywords}
    ]
    assert silent == []


def test_tolerances_of_tests_are_derived_not_written() -> None:
    tolerances = {"atol", "rtol", "abs_tol", "rel_tol"}
    literal = [
        f"{name(path)}:{keyword.value.lineno}"
        for path in PYTHON
        if path.is_relative_to(TESTS) and path != TESTS / "tools" / "oracle.py"
        for call in ast.walk(tree(path))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg in tolerances or (keyword.arg in {"abs", "rel"} and ast.unparse(call.func).endswith("approx"))
        if any(isinstance(node, ast.Constant) and node.value for node in ast.walk(keyword.value))  # 0 means equal
    ]
    assert literal == []


def test_nothing_is_left_for_later() -> None:
    marker = re.compile(r"\b(TODO|FIXME|XXX)\b")
    files = [path for path in PYTHON + CSRC if path != Path(__file__).resolve()]
    assert [name(path) for path in files if marker.search(path.read_text(encoding="utf-8"))] == []
