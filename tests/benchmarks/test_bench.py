"""The benchmark keeps its promises: it takes turns, its medians are right, it refuses wrong answers."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import OPS, __main__, facility_location, machine, report, similarity, worker
from bench.harness import Competitor, Spread, WrongAnswer, interleave, ratios
from bench.roofline import PRODUCT, PRODUCT_FLOPS, READ, READERS, Roofline
from mrtkern.ops.facility_location.ground import Groups
from mrtkern.ops.facility_location.problem import Case, Problem
from mrtkern.ops.similarity import problem as similarity_problem
from tests.tools.repository import ROOT

# an instant on the reference backend
SMALL = Case("20 x 8 -> 3", Problem(Groups, 160, 16, 20, torch.float32, "cpu", 8, K=3), frozenset({"bench"}))
BENCH_FILES = ROOT / "bench"


def small_similarity(wants_grad: bool) -> Any:
    """Ten packed groups of four rows."""
    sizes = (4,) * 10
    given = similarity_problem.Problem("packed", 10, 40, None, 8, torch.float32, wants_grad=wants_grad, sizes=sizes)
    return similarity_problem.Case("10 x 4 x 8", given, frozenset({"bench"}))


def answers_of(op: Any, inputs: Any) -> dict[str, Any]:
    """What every competitor answers."""
    return {
        competitor.name: op.answer(inputs, competitor.run()) for competitor in [*op.own(inputs), *op.others(inputs)]
    }


# Time


def test_competitors_take_turns() -> None:
    log: list[str] = []
    found = [Competitor(name, lambda name=name: log.append(name)) for name in "ABC"]
    interleave(found, 2, before=lambda: log.append("|"))
    assert "".join(log) == "|A|B|C|A|B|C"


def test_a_name_is_used_once() -> None:
    with pytest.raises(ValueError, match="names must differ"):
        interleave([Competitor("A", list), Competitor("A", list)], 1)


def test_clock_replaces_the_stopwatch_and_scale_multiplies() -> None:
    found = [Competitor("A", list, scale=10.0, clock=lambda: 0.5)]
    assert interleave(found, 3) == {"A": [5.0, 5.0, 5.0]}


def test_garbage_collector_is_off_during_the_run_only() -> None:
    log: list[bool] = []
    interleave([Competitor("A", lambda: log.append(gc.isenabled()))], 2)
    assert log == [False, False]
    assert gc.isenabled()


def test_garbage_collector_returns_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        interleave([Competitor("A", lambda: 1 // 0)], 1)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], (3.0, 3.0, 3.0)), ([5.0, 1.0, 2.0, 4.0, 3.0], (3.0, 2.0, 4.0)), ([1.0, 2.0], (1.5, 1.25, 1.75))],
)
def test_median_and_quartiles(values: list[float], expected: tuple[float, float, float]) -> None:
    assert Spread.of(values) == Spread(*expected)


def test_ratio_is_taken_inside_a_round() -> None:
    # The machine is ten times slower in the last two rounds: a ratio of medians would say 20.
    seconds = {"mrtkern": [1.0, 10.0, 1.0, 10.0, 1.0], "peer": [2.0, 20.0, 20.0, 20.0, 2.0]}
    assert ratios(seconds, "mrtkern") == {"peer": Spread(2.0, 2.0, 2.0)}


# The roof


def test_roof_is_the_larger_of_reading_and_computing() -> None:
    seconds = {READ: [1.0, 1.0], PRODUCT: [1.0, 4.0]}
    assert Roofline.seconds(seconds, read_bytes=100, nbytes=200, flops=PRODUCT_FLOPS) == [2.0, 4.0]


@pytest.mark.parametrize("name", READERS)
def test_readers_take_any_number_of_rows(name: str) -> None:
    for rows in (1, 3):  # one row cannot be shared by two threads, three not evenly
        READERS[name](torch.ones(rows, 8))


# Wrong answers


def test_facility_location_accepts_all_its_competitors() -> None:
    inputs = facility_location.make_inputs(SMALL)
    answers = answers_of(facility_location, inputs)
    assert facility_location.check(inputs, answers).keys() == answers.keys()


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ([5, 6, 7], "value"),
        ([0, 0, 1], "different rows"),
        ([0, 1, 8], "different rows"),
        ([0, 1], "different rows"),
    ],
)
def test_facility_location_refuses_a_wrong_peer(kept: list[int], reason: str) -> None:
    inputs = facility_location.make_inputs(SMALL)
    mine = facility_location.answer(inputs, facility_location.ours(inputs))
    with pytest.raises(WrongAnswer, match=f"peer .*{reason}"):
        facility_location.check(inputs, {"mrtkern": mine, "peer": torch.tensor(kept).expand(SMALL.problem.B, -1)})


def test_facility_location_refuses_ours_where_it_is_not_the_reference() -> None:
    inputs = facility_location.make_inputs(SMALL)
    mine = facility_location.answer(inputs, facility_location.ours(inputs)).clone()
    mine[7] = mine[7].flip(0)  # the same rows, another order
    with pytest.raises(WrongAnswer, match="of group 7, its reference"):
        facility_location.check(inputs, {"mrtkern": mine})


def test_greedy_shortfall_finds_the_gain_passed_over() -> None:
    s = torch.tensor([[[1.0, 0.5, 0.5], [0.5, 1.0, 0.25], [0.5, 0.25, 1.0]]], dtype=torch.float64)
    assert facility_location.greedy_shortfall(s, torch.tensor([[0, 1]])) == 0.0
    assert facility_location.greedy_shortfall(s, torch.tensor([[1, 2]])) == 0.25  # sums are 2, 1.75, 1.75


@pytest.mark.parametrize("wants_grad", [False, True])
def test_similarity_accepts_all_its_competitors(wants_grad: bool) -> None:
    inputs = similarity.make_inputs(small_similarity(wants_grad))
    answers = answers_of(similarity, inputs)
    assert similarity.check(inputs, answers).keys() == answers.keys()


@pytest.mark.parametrize("name", ["mrtkern", "peer"])
@pytest.mark.parametrize("part", ["cosines", "gradient"])
def test_similarity_refuses_a_wrong_answer(name: str, part: str) -> None:
    inputs = similarity.make_inputs(small_similarity(wants_grad=True))
    right = similarity.answer(inputs, similarity.ours(inputs))
    wrong = {**right, part: right[part] * 1.001}
    with pytest.raises(WrongAnswer, match=f"the {part} of {name} are off"):
        similarity.check(inputs, {"mrtkern": right, name: wrong})


def test_nothing_is_printed_about_a_wrong_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Competitor("wrong", lambda: torch.tensor([[5, 6, 7]]).expand(SMALL.problem.B, -1))
    monkeypatch.setattr(facility_location, "cases", lambda: [SMALL])
    monkeypatch.setattr(facility_location, "others", lambda inputs: [wrong])
    monkeypatch.setattr(Roofline, "choose", lambda rounds: Roofline(next(iter(READERS)), torch.float32))
    with pytest.raises(SystemExit) as stop:
        __main__.main(["facility_location", "--quick"])
    assert str(stop.value).startswith("bench: facility_location, 20 x 8 -> 3: wrong reaches a value")
    assert "median" not in capsys.readouterr().out


# The command line


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        __main__.main(["--help"])
    assert stop.value.code == 0
    assert "example: python -m bench facility_location --peers" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["nothing"], ["--threads", "0"], ["--rounds", "-1"]])
def test_bad_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        __main__.main(arguments)
    assert stop.value.code == 2
    assert "got" in capsys.readouterr().err


def test_every_operation_has_the_same_parts() -> None:
    names = (
        "OP",
        "TARGETS",
        "REASONS",
        "answer",
        "backend",
        "cases",
        "check",
        "make_inputs",
        "others",
        "ours",
        "own",
        "tiny",
        "work",
    )
    for op in OPS:
        module = importlib.import_module(f"bench.{op}")
        assert all(hasattr(module, name) for name in names)
        assert op == module.OP
        assert (BENCH_FILES / f"test_bench_{op}.py").exists()


def test_reasons_and_targets_name_cases_that_exist() -> None:
    for op in OPS:
        module = importlib.import_module(f"bench.{op}")
        cases = [case.name for case in module.cases()]
        assert all(any(name.startswith(target.case) for name in cases) for target in module.TARGETS)
        assert all(name in cases and text in {t.text for t in module.TARGETS} for name, text in module.REASONS)


# The report


def result_of(**seconds: list[float]) -> report.CaseResult:
    """A case with these times and a read and a product of one second each."""
    rounds = len(seconds["mrtkern"])
    timed = {**seconds, READ: [1.0] * rounds, PRODUCT: [1.0] * rounds}
    notes = {PRODUCT: "a product"}
    memory = {"mrtkern": 3 * report.MIB}
    return report.CaseResult("a case", timed, {"mrtkern": "F = 1"}, notes, memory, 10**9, 10**9, 10)


def test_targets_say_reached_met_and_why() -> None:
    result = result_of(mrtkern=[2.0, 2.0, 2.0], peer=[8.0, 6.0, 8.0])
    targets = (
        report.Target("a", "fast", "speedup", 4.0, "peer"),
        report.Target("a", "near", "cost", 1.5, READ),
        report.Target("a", "small", "memory", 4.0),
        report.Target("a", "absent", "speedup", 1.0, "nobody"),
        report.Target("b", "elsewhere", "memory", 4.0),
    )
    text = report.target_text([result], targets, {("a case", "near"): "because"}, is_markdown=False)
    lines = [line.split() for line in text.splitlines()[2:]]
    assert lines == [
        ["a", "case", "fast", "4.00", "x", "yes"],
        ["a", "case", "near", "2.00", "x", "no", "because"],
        ["a", "case", "small", "3.00", "MiB", "yes"],
        ["a", "case", "absent", "not", "measured", "–"],
    ]


@pytest.mark.parametrize("is_markdown", [False, True])
def test_table_has_columns_of_equal_width(is_markdown: bool) -> None:
    text = report.case_text(result_of(mrtkern=[2.0], peer=[8.0]), is_markdown=is_markdown)
    table = [line for line in text.splitlines() if line.lstrip("| ").startswith(("mrtkern", "peer", "---"))]
    assert "50%" in table[1]
    assert PRODUCT not in text.split("---")[-1]
    assert not is_markdown or len({len(line) for line in table}) == 1


@pytest.mark.parametrize(("rounds", "quartiles"), [(1, 0), (2, 0), (3, 5)])  # 3 times, 2 ratios
def test_fewer_than_three_rounds_have_no_quartiles(rounds: int, quartiles: int) -> None:
    text = report.case_text(result_of(mrtkern=[2.0] * rounds, peer=[8.0] * rounds), is_markdown=False)
    assert text.count(" – ") == quartiles


@pytest.mark.parametrize(
    ("op", "arguments", "rounds"),
    [
        ("linear_cross_entropy", [], "at most 21, "),
        ("linear_cross_entropy", ["--case", "151,936", "--quick"], "at most 3, "),
        ("linear_cross_entropy", ["--case", "32,000", "--quick"], "3, "),
        ("facility_location", [], "21, "),
    ],
)
def test_the_facts_say_whether_a_case_has_fewer_rounds(op: str, arguments: list[str], rounds: str) -> None:
    args = __main__.parse([op, *arguments])
    assert __main__.facts([importlib.import_module(f"bench.{op}")], args)["rounds"].startswith(rounds)


def test_floors_say_where_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__, "ROOT", tmp_path)
    monkeypatch.setattr(__main__, "RESULTS", tmp_path / "RESULTS.md")
    __main__.main(["--floors"])
    assert capsys.readouterr().out == "written: RESULTS.md, section 'H100: floors, not measured'\n"


def test_a_section_is_replaced_in_place_and_those_of_other_cpus_stay(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    for heading, op, text in (
        ("a CPU", "one", "first"), ("a CPU", "two", "second"), ("floors", "", "before"), ("another", "one", "third"),
        ("a CPU", "one", "fourth"), ("floors", "", "fifth"),
    ):  # fmt: skip
        report.write_section(path, heading, op, f"#### case\n\n{text}\n")
    document = path.read_text()
    assert document == report.PREAMBLE + (
        "\n## a CPU\n\n### one\n\n#### case\n\nfourth\n\n### two\n\n#### case\n\nsecond\n"
        "\n## floors\n\n#### case\n\nfifth\n\n## another\n\n### one\n\n#### case\n\nthird\n"
    )
    assert os.listdir(tmp_path) == ["RESULTS.md"]


def test_the_results_are_what_a_run_would_leave_and_name_the_cpu_of_every_section() -> None:
    document = __main__.RESULTS.read_text(encoding="utf-8")
    for heading, body in report.headed(document, "##").items():
        for op, text in report.headed(body, "###").items():
            assert not heading or report.replace_section(document, heading, op, text) == document
            assert not op or f"* machine: {heading}; " in text


def test_a_run_writes_under_its_own_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__main__, "ROOT", tmp_path)
    monkeypatch.setattr(__main__, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(facility_location, "cases", lambda: [SMALL])
    monkeypatch.setattr(__main__, "run_case", lambda *_: replace(result_of(mrtkern=[2.0] * 3), name="a case"))
    monkeypatch.setattr(facility_location, "TARGETS", ())
    args = __main__.parse(["facility_location", "--peers"])
    for name in ("a CPU", "another"):
        monkeypatch.setattr(machine, "cpu", lambda name=name: name)
        __main__.run_op(facility_location, args, None, None)
    found = report.headed((tmp_path / "RESULTS.md").read_text(), "##")
    assert list(found) == ["", "a CPU", "another"]
    assert all("* machine: " + name in found[name] and "a case" in found[name] for name in ("a CPU", "another"))


# Child processes


def test_a_child_times_answers_and_measures(tmp_path: Path) -> None:
    inputs = facility_location.make_inputs(SMALL)
    torch.save(inputs, tmp_path / "inputs")
    with worker.Worker("facility_location", tmp_path / "inputs") as child:
        assert child.ask("time", "mrtkern") > 0.0
        child.ask("answer", "mrtkern", file=str(tmp_path / "answer"))
        memory = child.ask("memory", "mrtkern")
        with pytest.raises(RuntimeError, match="bench: KeyError: 'nobody'"):
            child.ask("time", "nobody")
    expected = facility_location.answer(inputs, facility_location.ours(inputs))
    assert torch.equal(torch.load(tmp_path / "answer"), expected)
    assert memory is None or 0 <= memory < 32 * report.MIB


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_counts_temporaries_and_not_results() -> None:
    def run() -> torch.Tensor:
        temporary = torch.ones(32 * report.MIB, dtype=torch.uint8)
        return temporary[: 16 * report.MIB].clone()

    run()
    used = worker.peak_bytes(run)
    assert used is not None
    assert 30 * report.MIB < used < 36 * report.MIB  # other threads of the process may use a little meanwhile


def test_ours_and_the_base_are_asked_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child of its own each: what a process did before shows in the times of what it does next."""
    asked: dict[Path, list[str]] = {}

    class Child:
        def __init__(self, op: str, inputs: Path, tree: Path, environment: Any) -> None:
            self.hello, self.said = {"has_kernels": True}, asked.setdefault(tree, [])

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ask(self, do: str, name: str, **more: str) -> Any:
            self.said.append(f"{do} {name}")
            if do == "answer":
                torch.save(right, more["file"])
            return 1.0

    inputs = facility_location.make_inputs(SMALL)
    right = facility_location.answer(inputs, facility_location.ours(inputs))
    monkeypatch.setattr(__main__, "Worker", Child)
    monkeypatch.setattr(facility_location, "ours", None)  # nothing of ours runs in this process
    with contextlib.ExitStack() as stack:
        wanted = __main__.base(tmp_path, "HEAD")
        found, answers = __main__.apart(facility_location, inputs, stack, wanted)
        interleave(found, 3)
    assert asked[worker.ROOT] == asked[tmp_path] == ["answer mrtkern", *["time mrtkern"] * 3]
    assert answers.keys() == {"mrtkern", "base HEAD"}


def test_a_child_leaves_out_what_the_clock_of_a_competitor_leaves_out() -> None:
    said: list[Any] = []
    competitor = Competitor("mrtkern", list, clock=lambda: 0.25)
    op = SimpleNamespace(own=lambda inputs: [competitor], others=lambda inputs: [], tiny=lambda inputs: inputs)
    worker.serve(op, None, ['{"do": "time", "name": "mrtkern"}'], said.append)
    assert said == [{"result": 0.25}]


def test_results_count_shared_storage_once() -> None:
    x = torch.zeros(10, dtype=torch.int64)
    assert worker.result_bytes((x, x.view(2, 5), [torch.zeros(3, dtype=torch.int8)])) == 83
