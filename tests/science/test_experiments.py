"""The experiments of bench/science at toy size: the direction of each effect, and the golden numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from bench.science import (
    EXPERIMENTS,
    __main__,
    budget,
    common,
    diversity,
    gradients,
    modes,
    redundancy,
    trained,
    variance,
)
from mrtkern.select import METHODS

SEEDS = 4  # enough for a direction; numbers that are written down take 24
FAR = 5.0  # half widths: a fixed seed stays within them, a wrong formula does not


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Every experiment once, small."""
    return {
        "variance": variance.measure(SEEDS, prompts=40, draws=150),
        "budget": budget.measure(SEEDS, draws=300),
        "gradients": gradients.measure(SEEDS, prompts=40),
        "redundancy": redundancy.measure(SEEDS, rows=80, corpora=300),
        "modes": modes.measure(SEEDS, prompts=12, cases=6),
        "diversity": diversity.measure(SEEDS, count=16),
    }


def mean(found: dict[str, Any], name: str, key: str) -> common.Mean:
    return common.Mean.of(found[name][key])


def test_the_interval_is_students() -> None:
    values = common.Mean.of([1.0, 2.0, 3.0, 4.0])
    assert values.value == 2.5
    assert round(float(values.half), 3) == 2.054  # 3.182 (t of three degrees of freedom) * 1.291 / 2
    assert np.isnan(common.Mean.of([1.0]).half)


def test_the_law_predicts_the_simulation(found: dict[str, Any]) -> None:
    ratio = variance.ratio(found["variance"], "finite")
    off = np.abs(ratio.value - 1) / ratio.half
    assert np.nanmax(off) < FAR
    plain = variance.ratio(found["variance"], "infinite").value
    assert (plain < ratio.value + ratio.half).all() or np.isnan(ratio.value).any()
    assert plain[-1, -1] < 1e-9  # everything is kept: nothing varies


def test_the_formula_gives_the_printed_numbers() -> None:
    y = variance.pool(common.generator(0), variance.P)
    formula = {K: round(variance.predicted(y, 40, K), 4) for K in variance.PRINTED}
    assert formula == {K: printed for K, (_, printed) in variance.PRINTED.items()}


def test_the_best_k_is_the_printed_one_and_more_stops_paying(found: dict[str, Any]) -> None:
    c = budget.choice()
    assert (round(c.continuous, 2), round(c.ratio, 2)) == (budget.PRINTED_K, budget.PRINTED_RATIO)
    simulated = mean(found, "budget", "simulated").value
    assert 3 <= budget.RESPONSES[int(simulated.argmin())] <= 12
    assert simulated[budget.RESPONSES.index(56)] > simulated[0]  # beyond K*² = 28.4
    ratio = common.Mean.of(found["budget"]["simulated"] / found["budget"]["law"])
    assert (np.abs(ratio.value - 1) < FAR * ratio.half).all()


def test_no_components_and_no_costs_make_the_law_gain_k_times() -> None:
    rng = common.generator(8)
    for between, within, cost in rng.random((200, 3)) ** 4:
        c = budget.optimal_k(between + 1e-9, within, prompt_cost=1 / (cost + 1e-9), response_cost=1.0)
        assert c.variance(1) / c.variance(4) < 4


def test_reward_misleads_and_random_does_not(found: dict[str, Any]) -> None:
    gaussian, softmax = mean(found, "gradients", "gaussian"), mean(found, "gradients", "softmax")
    reward, random = METHODS.index("reward"), METHODS.index("random")
    printed = np.asarray(gradients.PRINTED["reward"])
    assert (np.abs(gaussian.value[:, reward] - printed) < 0.03).all()
    assert (np.abs(softmax.value[:2, reward] + 1) < 1e-6).all() and softmax.value[-1, reward] > 0.99
    assert (gaussian.value[:, random] > 0.4).all()
    assert (gaussian.value[:3, reward] < 0).all()


def test_duplicated_prompts_are_responses(found: dict[str, Any]) -> None:
    copies = mean(found, "redundancy", "found").value
    assert np.array_equal(copies, redundancy.COPIES)
    simulated = mean(found, "redundancy", "simulated")
    law = np.array([redundancy.BETWEEN * m / 80 + redundancy.WITHIN / (80 * redundancy.K) for m in redundancy.COPIES])
    assert (np.abs(simulated.value - law) < FAR * simulated.half).all()
    assert simulated.value[-1] > 2 * simulated.value[0]
    swept = mean(found, "redundancy", "swept").value
    assert swept[0] == 4 and swept[-1] < 1.5


def test_reward_keeps_fewer_modes_and_stratified_is_nearest(found: dict[str, Any]) -> None:
    distance, rmse = mean(found, "modes", "distance").value, mean(found, "modes", "rmse").value
    at = {name: METHODS.index(name) for name in METHODS}
    four, eight = modes.RESPONSES.index(4), modes.RESPONSES.index(8)
    assert distance[four, at["reward"]] > distance[four, at["random"]] > distance[four, at["stratified"]]
    assert rmse[four, at["stratified"]] < 0.75 * rmse[four, at["random"]]
    assert rmse[eight, at["stratified"]] < 0.3 * rmse[eight, at["random"]]
    kept = mean(found, "modes", "modes").value
    assert kept[four, at["coverage"]] > kept[four, at["reward"]]


