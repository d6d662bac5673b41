"""`mrtkern plan`: the components and the K of the library, intervals that hold the truth, and input that it refuses."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

import mrtkern as mk  # noqa: E402
from mrtkern.__main__ import main  # noqa: E402
from mrtkern.cli import plan as command  # noqa: E402
from tests.tools import oracle  # noqa: E402
from tests.tools.repository import ROOT  # noqa: E402

COSTS = ("--prompt-cost", "4", "--response-cost", "1")
SIZES = (3, 1, 5, 2, 9)  # unequal, one of one row


def write(path: Path, prompts: list[Any], values: Any) -> Path:
    """A table with a row per response."""
    pq.write_table(pa.table({"p": prompts, "v": values}), path)
    return path


def pilot(folder: Path, between: float, within: float, prompts: int = 300, size: int = 8, seed: int = 0) -> Path:
    """Values with these components, on average."""
    rng = np.random.default_rng(seed)
    means = rng.standard_normal(prompts).repeat(size) * np.sqrt(between)
    values = means + rng.standard_normal(prompts * size) * np.sqrt(within)
    return write(folder / "in.parquet", np.arange(prompts).repeat(size).tolist(), values)


def run(source: Path, *options: str, value: str = "v") -> int:
    """The exit status."""
    return main(["plan", str(source), "--group-by", "p", "--value", value, *COSTS, *options])


def report(source: Path, *options: str) -> dict[str, Any]:
    """What the JSON report holds."""
    path = source.parent / "r.json"
    assert run(source, *options, "--report", str(path)) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_components_and_k_are_those_of_the_library(tmp_path: Path) -> None:
    source = pilot(tmp_path, between=0.187, within=1.329)
    found = report(source)
    values = torch.tensor(pq.read_table(source)["v"].to_numpy())
    v = mk.variance_components(values, torch.arange(0, 2401, 8))
    c = mk.optimal_k(v.between, v.within, prompt_cost=4.0, response_cost=1.0, max_k=8)
    assert (found["between"], found["within"]) == (v.between, v.within)
    assert (found["k"], found["continuous"], found["ratio"]) == (c.k, c.continuous, c.ratio)
    assert f"Take {c.k} responses of each prompt" in found["advice"]


def test_rows_of_a_prompt_may_stand_apart_and_gradients_follow_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    prompt = rng.permutation(np.arange(5).repeat(SIZES))
    values = rng.standard_normal((20, 3))
    np.save(tmp_path / "g.npy", values)
    source = write(tmp_path / "in.parquet", prompt.tolist(), values[:, 0])
    arguments = ["plan", str(source), "--group-by", "p", "--gradients", str(tmp_path / "g.npy"), *COSTS]
    assert main([*arguments, "--report", str(tmp_path / "r.json")]) == 0
    order = np.argsort(prompt, kind="stable")
    offsets = torch.tensor([0, *SIZES]).cumsum(0)
    v = mk.variance_components(torch.from_numpy(values[order]), offsets)
    found = json.loads((tmp_path / "r.json").read_text())
    steps = 8 * values.size  # the prompts come in another order, so sums do
    for name, truth in (("between_raw", v.between_raw), ("within", v.within)):
        got, want = (torch.tensor(x, dtype=torch.float64) for x in (found[name], truth))
        oracle.assert_summed(got, want, steps, abs(v.between_raw) + v.within)


@pytest.mark.parametrize("numbers", [1 << 23, 2 * 20])
def test_prompts_taken_once_give_the_components_themselves(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all columns at a time, and of two."""
    monkeypatch.setattr(command, "NUMBERS_PER_CHUNK", numbers)
    rng = np.random.default_rng(2)
    values, offsets = rng.standard_normal((20, 3)), np.cumsum([0, *SIZES])
    groups = command.summed(values, offsets)
    times = np.array([[1.0] * 5, [2.0, 0.0, 1.0, 3.0, 1.0]])
    taken = [[b for b, count in enumerate(row) for _ in range(int(count))] for row in times]
    for got, prompts in zip(command.resampled(groups, times), taken, strict=True):
        rows = np.concatenate([values[offsets[b] : offsets[b + 1]] for b in prompts])
        again = torch.tensor(np.cumsum([0, *(SIZES[b] for b in prompts)]))
        v = mk.variance_components(torch.from_numpy(rows), again)
        truth = torch.tensor([v.between_raw, v.within], dtype=torch.float64)
        oracle.assert_summed(torch.from_numpy(got), truth, 16 * rows.size, abs(v.between_raw) + v.within)


