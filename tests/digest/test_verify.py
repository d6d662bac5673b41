"""The digest: problems are the same bits wherever they are made, selections wherever they are computed, and `mrtkern
verify` notices when they are not."""

from __future__ import annotations

import itertools
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mrtkern import __main__ as cli
from mrtkern.digest import kinds, problems
from mrtkern.digest.kinds import KINDS, Where
from tests.tools.repository import ROOT

C = pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
BUILD = runpy.run_path(str(ROOT / "setup.py"))
SELECTIONS = problems.KINDS
FIRST = range(5)  # blocks that hold most of what there is
FEW = 10  # problems of a block, where a thousand would take long


def digests(numbers: range) -> dict[str, list[str]]:
    return {name: [KINDS[name].digest(block, Where()) for block in numbers] for name in KINDS}


def prefix(count: int) -> dict[str, list[str]]:
    """The digests in the package of the first blocks."""
    return {name: blocks[:count] for name, blocks in kinds.expected().items()}


# Problems


@pytest.mark.parametrize("kind", SELECTIONS)
@pytest.mark.parametrize("block", [*FIRST, 7, 26])  # 7 and 26: other combinations of the cycles
def test_cpu_makes_the_problems_that_the_definition_makes(kind: str, block: int) -> None:
    made, defined = problems.make(kind, block, FEW), problems.define(kind, block, FEW)
    assert made.rule == defined.rule
    for name in made._fields[1:]:
        left, right = getattr(made, name), getattr(defined, name)
        assert (left is None) == (right is None), name
        assert left is None or (left.dtype == right.dtype and torch.equal(left, right)), name


def test_problems_hold_copies_zero_rows_and_equal_scores() -> None:
    block = problems.make("lists", 0)
    assert bool((block.x == 0).all(dim=1).any())
    spans = list(itertools.pairwise(block.offsets.tolist()))
    unit = torch.nn.functional.normalize(block.x.double(), dim=1)
    copies = sum(int(torch.triu((unit[i:j] @ unit[i:j].mT) > 1 - 1e-12, 1).sum()) for i, j in spans)
    assert copies > len(spans) // 10
    assert set(block.k.tolist()) >= {0, 1, 2, 3, 4, 5, 6, 7}  # more than there are rows, too
    assert {len(range(*span)) for span in spans} == set(range(7))


def test_every_feature_is_a_whole_number_of_24_bits_times_a_power_of_two() -> None:
    x = problems.make("picks", 0).x.double()
    assert torch.equal(x.mul(2.0**24), x.mul(2.0**24).round())  # the smallest scale is 2**-24
    assert float(x.abs().max()) < 2.0**6  # below 2**23 steps of the largest, 2**-17


# Digests


def test_the_digest_has_a_line_for_every_kind_and_block() -> None:
    assert {name: len(blocks) for name, blocks in kinds.expected().items()} == {
        name: kind.blocks for name, kind in KINDS.items()
    }


def test_cpu_blocks_have_the_digest_of_the_package() -> None:
    assert digests(range(2)) == prefix(2)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_the_digest_is_the_same_for_every_number_of_threads(count: int, threads: Callable[[int], None]) -> None:
    threads(count)
    assert digests(range(1)) == prefix(1)