def test_greedy_is_above_its_guarantee_and_below_its_certificate(found: dict[str, Any]) -> None:
    worst, average, certified = found["modes"]["greedy"].T
    assert (worst >= modes.LEAST).all() and (worst <= 1 + 1e-3).all()  # fixed point: half a step a row
    assert (certified <= average + 1e-3).all()


def test_k_pays_most_where_diversity_is_high_and_redundancy_low(found: dict[str, Any]) -> None:
    gain = mean(found, "diversity", "gain").value[:, -1]
    best = diversity.CELLS.index(("high", "low"))
    assert gain.argmax() == best
    assert gain[best] > 1.5 * np.sort(gain)[-2]
    diverse = dict(zip(diversity.CELLS, mean(found, "diversity", "diversity").value, strict=True))
    assert diverse["high", "low"] > 3 * diverse["low", "low"]
    copies = dict(zip(diversity.CELLS, mean(found, "diversity", "copies").value, strict=True))
    assert (copies["high", "low"], copies["high", "high"]) == (1.0, 8.0)


def test_methods_are_told_apart_on_the_same_pools() -> None:
    """Seeds differ by more than methods do; the last method is above random in most seeds and not in all."""
    seeds = np.arange(SEEDS)[:, None, None] * np.ones((1, 2, len(METHODS)))
    above, below, mixed = METHODS.index("coverage"), METHODS.index("reward"), METHODS.index("additive")
    cosines = seeds.copy()
    cosines[..., above] += 0.1 + 0.01 * seeds[..., 0] ** 2
    cosines[..., below] -= 0.1 + 0.01 * seeds[..., 0] ** 2
    cosines[..., mixed] += [[0.3, 0.3], [0.3, 0.3], [0.3, 0.3], [-0.6, 0.3]]
    assert gradients.told_apart(cosines) == ["coverage"]
    assert gradients.told_apart(-cosines) == ["reward"]


def record(method: str, k: int, equal: str, seed: int, nll: float) -> dict[str, Any]:
    """What a training run leaves, every number the same."""
    numbers = {"nll": nll, "kl": nll, "modes": nll}
    run = {"method": method, "k": k, "equal": equal, "seed": seed}
    return {"run": run, "facts": {"epochs": 2.0, "steps": 90}, "measured": dict.fromkeys(trained.PARTS, numbers)}


def test_an_order_of_training_runs_is_judged_seed_by_seed() -> None:
    """Seeds differ by 1; K = 2 is better than 1 by 0.1 in each, K = 8 worse than 4, K = 4 better or worse than 2."""
    nll = {1: [5.0, 6.0, 7.01], 2: [4.9, 5.9, 6.9], 4: [4.8, 5.8, 7.1], 8: [4.9, 5.91, 7.2]}
    results: trained.Results = {
        kind: [record(*kind, seed, nll[kind[1]][seed]) for seed in range(3)] for kind in trained.RANDOM
    }
    reward = ("reward", 4, "tokens")
    results[reward] = [record(*reward, 2, 7.0)]
    lines = {line.split("|")[1].strip(): line for line in trained.orders(results).splitlines()}
    said = "nll, training, equal steps: less with K = {} than with K = {}"
    assert "-0.103 ± 0.014" in lines[said.format(2, 1)] and lines[said.format(2, 1)].endswith("yes |")
    assert lines[said.format(4, 2)].rstrip(" |").endswith("not told apart")
    assert lines[said.format(8, 4)].rstrip(" |").endswith("the other way round")
    alone = lines["nll, training, K = 4: less with random than with reward"]
    assert "0.100" in alone and alone.rstrip(" |").endswith("not known of one seed")
    assert not any("quality_diversity" in line for line in lines)
    assert "told apart from random: none" in "".join(trained.findings(results))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_and_draws_what_it_found(name: str, found: dict[str, Any], tmp_path: Path) -> None:
    experiment = __import__(f"bench.science.{name}", fromlist=["draw"])
    text = __main__.section(experiment, name, found[name], SEEDS)
    assert experiment.CLAIM in text and "nan" not in text
    picture = common.figure(*experiment.SIZE)
    experiment.draw(picture, found[name])
    common.save(picture, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_sections_keep_their_order_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "SCIENCE.md"
    for heading, body in (("B", "one"), ("A", "two"), ("Other", "kept"), ("B", "three")):
        common.write_section(heading, body, ["A", "B"], path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith(common.PREAMBLE)
    assert text.endswith("\n## A\n\ntwo\n\n## B\n\nthree\n\n## Other\n\nkept\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["best"], "name must be one of .*, got 'best'"),
        (["modes", "--seeds", "0"], "--seeds must be at least 1, got 0"),
    ],
)
def test_a_command_line_without_meaning_is_refused(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        __main__.parse(words)
    assert re.search(sentence, capsys.readouterr().err)
