"""What the runs of `bench.science.training` say: a table, findings and a picture, of the runs that are done."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.science import common
from bench.science.common import Mean
from mrtkern.cli.plot import GREY
from mrtkern.select import METHODS

HEADING = "A real run"
ALL = 36
MEASURES = (
    ("held out", "nll", "nll, held out"), ("held out", "kl", "kl, held out"), ("training", "nll", "nll, training"),
    ("training", "kl", "kl, training"), ("training", "modes", "modes, training"),
)  # fmt: skip
PARTS = ("training", "held out")
SIZE = (14.0, 4.6)
Kind = tuple[str, int, str]  # method, K, what is equal
RANDOM: tuple[Kind, ...] = (
    ("random", 1, "steps"), ("random", 2, "steps"), ("random", 4, "tokens"), ("random", 8, "steps")
)  # fmt: skip

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


@dataclass(frozen=True)
class Order:
    """What theory says of two kinds of run: that the second has less (or more) of something."""

    first: Kind
    second: Kind
    part: str
    measure: str
    sign: int = -1

    def words(self) -> str:
        """Of the table."""
        is_of_k = self.first[0] == self.second[0]
        first, second = (f"K = {k}" if is_of_k else method for method, k, _ in (self.first, self.second))
        which = next(heading for part, name, heading in MEASURES if (part, name) == (self.part, self.measure))
        under = "equal steps" if is_of_k else "K = 4"
        return f"{which}, {under}: {'less' if self.sign < 0 else 'more'} with {second} than with {first}"


STEPS = [(RANDOM[i], RANDOM[j]) for i, j in ((0, 1), (1, 2), (2, 3), (0, 3))]
OTHERS = (("training", "nll", -1), ("held out", "nll", -1), ("training", "modes", 1))
ORDERS = [Order(first, second, part, "nll") for part in PARTS for first, second in STEPS]
ORDERS += [
    Order(("reward", 4, "tokens"), (method, 4, "tokens"), part, name, sign)
    for method in ("random", "stratified")
    for part, name, sign in OTHERS
]
ORDERS += [Order(("quality_diversity", 4, "tokens"), ("random", 4, "tokens"), part, "nll") for part in PARTS]


def difference(results: Results, said: Order) -> Mean:
    """The second less the first, over the seeds of both: a seed has the same first weights and order of prompts."""
    one, other = (
        {run["run"]["seed"]: run["measured"][said.part][said.measure] for run in results.get(kind, ())}
        for kind in (said.first, said.second)
    )
    seeds = sorted(one.keys() & other.keys())
    return Mean.of([other[seed] - one[seed] for seed in seeds]) if seeds else Mean(np.nan, np.nan)


def verdict(found: Mean, sign: int) -> str:
    """Whether an order came out, by the interval of the difference."""
    if not np.isfinite(found.half):
        return "not known of one seed"
    if abs(found.value) <= found.half:
        return "not told apart"
    return "yes" if found.value * sign > 0 else "the other way round"


def judged(results: Results) -> list[tuple[Order, Mean, str]]:
    """The orders of which there are runs, with differences and verdicts."""
    each = [(said, difference(results, said)) for said in ORDERS]
    return [(said, found, verdict(found, said.sign)) for said, found in each if np.isfinite(found.value)]


def orders(results: Results) -> str:
    """A line for each order that theory predicts and of which there are runs."""
    lines = [[said.words(), text(found), word] for said, found, word in judged(results)]
    return common.table(("theory", "difference", "came out"), lines)


def findings(results: Results) -> list[str]:
    """What the tables do not say by themselves."""
    done, seeds = sum(map(len, results.values())), sorted({len(runs) for runs in results.values()})
    known = " to ".join(str(number) for number in (seeds if len(seeds) < 2 else (seeds[0], seeds[-1])))
    words = Counter(word for *_, word in judged(results))
    said = [
        f"{done} of {ALL} runs are done, {known} seed{'s' * (seeds[-1] > 1)} a kind. Differences are taken seed by "
        "seed; an order came out where their 95 % interval lies on its side of 0, which chance does to one in forty. "
        f"Of {words.total()} orders {words['yes']} came out and {words['the other way round']} the other way round; "
        "the others this many seeds cannot tell.",
        "At equal steps a larger K reads more tokens; that these help, with held-out words too, is what theory says.",
        "kl is of likelihoods of whole texts, which differ by tens of nats between texts of other lengths: no run is "
        "near calibrated.",
    ]
    kinds = by_k(results, "tokens")
    if len(kinds) > 1:
        found = {part: ", ".join(str(kind[1]) for kind in ranked(results, kinds, part)) for part in PARTS}
        said.append(
            f"At equal tokens, smallest nll first: K = {found['held out']} (held out), {found['training']} (words of "
            "training). Theory predicts no order here: a step takes 16 prompts whatever K is, so that a smaller K "
            "makes more updates and sees fewer senses, more often."
        )
    four = ("random", 4, "tokens")
    others = [kind for kind in results if kind[1] == 4 and kind[2] == "tokens" and kind[0] != "random"]
    if four in results and others:
        for part in PARTS:
            names = [kind[0] for kind in ranked(results, [four, *others], part)]
            apart = [kind[0] for kind in others if told(difference(results, Order(four, kind, part, "nll")))]
            which = f"told apart from random: {', '.join(apart) or 'none'}"
            said.append(f"At K = 4, smallest nll first ({part}): {', '.join(names)}; {which}.")
        said.append(
            "The paper's runs have random first (1.488), quality-diversity 1.503 and reward 1.534 at K = 4. Its reward "
            "is another model's opinion; here it is the frequency that also weighs a sense in nll and kl, which "
            "favours reward. Of 4 to 8 senses of most words every method keeps half and more."
        )
    return said


def told(found: Mean) -> bool:
    """Whether an interval leaves 0 out."""
    return bool(np.isfinite(found.half) and abs(found.value) > found.half)


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
    """What each method has more than random, seed by seed: a line per method, its words of training above."""
    common.titled(axes, "Methods at K = 4, equal tokens", "nll minus that of random, seed by seed", "")
    others = [kind for kind in kinds if kind[0] != "random"]
    for part, colour, up in (("training", common.BLUE, 0.12), ("held out", common.GOLD, -0.12)):
        found = [difference(results, Order(("random", 4, "tokens"), kind, part, "nll")) for kind in others]
        axes.errorbar(
            [mean.value for mean in found], [up - i for i in range(len(others))],
            xerr=[float(np.nan_to_num(mean.half)) for mean in found], color=colour, marker="o", markersize=5,
            linestyle="none", capsize=2.5, label="words of training" if part == "training" else "held-out words",
        )  # fmt: skip
    axes.axvline(0.0, color=GREY, linewidth=1.0, zorder=0)
    axes.set_yticks([-i for i in range(len(others))], [kind[0].replace("_", " ") for kind in others])
    axes.set_ylim(-len(others) + 0.5, 1.3)
    common.legend(axes, loc="upper left", ncols=2)


def write(data: Path, scale: Any, folder: Path) -> None:
    """The section of SCIENCE.md and its picture; nothing of a scale for tests."""
    results = read(folder)
    if not results:
        return
    facts = next(iter(results.values()))[0]["facts"]
    claim = (
        f"A decoder of {facts['parameters']:,} parameters trained from scratch on {scale.tokens:,} tokens of the "
        f"benchmark {data.name} by `python -m bench.science.training FOLDER --scale {scale.name}`, as its help says. "
        "Runs take equal tokens, those of prompts included, or the steps of random K = 4. Intervals are over seeds."
    )
    parts = [claim, f"![{HEADING}](results/science_training.png)", table(results)]
    parts.append(orders(results))
    parts.append("\n".join(f"* {finding}" for finding in findings(results)))
    print("\n\n".join(parts))
    if scale.name != "toy":
        picture = common.figure(*SIZE)
        draw(picture, results)
        common.save(picture, common.PICTURES / "science_training.png")
        common.write_section(HEADING, "\n\n".join(parts), common.headings())