@pytest.mark.full
def test_the_reference_has_the_digest_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there are no compiled kernels: the problems are made by their definition, too."""
    monkeypatch.setattr(problems, "make", problems.define)
    assert KINDS["picks"].digest(0, Where("reference")) == kinds.expected()["picks"][0]


@pytest.mark.parametrize("kind", SELECTIONS)
@pytest.mark.parametrize("block", FIRST)
def test_the_reference_selects_what_cpu_selects(kind: str, block: int) -> None:
    select = KINDS[kind].select
    assert select(block, FEW, Where("reference")) == select(block, FEW, Where("cpu"))


@pytest.mark.emulator
@pytest.mark.parametrize("block", FIRST)
def test_emulated_cuda_picks_what_cpu_picks(block: int, emulated_cuda: Callable[[str], None]) -> None:
    select = KINDS["picks"].select
    assert select(block, FEW, Where("cuda")) == select(block, FEW, Where("cpu"))


@pytest.mark.interpret
@pytest.mark.parametrize("kind", ["lists", "kept"])
@pytest.mark.parametrize("block", [0, 1, 2, 4])  # the problems of block 3 are large
def test_interpreted_triton_selects_what_cpu_selects(kind: str, block: int) -> None:
    select = KINDS[kind].select
    assert select(block, 4, Where("triton")) == select(block, 4, Where("cpu"))


@pytest.mark.gpu
@pytest.mark.hardware
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_gpu_has_the_digest_of_the_package(backend: str) -> None:
    where = Where(backend, "cuda")
    able = [name for name in SELECTIONS if KINDS[name].why_not(where) is None]
    assert able
    assert {name: [KINDS[name].digest(0, where)] for name in able} == {name: prefix(1)[name] for name in able}


# The command


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    status = cli.main(["verify", *arguments])
    return status, capsys.readouterr().out.splitlines()


def test_verify_names_the_machine_and_ends_with_equal(capsys: pytest.CaptureFixture[str]) -> None:
    status, printed = lines(capsys, "--blocks", "1")
    assert status == 0
    names = ["mrtkern", "CPU", "kernels", "threads", "backend", *KINDS, "time"]
    assert [line.split()[0] for line in printed[:-1]] == names
    assert printed[2].split()[1] == C.isa() and printed[4].split()[1] == "cpu"
    assert printed[3].split()[1] == str(torch.get_num_threads())
    assert printed[-1] == f"equal: all {len(KINDS)} blocks are those of the package's digest"


def test_verify_names_the_block_that_differs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = kinds.expected()
    other["lists"][1] = other["lists"][0]
    monkeypatch.setattr(kinds, "expected", lambda: other)
    status, printed = lines(capsys, "--blocks", "2")
    assert status == 1
    assert "lists     2 blocks of 1,000 problems: 1 differ" in printed
    count = 2 * len(KINDS)
    assert printed[-1] == f"DIFFERENT: 1 of {count} blocks are not those of the package's digest: lists 1"


def test_a_selection_that_is_off_by_one_is_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    select = KINDS["picks"].select
    answer = bytearray(select(0, problems.PROBLEMS, Where()))
    answer[-8] ^= 1
    monkeypatch.setitem(KINDS, "picks", kinds.Kind("facility_location", 1, lambda block, count, where: bytes(answer)))
    assert KINDS["picks"].digest(0, Where()) != kinds.expected()["picks"][0]


def test_verify_writes_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _ = lines(capsys, "--blocks", "1", "--write", str(tmp_path / "digest.json"))
    assert status == 0
    assert json.loads((tmp_path / "digest.json").read_text()) == prefix(1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--blocks", "0"], "--blocks must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--backend", "cuda"], "backend 'cuda' cannot run this: "),
    ],
)
def test_verify_refuses_what_cannot_run(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available() and "cuda" in arguments:
        pytest.skip("a GPU runs these kernels here")
    assert cli.main(["verify", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mrtkern verify: {sentence}") and error.count("\n") == 1


@pytest.mark.isa
@pytest.mark.parametrize("isa", C.isas())
def test_verify_is_equal_on_every_instruction_set(isa: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mrtkern", "verify", "--blocks", "8", "--threads", "2"],
        cwd=ROOT, env={**os.environ, "MRTKERN_ISA": isa}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"kernels   {isa}, capped by MRTKERN_ISA={isa}" in done.stdout


# Other machines

MACHINES = {  # the compiler's prefix, the emulator's command, the path that runs, Debian's packages
    "aarch64": ("aarch64-linux-gnu-", ["qemu-aarch64"], "portable", "qemu-user g++-aarch64-linux-gnu"),
    "riscv64": ("riscv64-linux-gnu-", ["qemu-riscv64"], "portable", "qemu-user g++-riscv64-linux-gnu"),
    "s390x": ("s390x-linux-gnu-", ["qemu-s390x"], "portable", "qemu-user g++-s390x-linux-gnu"),  # big-endian
    "x86_64": ("x86_64-linux-gnu-", ["qemu-x86_64", "-cpu", "max"], "avx2", "qemu-user g++"),
}


def driver(prefix: str, folder: Path, has_avx: bool) -> Path:
    """tests/digest/main.cpp with all of csrc but the bindings, linked statically."""
    sources = [path for path in BUILD["sources"]() if path.name != "bindings.cpp"]
    objects = []
    for number, source in enumerate([*sources, ROOT / "tests" / "digest" / "main.cpp"]):
        if source.parent.name == "isa" and source.stem in ("avx2", "avx512") and not has_avx:
            continue
        objects.append(str(folder / f"{number}.o"))
        subprocess.run([*BUILD["compile_command"]([f"{prefix}g++"], source, Path(objects[-1])), "-Werror"], check=True)
    target = folder / "digest"
    subprocess.run([f"{prefix}g++", "-static", "-pthread", *objects, "-o", str(target)], check=True)
    return target


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("machine", MACHINES)
def test_other_machines_have_the_digest_of_the_package(machine: str, tmp_path: Path) -> None:
    """Without Python and torch, emulated: other instructions, another order of bytes, the same selections."""
    compiler, emulator, isa, packages = MACHINES[machine]
    if not shutil.which(f"{compiler}g++") or not shutil.which(emulator[0]):
        pytest.skip(f"needs apt-get install {packages}")
    if isa != "portable" and not BUILD["is_x86_64"]():
        pytest.skip("needs an x86-64 compiler")
    program = driver(compiler, tmp_path, isa != "portable")
    done = subprocess.run([*emulator, str(program), str(len(FIRST)), "2"], capture_output=True, text=True, check=True)
    name, *found = done.stdout.splitlines()
    assert name == isa
    known = prefix(len(FIRST))
    assert found == [f"{kind} {block} {known[kind][block]}" for kind in SELECTIONS for block in FIRST]
