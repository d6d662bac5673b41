"""`mrtkern info` and the command line around it: what is printed, and how a command ends."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mrtkern
from mrtkern import __main__ as cli
from mrtkern import _dispatch
from mrtkern.cli import info
from mrtkern.ops import OPS


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert cli.main(["info"]) == 0
    return capsys.readouterr().out.splitlines()


def test_info_names_version_threads_and_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    text = lines(capsys)
    assert text[0].startswith(f"mrtkern   {mrtkern.__version__}, torch {torch.__version__}, Python ")
    assert text[2].startswith(f"threads   torch uses {torch.get_num_threads()}, ")
    assert text[3].startswith("GPUs      ")
    assert text[4].startswith("CUDA      ")


def test_info_answers_for_every_operation_and_backend(capsys: pytest.CaptureFixture[str]) -> None:
    answers = {tuple(line.split()[:3]): line.split(maxsplit=3)[3] for line in lines(capsys)[7:]}
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    assert set(answers) == {(op, backend, device) for op in OPS for backend in _dispatch.BACKENDS for device in devices}
    assert all(re.fullmatch(r"yes|(yes|no): .+", answer) for answer in answers.values())
    assert all(answers[op, "reference", "cpu"] == "yes" for op in OPS)


@pytest.mark.parametrize("op", OPS)
def test_info_has_the_reason_for_every_backend_that_is_not_written(op: str, capsys: pytest.CaptureFixture[str]) -> None:
    absent = importlib.import_module(f"mrtkern.ops.{op}.problem").ABSENT
    printed = [line.split(maxsplit=3) for line in lines(capsys)[7:]]
    reasons = {backend: answer for name, backend, _, answer in printed if name == op and backend in absent}
    assert set(reasons) == set(absent)
    assert all(reasons[backend].startswith(f"no: {reason}; it has ") for backend, reason in absent.items())


def test_info_names_the_limits_of_a_backend(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
    answer = next(line for line in lines(capsys) if line.split()[:2] == ["facility_location", "cpu"])
    assert "  yes: up to 2,147,483,584 candidates and rows" in answer


@pytest.mark.parametrize("op", OPS)
def test_a_backend_that_refuses_a_type_or_metric_says_so_after_yes(op: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
    answer = next(line for line in lines(capsys) if line.split()[:2] == [op, "cpu"])
    assert "  yes: " in answer


def test_the_example_is_what_info_prints(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
    printed = lines(capsys)
    example = info.EXAMPLE.splitlines()
    assert [line.strip() for line in example[-3:] if " triton " not in line] == [
        line for line in printed if re.match(r"cross_entropy +(cpu|reference) +cpu ", line)
    ]
    assert example[-5].split() == printed[6].split()


def test_info_names_the_instruction_set_and_its_cap() -> None:
    extension = pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
    child = subprocess.run(
        [sys.executable, "-m", "mrtkern", "info"],
        env={**os.environ, "MRTKERN_ISA": "portable"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = (
        f"kernels   portable, capped by MRTKERN_ISA=portable (available: {', '.join(extension.isas())}), compiler "
    )
    assert child.stdout.splitlines()[1].startswith(expected)


def test_info_says_that_there_are_no_cuda_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("mrtkern._cuda") is not None:
        pytest.skip("this installation has them")
    assert (
        lines(capsys)[4] == "CUDA      none: mrtkern was installed without mrtkern._cuda, which MRTKERN_CUDA=1 builds"
    )


@pytest.mark.emulator
@pytest.mark.usefixtures("emulated_cuda")
def test_info_names_the_architectures_and_devices_of_the_cuda_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the emulated ones, whose runtime has no version."""
    assert lines(capsys)[4] == "CUDA      mrtkern._cuda for sm_80, sm_90, sm_100, sm_120, runtime 0.0, devices: 4"


@pytest.mark.parametrize("command", ["info", "select"])
def test_an_unknown_instruction_set_is_refused_in_the_words_of_the_kernels(command: str, tmp_path: Path) -> None:
    pytest.importorskip("mrtkern._C", reason="installed without compiled kernels")
    argv = [command]
    if command == "select":
        pytest.importorskip("pyarrow")
        pytest.importorskip("rich")
        argv += [str(tmp_path / "in.csv"), "-o", str(tmp_path / "out.csv"), "--group-by", "p", "--k", "1"]
        argv += ["--embedding", "e"]
    child = subprocess.run(
        [sys.executable, "-m", "mrtkern", *argv],
        env={**os.environ, "MRTKERN_ISA": "sse9"},
        capture_output=True, text=True,
    )  # fmt: skip
    sentence = f"mrtkern {command}: MRTKERN_ISA must be avx512_bf16, avx512, avx2 or portable, got 'sse9'\n"
    assert (child.returncode, child.stdout, child.stderr) == (2, "", sentence)


def test_help_lists_the_commands_and_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, expected in ((["--help"], "info"), (["--help"], "select"), (["info", "--help"], "$ mrtkern info")):
        with pytest.raises(SystemExit) as end:
            cli.main(argv)
        assert end.value.code == 0
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["unknown"], ["info", "--unknown"]])
def test_a_wrong_command_line_ends_with_status_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2


def end_of(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """Status of a command that raises `error`."""

    def run(args: object) -> int:
        raise error

    monkeypatch.setattr("mrtkern.cli.info.run", run)
    return cli.main(["info"])


def test_bad_input_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(cli.InputError("row 3 is empty"), monkeypatch) == 2
    assert capsys.readouterr().err == "mrtkern info: row 3 is empty\n"


def test_a_missing_extra_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(ModuleNotFoundError("No module named 'pyarrow.csv'", name="pyarrow.csv"), monkeypatch) == 2
    assert capsys.readouterr().err == 'mrtkern info: needs the cli extra, pip install "mrtkern[cli]"\n'


def test_any_other_missing_module_is_a_fault_and_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModuleNotFoundError):
        end_of(ModuleNotFoundError("No module named 'mrtkern.gone'", name="mrtkern.gone"), monkeypatch)


def test_an_interrupt_ends_with_status_130_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_of(KeyboardInterrupt(), monkeypatch) == 130
    assert capsys.readouterr().err == ""


def test_a_closed_pipe_ends_without_a_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    child = subprocess.run([sys.executable, "-m", "mrtkern", "info"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (child.returncode, child.stderr) == (141, "")