def test_intervals_hold_the_truth(tmp_path: Path) -> None:
    """Of ten pilots; intervals of 95 % miss three of them or more once in 87 times, and these seeds are fixed."""
    truth = {"between": 0.187, "within": 1.329, "continuous": mk.optimal_k(
        0.187, 1.329, prompt_cost=4.0, response_cost=1.0).continuous}  # fmt: skip
    held = dict.fromkeys(truth, 0)
    for seed in range(10):
        intervals = report(pilot(tmp_path, 0.187, 1.329, seed=seed), "--max-k", "64")["intervals"]
        for name, value in truth.items():
            held[name] += intervals[name][0] <= value <= intervals[name][1]
    assert min(held.values()) >= 8


def test_a_budget_for_fixed_prompts_buys_k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pilot(tmp_path, 1.0, 4.0, prompts=20)
    found = report(source, "--prompts", "800", "--budget", str(800 * 9.0))
    assert (found["k"], found["intervals"]["k"]) == (5, [5.0, 5.0])
    assert "The budget buys 5 responses of each of 800 prompts: " in capsys.readouterr().out
    assert run(source, "--prompts", "800", "--budget", str(800 * 100.0), "--max-k", "4") == 0
    assert "buys 4 responses of each of 800 prompts, the most that were looked at: " in capsys.readouterr().out
    assert run(source, "--budget", "1e308", "--response-cost", "1e-5") == 0


def test_the_advice_has_the_interval_of_its_k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(pilot(tmp_path, 1.0, 4.0, prompts=40)) == 0
    out = capsys.readouterr().out
    chosen = re.search(r"→ +(\d+) +([\d.]+) × +([\d.]+) to ([\d.]+)", out)
    said = re.search(r"Take (\d+) responses.*: ([\d.]+) times .*\(95 %: ([\d.]+) to ([\d.]+)\)", out)
    assert chosen and said, out
    assert [float(number) for number in chosen.groups()] == [float(number) for number in said.groups()]


