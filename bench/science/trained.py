"""What the runs of `bench.science.training` say: a table, findings and a picture, of the runs that are done."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.science import common
from bench.science.common import Mean
from mrtkern.cli.plot import COLOURS, MARKERS
from mrtkern.select import METHODS

HEADING = "A real run"
ALL = 36
MEASURES = (
    ("held out", "nll", "nll, held out"), ("held out", "kl", "kl, held out"), ("training", "nll", "nll, training"),
    ("training", "kl", "kl, training"), ("training", "modes", "modes, training"),
)  # fmt: skip
SIZE = (14.0, 4.6)
Kind = tuple[str, int, str]  # method, K, what is equal

Results = dict[Kind, list[dict[str, Any]]]


def read(folder: Path) -> Results:
    """Runs by kind, seeds in order."""
    found: Results = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        run = result["run"]
        found[run["method"], run["k"], run["equal"]].append(result)
    return dict(found)


def measured(results: Results, kind: Kind, part: str, name: str) -> Mean:
    """Over seeds."""
    return Mean.of([result["measured"][part][name] for result in results[kind]])


def text(mean: Mean) -> str:
    """One seed has no interval."""
    return mean.text(3) if np.isfinite(mean.half) else f"{mean.value:.3f}"


def order(results: Results) -> list[Kind]:
    """Random by K, the other methods, then equal steps."""
    return sorted(results, key=lambda kind: (kind[2] == "steps", METHODS.index(kind[0]), kind[1]))


def table(results: Results) -> str:
    """A line per kind of run."""
    lines = []
    for kind in order(results):
        method, k, equal = kind
        facts = [result["facts"] for result in results[kind]]
        epochs, steps = (np.mean([one[name] for one in facts]) for name in ("epochs", "steps"))
        numbers = [text(measured(results, kind, part, name)) for part, name, _ in MEASURES]
        lines.append([f"{method}, K = {k}, equal {equal}", f"{len(facts)}", f"{steps:.0f}", f"{epochs:.1f}", *numbers])
    return common.table(("", "seeds", "steps", "epochs", *(heading for *_, heading in MEASURES)), lines)


def by_k(results: Results, equal: str) -> list[Kind]:
    """Runs of random selection by K; those of K = 4 are both at equal tokens and at equal steps."""
    four = ("random", 4, "tokens")
    kinds = [kind for kind in results if kind[0] == "random" and (kind[2] == equal or kind == four)]
    return sorted(kinds, key=lambda kind: kind[1])


def ranked(results: Results, kinds: list[Kind], part: str) -> list[Kind]:
    """By nll, smallest first."""
    return sorted(kinds, key=lambda kind: measured(results, kind, part, "nll").value)


def findings(results: Results) -> list[str]:
    """Where theory predicts an order: whether it came out."""
    done = sum(map(len, results.values()))
    seeds = {len(runs) for runs in results.values()}
    said = [f"{done} of {ALL} runs are done, {min(seeds)} to {max(seeds)} seeds a kind; one seed has no interval."]
    for equal in ("tokens", "steps"):
        kinds = by_k(results, equal)
        if len(kinds) < 2:
            continue
        orders = {part: [kind[1] for kind in ranked(results, kinds, part)] for part in ("held out", "training")}
        texts = {part: ", ".join(map(str, found)) for part, found in orders.items()}
        said.append(f"At equal {equal}, smallest nll first: K = {texts['held out']} (held out), {texts['training']} "
                    "(words of training).")  # fmt: skip
        did = "does" if orders["training"] == sorted(orders["training"], reverse=True) else "does not"
        said[-1] += {
            "tokens": " A step takes 16 prompts whatever K is: a smaller K makes more updates and sees fewer senses.",
            "steps": f" Theory predicts that nll of words of training falls with K: it {did}.",
        }[equal]
    four = ("random", 4, "tokens")
    others = [kind for kind in results if kind[1] == 4 and kind[2] == "tokens" and kind[0] != "random"]
    if four in results and others:
        for part in ("training", "held out"):
            names = [kind[0] for kind in ranked(results, [four, *others], part)]
            said.append(f"At K = 4, smallest nll first ({part}): {', '.join(names)}.")
        if max(seeds) == 1:
            said.append("Of one seed each, a difference between methods says nothing yet.")
        said.append(
            "The paper's runs have random first (1.488), quality-diversity 1.503 and reward 1.534 at K = 4; theory "
            "puts what is unbiased for the pool (random, stratified) before reward."
        )
    return said


def draw(figure: Figure, results: Results) -> None:
    """Against K, of words of training and of held-out ones; methods at K = 4 where there are others than random."""
    methods = [kind for kind in order(results) if kind[1] == 4 and kind[2] == "tokens"]
    panels = figure.subplots(1, 3 if len(methods) > 1 else 2)
    for axes, part, words in zip(
        panels, ("training", "held out"), ("words of training", "held-out words"), strict=False
    ):
        common.titled(axes, f"Random, {words}", "responses K kept per prompt", "nll of a token of all responses")
        for equal, colour in (("tokens", common.BLUE), ("steps", common.GREEN)):
            kinds = by_k(results, equal)
            means = [measured(results, kind, part, "nll") for kind in kinds]
            both = Mean(np.array([m.value for m in means]), np.array([m.half for m in means]))
            if len(kinds) > 1:
                common.points(axes, [kind[1] for kind in kinds], both, colour, linestyle="-", label=f"equal {equal}")
        axes.set_xscale("log")
        common.ticks(axes.xaxis, (1, 2, 4, 8))
        common.legend(axes)
    if len(methods) > 1:
        draw_methods(panels[2], results, methods)


def draw_methods(axes: Any, results: Results, kinds: list[Kind]) -> None:
    """A point per method."""
    common.titled(axes, "Methods at K = 4, equal tokens", "nll, held-out words", "nll, words of training")
    for kind in kinds:
        x, y = (measured(results, kind, part, "nll") for part in ("held out", "training"))
        ends = {"xerr": np.nan_to_num(x.half), "yerr": np.nan_to_num(y.half), "capsize": 2.5}
        colour = COLOURS[kind[0]]
        axes.errorbar(x.value, y.value, color=colour, marker=MARKERS[kind[0]], markersize=8, **ends)
        axes.annotate(
            kind[0].replace("_", " "), (x.value, y.value), xytext=(8, 5), textcoords="offset points", fontsize=9.5,
            color=colour,
        )  # fmt: skip
    axes.margins(0.25)


def write(data: Path, scale: Any, folder: Path) -> None:
    """The section of SCIENCE.md and its picture; nothing of a scale for tests."""
    results = read(folder)
    if not results:
        return
    facts = next(iter(results.values()))[0]["facts"]
    claim = (
        f"A decoder of {facts['parameters']:,} parameters trained from scratch on {scale.tokens:,} tokens of the "
        f"benchmark {data.name} (scale {scale.name}), as `bench/science/training.py` says; intervals are over seeds."
    )
    parts = [claim, f"![{HEADING}](results/science_training.png)", table(results)]
    parts.append("\n".join(f"* {finding}" for finding in findings(results)))
    print("\n\n".join(parts))
    if scale.name != "toy":
        picture = common.figure(*SIZE)
        draw(picture, results)
        common.save(picture, common.PICTURES / "science_training.png")
        common.write_section(HEADING, "\n\n".join(parts), common.headings())
