"""The build by nvcc: what is asked for is built or refused, machine code keeps its limits, loading needs no driver."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "triton.tools.tensor_descriptor", reason="needs Triton 3.4 or later, whose wheel has the disassembler"
)
pytest.importorskip("pybind11", reason="building needs pybind11")

from bench import static, static_cuda
from tests.tools.emulated import PRIMITIVES, PROGRAMS

BUILD = static_cuda.BUILD
ROOT = static.ROOT
needs_nvcc = pytest.mark.skipif(BUILD["find_nvcc"]() is None, reason="needs nvcc")
NO_DEVICE = ("CUDA driver version is insufficient for CUDA runtime version", "no CUDA-capable device is detected")


# What is asked for


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of CUDA, so far as setup.py looks at it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", sys.executable)  # any program: whether there is one is all that is asked
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "driver", "is_wanted"),
    [("", "cuda", False), ("0", "cuda", False), ("1", None, True), ("auto", None, False), ("auto", "cuda", True)],
)
def test_cuda_is_built_where_it_is_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, asked: str, driver: str | None, is_wanted: bool
) -> None:
    monkeypatch.setenv("MRTKERN_CUDA", asked)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: driver)
    assert BUILD["wants_cuda"]() is is_wanted


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"MRTKERN_CUDA": "yes"}, "MRTKERN_CUDA must be 0, 1 or auto, got 'yes'"),
        ({"CUDA_HOME": "/nowhere"}, "MRTKERN_CUDA=1 needs nvcc, found none in $CUDA_HOME, or PATH and /usr/local/cuda"),
        ({"CXX": "/nowhere"}, "MRTKERN_CUDA=1 needs a C++ compiler, found none"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sentence: str
) -> None:
    for name, value in {"MRTKERN_CUDA": "1", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        BUILD["wants_cuda"]()
    assert end.value.code == f"mrtkern: {sentence}"


@pytest.mark.parametrize("archs", ["80", "75;90a", "80;90;100;120+ptx"])
def test_architectures_are_those_asked_for(monkeypatch: pytest.MonkeyPatch, archs: str) -> None:
    monkeypatch.setenv("MRTKERN_CUDA_ARCHS", archs)
    command = BUILD["nvcc_command"]("nvcc", Path("in.cu"), Path("out.o"), BUILD["cuda_archs"]())
    codes = [part.partition(",code=")[2] for part in command if part.startswith("-gencode")]
    wanted = {"80": ["sm_80"], "75;90a": ["sm_75", "sm_90a"]}
    assert codes == wanted.get(archs, ["sm_80", "sm_90", "sm_100", "[sm_120,compute_120]"])


@pytest.mark.parametrize("archs", ["sm_80", "8.0", "80,90", "80;", "80+sass"])
def test_other_architectures_are_refused(monkeypatch: pytest.MonkeyPatch, archs: str) -> None:
    monkeypatch.setenv("MRTKERN_CUDA_ARCHS", archs)
    with pytest.raises(SystemExit, match=r"mrtkern: MRTKERN_CUDA_ARCHS must be like 80\+ptx;90;100;120, got "):
        BUILD["cuda_archs"]()


# What is built


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """All .cu files compiled as in an installation."""
    return static_cuda.objects(tmp_path_factory.mktemp("cuda"), [path.parent.name for path in BUILD["cuda_sources"]()])


@needs_nvcc
@pytest.mark.compile
def test_every_cuda_kernel_keeps_its_limits_on_every_architecture(objects: dict[Path, Path]) -> None:
    codes = static_cuda.codes(objects)
    limits = {code.op: static.committed(code.op) for code in codes}
    new = [f"{code.op}, {code.key}" for code in codes if code.key not in limits[code.op]]
    assert new == [], "run `python -m bench --static` and commit what it writes"
    assert [text for code in codes for text in static.faults(code, limits[code.op][code.key])] == []


@needs_nvcc
@pytest.mark.compile
def test_planted_faults_of_cuda_machine_code_are_found(tmp_path: Path) -> None:
    target = tmp_path / "machine_code.o"
    command = BUILD["nvcc_command"](BUILD["find_nvcc"](), PROGRAMS / "machine_code.cu", target, ["90"])
    subprocess.run(command, check=True)
    found = {code.kernel: " ".join(static.faults(code, None)) for code in static_cuda.codes_of("op", target)}
    assert set(found) == {"good", "local_memory", "narrow_loads"}
    assert found["good"] == ""
    assert found["local_memory"].endswith(" spills")
    assert found["narrow_loads"].endswith("no byte in hot loops loaded 16 at a time")


@pytest.fixture(scope="module")
def extension(objects: dict[Path, Path]) -> Path:
    """mrtkern._cuda of these objects."""
    folder = next(iter(objects.values())).parent
    bindings = folder / "bindings.o"
    subprocess.run(
        [*BUILD["compile_command"](BUILD["find_compiler"](), ROOT / "csrc" / "bindings_cuda.cpp", bindings), "-O0"],
        check=True,
    )
    target = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    parts = [str(path) for path in (*objects.values(), bindings)]
    subprocess.run(BUILD["cuda_link_command"](BUILD["find_nvcc"](), parts, target), check=True)
    return target


def loaded(extension: Path, code: str, **variables: str) -> str:
    """What a process prints that runs `code` with an extension as `_cuda`, and no device in sight."""
    variables = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(extension.parent), **variables}
    command = [sys.executable, "-c", f"import _cuda; {code}"]
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=True
    ).stdout.strip()


@needs_nvcc
@pytest.mark.compile
def test_the_extension_loads_without_a_driver(extension: Path) -> None:
    said = loaded(extension, "print(_cuda.device_count(), *_cuda.archs(), _cuda.runtime_version() // 1000 >= 12)")
    assert said == "0 80 90 100 120 True"


@needs_nvcc
@pytest.mark.compile
def test_the_extension_exports_nothing_but_itself_and_needs_no_library_of_cuda(extension: Path) -> None:
    needed: Any = subprocess.run(["readelf", "-d", extension], capture_output=True, text=True, check=True).stdout
    assert "NEEDED" in needed and "cuda" not in needed.replace(extension.name, "")
    symbols = subprocess.run(["nm", "-D", "--defined-only", extension], capture_output=True, text=True, check=True)
    strong = [line.split()[-1] for line in symbols.stdout.splitlines() if line.split()[-2] == "T"]
    assert strong == ["PyInit__cuda"]


@pytest.fixture(scope="module")
def primitives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests of the emulated device, compiled for real ones."""
    target = tmp_path_factory.mktemp("primitives") / "primitives"
    sources = [*(PROGRAMS / f"{name}.cu" for name in PRIMITIVES), ROOT / "csrc" / "common" / "cuda.cu"]
    flags = ["-std=c++17", "-O1", "-fmad=false", "-gencode=arch=compute_80,code=[sm_80,compute_80]", "-cudart=static"]
    include = [f"-I{ROOT / 'csrc'}", f"-I{PROGRAMS}"]
    subprocess.run([BUILD["find_nvcc"](), *flags, *include, *map(str, sources), "-o", target], check=True)
    return target


def run(program: Path, **variables: str) -> tuple[int, str]:
    done = subprocess.run([program], env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True)
    return done.returncode, done.stdout


@needs_nvcc
@pytest.mark.compile
@pytest.mark.full
def test_a_launch_without_a_device_is_one_sentence(primitives: Path) -> None:
    """And nvcc takes all that the emulator takes."""
    status, said = run(primitives, CUDA_VISIBLE_DEVICES="")
    assert status == 1
    assert said in [f"test: cudaMallocManaged failed: {reason}\n" for reason in NO_DEVICE]


@needs_nvcc
@pytest.mark.gpu
@pytest.mark.hardware
def test_a_device_does_what_the_emulated_one_does(primitives: Path) -> None:
    assert run(primitives) == (0, "0 failures\n")