def test_prompts_that_do_not_differ_want_all_the_responses_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "in.parquet", [0, 0, 1, 1, 2, 2], [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    assert run(source, "--budget", "600") == 0
    out = capsys.readouterr().out
    assert "∞" in out
    assert "Take 2 responses of 100 prompts" in out and "the most that were looked at" in out

    assert "that prompts differ at all does not show in these values, so they set no limit to K" in out


def test_a_best_k_that_the_draws_bound_from_below_is_said_to_be_so(tmp_path: Path) -> None:
    found = report(pilot(tmp_path, 0.0, 1.0, prompts=10, seed=3))
    assert (found["between"], found["continuous"], found["k"]) == (0.0, None, 8)
    assert found["between_raw"] < 0
    low = found["intervals"]["continuous"][0]
    assert f"does not show in these values, and that K* is at least {low:.3g}, so they set no" in found["advice"]


def test_intervals_of_few_prompts_are_said_to_be_too_narrow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for prompts, is_said in ((39, True), (40, False)):
        assert run(pilot(tmp_path, 1.0, 4.0, prompts=prompts)) == 0
        assert ("Intervals of 39 prompts are too narrow" in capsys.readouterr().out) == is_said


@pytest.mark.parametrize("value", [1.0, 0.1, 1 / 3, 1e-300])
def test_values_that_do_not_differ_plan_nothing(value: float, tmp_path: Path) -> None:
    """A tenth leaves 1e-34 in sums of squares, and with it any K* at all."""
    source = write(tmp_path / "in.parquet", [0, 0, 0, 1, 1, 2], [value] * 6)
    found = report(source, "--plot", str(tmp_path / "p.png"))
    assert found["advice"] == (
        "These values do not say how many responses to take: no value differs from another, so what more responses "
        "gain cannot be told from them."
    )
    assert (found["between_raw"], found["within"]) == (0.0, 0.0)
    assert [found[name] for name in ("k", "continuous", "ratio", "curve")] == [None] * 4
    assert found["intervals"] == {"between": [0.0, 0.0], "within": [0.0, 0.0]}
    found = report(source, "--prompts", "10", "--budget", "70")
    assert (found["k"], found["ratio"]) == (3, None)
    assert found["advice"].startswith("The budget buys 3 responses of each of 10 prompts: no value differs from ")


@pytest.mark.parametrize("value", [1.0, 0.1])
def test_responses_that_do_not_differ_want_one_as_far_as_their_values_tell(value: float, tmp_path: Path) -> None:
    source = write(tmp_path / "in.parquet", [0, 0, 0, 1, 1, 1], [value] * 3 + [2.0] * 3)
    found = report(source)
    assert (found["within"], found["k"], found["intervals"]["within"]) == (0.0, 1, [0.0, 0.0])
    assert found["advice"] == (
        "By these values one response of each prompt is enough: no two responses of a prompt differ in these values, "
        "which cannot tell whether their gradients do."
    )
    assert report(source, "--prompts", "10", "--budget", "70")["advice"] == (
        "The budget buys 3 responses of each of 10 prompts: no two responses of a prompt differ in these values, "
        "which cannot tell whether their gradients do."
    )


def test_a_budget_is_counted_in_decimals(tmp_path: Path) -> None:
    """0.1 + 0.2 is above 0.3 in floats, 2.4 // 0.8 is 2 there, and (0.3 - 0.1) // 0.1 is 1."""
    source = pilot(tmp_path, 1.0, 4.0)
    costs = ("--prompt-cost", "0.1", "--response-cost", "0.2")
    assert report(source, *costs, "--budget", "0.3")["k"] == 1
    assert run(source, *costs, "--budget", "0.2999") == 2
    costs = ("--prompt-cost", "0.4", "--response-cost", "0.1")
    assert "Take 4 responses of 3 prompts" in report(source, *costs, "--budget", "2.4")["advice"]
    assert "Take 4 responses of 2 prompts" in report(source, *costs, "--budget", "2.3999")["advice"]
    costs = ("--prompt-cost", "0.1", "--response-cost", "0.1")
    assert report(source, *costs, "--budget", "0.3")["curve"]["k"][-1] == 2.0
    assert report(source, *costs, "--budget", "0.3", "--prompts", "1")["k"] == 2


def of_all_draws(sizes: list[int], seed: int) -> tuple[Any, Any, Any, float]:
    """Components of B prompts, and their means over all B**B draws with and without the correction; s² of the means."""
    B, offsets = len(sizes), np.cumsum([0, *sizes])
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(offsets[-1]) + rng.standard_normal(B).repeat(sizes)
    groups = command.summed(values, offsets)
    times = np.stack([np.bincount(draw, minlength=B) for draw in itertools.product(range(B), repeat=B)]).astype(float)
    times = times[(times @ (groups.sizes - 1)) > 0]
    found = (command.resampled(groups, times, correction).mean(0) for correction in (B / (B - 1), 1.0))
    means = np.add.reduceat(values, offsets[:-1]) / sizes
    return command.resampled(groups, np.ones((1, B)))[0], *found, float(means.var(ddof=1))


@pytest.mark.parametrize("sizes", [[3] * 5, [2] * 4], ids=str)
def test_components_of_prompts_drawn_anew_are_right_on_average(sizes: list[int]) -> None:
    """Without the correction V_x is short by a B-th of the variance of the prompts' means."""
    truth, corrected, plain, spread = of_all_draws(sizes, seed=6)
    steps, magnitude = 64 * len(sizes) ** len(sizes), float(np.abs(truth).sum())
    oracle.assert_summed(torch.from_numpy(corrected), torch.from_numpy(truth), steps, magnitude)
    missing = torch.tensor([truth[0] - spread / len(sizes), truth[1]])
    oracle.assert_summed(torch.from_numpy(plain), missing, steps, magnitude)


def test_of_unequal_prompts_drawn_anew_little_of_the_bias_is_left() -> None:
    """Over 40 pilots of five prompts; the mean error has a standard error of a seventh of the bias."""
    found = [of_all_draws(list(SIZES), seed)[:3] for seed in range(40)]
    left, plain = (np.mean([one[i][0] - one[0][0] for one in found]) for i in (1, 2))
    assert plain < -0.2
    assert abs(left) < 0.5 * abs(plain)


def test_values_near_the_largest_float64_have_a_curve(tmp_path: Path) -> None:
    source = pilot(tmp_path, 1.0, 4.0, prompts=40)
    table = pq.read_table(source)
    plain = report(source)
    write(source, table["p"].to_pylist(), table["v"].to_numpy() * 2.0**508)
    assert report(source, "--plot", str(tmp_path / "p.png"))["curve"] == plain["curve"]


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    source = pilot(tmp_path, 0.187, 1.329, prompts=30)
    made = []
    for name in ("a", "b"):
        files = [tmp_path / f"{name}.json", tmp_path / f"{name}.png"]
        assert run(source, "--report", str(files[0]), "--plot", str(files[1])) == 0
        made.append([file.read_bytes() for file in files])
    assert made[0] == made[1]
    assert len(made[0][1]) > 10_000


def test_the_example_of_the_help_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = re.search(r"  mrtkern (plan mrtkern/data.*?)\n8", command.EXAMPLE, re.DOTALL)
    assert found
    words = found[1].replace("\\\n", " ").replace("plan.png", str(tmp_path / "plan.png")).split()
    monkeypatch.chdir(ROOT)
    assert main(words) == 0
    assert (tmp_path / "plan.png").stat().st_size > 10_000


def test_the_proxy_of_the_help_is_the_gradient_of_what_is_added_to_hidden_states() -> None:
    """The snippet as it stands, against a gradient of each response of its own."""
    found = re.search(r"\n\n(  hidden = .*?)\n\n", command.DESCRIPTION, re.DOTALL)
    assert found
    generator = torch.Generator().manual_seed(3)
    hidden, head = torch.randn(7, 4, generator=generator), torch.randn(5, 4, generator=generator)
    targets, offsets = torch.tensor([0, 1, 2, 3, 4, 0, 1]), torch.tensor([0, 3, 4, 7])
    saved: dict[str, Any] = {}
    names = {"mk": mk, "torch": torch, "hidden": hidden, "head": head, "targets": targets, "offsets": offsets}
    snippet = re.sub("^  ", "", found[1], flags=re.MULTILINE).replace("numpy.save", "saved.__setitem__")
    exec(snippet, {**names, "saved": saved})
    for r in range(3):
        rows = slice(int(offsets[r]), int(offsets[r + 1]))
        added = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        logits = (hidden[rows].double() + added) @ head.double().mT
        loss = torch.nn.functional.cross_entropy(logits, targets[rows]) / 3
        (truth,) = torch.autograd.grad(loss, added)
        got = saved["gradients.npy"][r]
        oracle.assert_summed(got, truth, 64, float(truth.abs().max()) + 1)


REFUSED = {
    "a number of one prompt": (([0, 0], [1.0, 2.0]), (), "there must be at least two prompts, got 1"),
    "single responses": (([0, 1], [1.0, 2.0]), (), "some prompt must have at least two responses"),
    "NaN": (([0, 0, 1], [1.0, 2.0, float("nan")]), (), "column 'v' must hold finite numbers, got nan in row 2"),
    "cost": (None, ("--response-cost", "0"), "--response-cost must be positive and finite, got 0.0"),
    "prompt cost": (None, ("--prompt-cost", "-1"), "--prompt-cost must be finite and not negative, got -1.0"),
    "budget": (None, ("--budget", "nan"), "--budget must be positive and finite, got nan"),
    "prompts": (None, ("--prompts", "8"), "--prompts needs --budget"),
    "too little": (None, ("--prompts", "8", "--budget", "39"), "--budget must buy one response per prompt"),
    "nothing": (None, ("--budget", "4.5"), "--budget must buy a prompt with a response, at least 5, got 4.5"),
    "max K": (None, ("--max-k", "0"), "--max-k must be at least 1, got 0"),
    "plot": (None, ("--plot", "p.jpg"), "--plot must end in .png, got 'p.jpg'"),
    "report": (None, ("--report", "no/r.json"), "--report folder 'no' does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_input_that_cannot_be_used_is_one_line_and_status_2(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, options, sentence = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.parquet", *(rows or ([0, 0, 1, 1], [0.0, 1.0, 1.0, 3.0])))
    before = sorted(tmp_path.iterdir())
    assert run(Path("in.parquet"), *options) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mrtkern plan: ") and captured.err.count("\n") == 1
    assert sentence in captured.err
    assert captured.out == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.ones((3, 2)), "must have a row per response, 4, got 3"),
        (np.ones((4, 2), dtype=np.int64), r"must hold floats \[T\] or \[T, D\], got int64 \[4, 2\]"),
        (np.ones((4, 2, 2)), r"must hold floats \[T\] or \[T, D\]"),
        (np.array([0.0, 1.0, np.nan, 1.0]), "must be finite, got NaN or infinity in row 2"),
        (None, "cannot be read as npy"),
    ],
)
def test_gradients_that_cannot_be_used(
    array: Any, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, path = write(tmp_path / "in.parquet", [0, 0, 1, 1], [0.0, 1.0, 1.0, 3.0]), tmp_path / "g.npy"
    if array is None:
        path.write_bytes(b"no numbers")
    else:
        np.save(path, array)
    assert main(["plan", str(source), "--group-by", "p", "--gradients", str(path), *COSTS]) == 2
    error = capsys.readouterr().err
    assert re.search(sentence, error) and error.count("\n") == 1
