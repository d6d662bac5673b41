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
SIZE = (12.0, 4.6)
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


def compared(results: Results, better: Kind, worse: Kind, part: str, name: str) -> str:
    """A difference over the seeds that both have, with its interval."""
    pairs = zip(results[better], results[worse], strict=False)
    differences = [b["measured"][part][name] - w["measured"][part][name] for w, b in pairs]
    return text(Mean.of(differences))


def findings(results: Results) -> list[str]:
    """Where theory predicts an order: whether it came out."""
    done = sum(map(len, results.values()))
    seeds = {len(runs) for runs in results.values()}
    said = [f"{done} of {ALL} runs are done, {min(seeds)} to {max(seeds)} seeds a kind; one seed has no interval."]
    one, four = ("random", 1, "tokens"), ("random", 4, "tokens")
    if one in results and four in results:
        difference = compared(results, one, four, "held out", "nll")
        said.append(
            f"At equal tokens nll of held-out words changes by {difference} from K = 4 to K = 1, "
            f"of all responses of words of training by {compared(results, one, four, 'training', 'nll')}: theory "
            "predicts more where words are seen, because a data set of K = 1 never holds the other senses."
        )
    others = [kind for kind in results if kind[1] == 4 and kind[2] == "tokens" and kind[0] != "random"]
    if four in results and others:
        for part in ("training", "held out"):
            values = {kind[0]: measured(results, kind, part, "nll").value for kind in [four, *others]}
            ranked = sorted(values, key=values.__getitem__)
            said.append(f"At K = 4, smallest nll first ({part}): {', '.join(ranked)}.")
        said.append(
            "The paper's runs have random first (1.488), quality-diversity 1.503 and reward 1.534 at K = 4; theory "
            "puts what is unbiased for the pool (random, stratified) before reward."
        )
    return said


def draw(figure: Figure, results: Results) -> None:
    """Left: nll against K. Right: methods at K = 4."""
    left, right = figure.subplots(1, 2)
    common.titled(left, "Random, against K", "responses K kept per prompt", "nll of all responses of training words")
    for equal, colour in (("tokens", common.BLUE), ("steps", common.GREEN)):
        kinds = [kind for kind in order(results) if kind[0] == "random" and kind[2] == equal]
        if equal == "steps" and ("random", 4, "tokens") in results:
            kinds = sorted([*kinds, ("random", 4, "tokens")], key=lambda kind: kind[1])
        means = [measured(results, kind, "training", "nll") for kind in kinds]
        both = Mean(np.array([m.value for m in means]), np.array([m.half for m in means]))
        if kinds:
            common.points(left, [kind[1] for kind in kinds], both, colour, linestyle="-", label=f"equal {equal}")
    left.set_xscale("log")
    common.ticks(left.xaxis, (1, 2, 4, 8))
    common.legend(left)
    common.titled(right, "Methods at K = 4, equal tokens", "nll of all responses, held-out words", "training words")
    for kind in order(results):
        if kind[1] == 4 and kind[2] == "tokens":
            x, y = (measured(results, kind, part, "nll") for part in ("held out", "training"))
            ends = {"xerr": np.nan_to_num(x.half), "yerr": np.nan_to_num(y.half), "capsize": 2.5}
            label = kind[0].replace("_", " ")
            right.errorbar(x.value, y.value, color=COLOURS[kind[0]], marker=MARKERS[kind[0]], markersize=8, **ends)
            right.annotate(label, (x.value, y.value), xytext=(8, 5), textcoords="offset points", fontsize=9.5,
                           color=COLOURS[kind[0]])  # fmt: skip
    right.margins(0.25)


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
