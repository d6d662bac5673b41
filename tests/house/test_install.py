"""Installations that lack something: no compiler, a compiler that fails, no triton, no compiled kernels, no extras."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.repository import ROOT

PARTS = ("mrtkern", "csrc", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")

BLOCK = """
import importlib.abc, sys

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == part or name.startswith(part + ".") for part in {names!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
"""
# An editable installation also serves the submodules that another one lacks: only the one on PYTHONPATH may count.
ALONE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
"""
SELECT = """
import warnings
import torch, mrtkern

x, offsets = torch.eye(6).repeat(2, 1), torch.tensor([0, 5, 12])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        kept = mrtkern.select_responses(x, offsets, 2, method="coverage")
        mrtkern.similarity(x, offsets=offsets)
print("picks", kept.offsets.tolist(), kept.ids.tolist())
print("warnings", sum("without its compiled kernels" in str(one.message) for one in caught))
"""


def python(code: str, where: Path, **env: str) -> str:
    """What a fresh interpreter prints that runs `code` in a folder."""
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=where, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


@functools.cache
def picks_of_everything() -> str:
    """The rows that a complete installation keeps."""
    return python(SELECT, ROOT).splitlines()[0]


def sources(folder: Path) -> Path:
    """A copy of the sources, without anything built."""
    copy = folder / "copy"
    copy.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        elif (ROOT / part).exists():
            shutil.copy(ROOT / part, copy / part)
    return copy


def install(copy: Path, **env: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    """pip's answer, and the folder it installed into."""
    pytest.importorskip("pybind11", reason="building needs pybind11")
    site = copy.parent / "site"
    command = [sys.executable, "-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation", "--no-index"]
    child = subprocess.run(
        [*command, "--target", str(site), str(copy)],
        env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return child, site


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What pip said, and the folder it installed into, with a PATH on which nothing is found."""
    folder = tmp_path_factory.mktemp("without_compiler")
    (folder / "empty").mkdir()
    nothing = str(folder / "empty")
    child, site = install(sources(folder), PATH=nothing, CXX="", MRTKERN_CUDA="auto", CUDA_HOME=nothing)
    assert child.returncode == 0, child.stdout
    return child.stdout, site


def test_an_installation_without_compiler_succeeds_and_says_so_once(without_compiler: tuple[str, Path]) -> None:
    output, site = without_compiler
    said = [line.strip() for line in output.splitlines() if "no C++ compiler" in line]
    assert said == ["mrtkern: no C++ compiler (c++, g++, clang++): installing without compiled kernels"]
    assert not list(site.rglob("*.so"))


def test_an_installation_without_compiler_keeps_the_same_rows_and_warns_once(
    without_compiler: tuple[str, Path],
) -> None:
    site = without_compiler[1]
    picks = picks_of_everything()
    assert python(ALONE + SELECT, site.parent, PYTHONPATH=str(site)).splitlines() == [picks, "warnings 1"]


def test_an_installation_without_compiler_explains_itself(without_compiler: tuple[str, Path]) -> None:
    site = without_compiler[1]
    code = ALONE + "from mrtkern.__main__ import main; main(['info'])"
    info = python(code, site.parent, PYTHONPATH=str(site)).splitlines()
    assert info[1] == "kernels   none: mrtkern was installed without a C++ compiler, so the PyTorch reference runs"
    assert "similarity cpu cpu no: mrtkern._C is not installed" in [" ".join(line.split()) for line in info]


def test_the_data_and_the_types_are_installed(without_compiler: tuple[str, Path]) -> None:
    site = without_compiler[1]
    expected = {path.relative_to(ROOT) for path in (ROOT / "mrtkern" / "data").iterdir() if path.is_file()}
    expected |= {Path("mrtkern/py.typed"), Path("mrtkern/_C.pyi"), Path("mrtkern/_cuda.pyi")}
    assert {path for path in expected if not (site / path).exists()} == set()


def test_a_compiler_that_fails_fails_the_installation(tmp_path: Path) -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler")
    copy = sources(tmp_path)
    for source in (copy / "csrc").rglob("*.cpp"):  # all of them, so that no time goes into compiling the others
        source.write_text("#error broken on purpose\n")
    child, site = install(copy, CXX="")  # the first that is found
    assert child.returncode != 0
    assert "broken on purpose" in child.stdout
    assert not (site / "mrtkern").exists()


def test_cuda_without_nvcc_fails_the_installation_in_a_sentence(tmp_path: Path) -> None:
    child, site = install(sources(tmp_path), MRTKERN_CUDA="1", CUDA_HOME=str(tmp_path))
    said = {line.strip() for line in child.stdout.splitlines() if line.strip().startswith("mrtkern: ")}
    assert child.returncode != 0
    assert said == {"mrtkern: MRTKERN_CUDA=1 needs nvcc, found none in $CUDA_HOME, or PATH and /usr/local/cuda"}
    assert not site.exists()


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_an_installation_with_cuda_has_both_extensions_and_needs_no_driver(tmp_path: Path) -> None:
    if not (shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()):
        pytest.skip("needs nvcc")
    child, site = install(sources(tmp_path), MRTKERN_CUDA="1", MRTKERN_CUDA_ARCHS="90+ptx")
    assert child.returncode == 0, child.stdout
    code = ALONE + "from mrtkern.__main__ import main; main(['info'])"
    info = python(code, site.parent, PYTHONPATH=str(site), CUDA_VISIBLE_DEVICES="").splitlines()
    assert info[1].startswith("kernels   ") and " (available: " in info[1]
    assert info[4].startswith("CUDA      mrtkern._cuda for sm_90, runtime ") and info[4].endswith(", devices: 0")


@pytest.mark.parametrize(("missing", "warnings"), [(("triton",), 0), (("triton", "mrtkern._C", "mrtkern._cuda"), 1)])
def test_everything_runs_without_the_optional_parts(missing: tuple[str, ...], warnings: int) -> None:
    if not warnings:
        pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
    complete = picks_of_everything()
    assert python(BLOCK.format(names=missing) + SELECT, ROOT).splitlines() == [complete, f"warnings {warnings}"]


def test_select_without_its_extra_says_what_to_install() -> None:
    extra = ("pyarrow", "rich", "sklearn", "matplotlib")
    call = (
        "from mrtkern.__main__ import main; sys.stderr = sys.stdout; print(main(['select', 'in.csv', '-o', 'out.csv']))"
    )
    said = python(BLOCK.format(names=extra) + call, ROOT).splitlines()
    assert said == ['mrtkern select: needs the cli extra, pip install "mrtkern[cli]"', "2"]


def test_a_triton_that_is_too_old_is_a_reason_not_an_error() -> None:
    module = "triton.tools.tensor_descriptor"
    pytest.importorskip(module, reason="the Triton here is too old by itself")
    version = sys.modules["triton"].__version__
    call = (
        f"import torch, mrtkern; x = torch.ones(4, 3); del sys.modules[{module!r}]\n"
        "from mrtkern.__main__ import main; main(['info'])\n"
        "try: mrtkern.similarity(x, backend='triton')\n"
        "except ValueError as error: print(error)"
    )
    said = python("import triton.tools.tensor_descriptor" + BLOCK.format(names=(module,)) + call, ROOT).splitlines()
    reason = f"needs Triton 3.4 or later, got {version}, which lacks {module}"
    assert f"similarity triton cpu no: {reason}" in [" ".join(line.split()) for line in said]
    assert said[-1] == f"similarity: backend 'triton' cannot run this: {reason}"


def test_info_needs_no_extra() -> None:
    extra = ("pyarrow", "rich", "sklearn", "matplotlib", "triton")
    call = "from mrtkern.__main__ import main; print(main(['info']))"
    assert python(BLOCK.format(names=extra) + call, ROOT).splitlines()[-1] == "0"
