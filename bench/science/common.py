"""What all experiments share: mean and interval over seeds, the look of a figure, sections of SCIENCE.md."""

from __future__ import annotations

import importlib
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy import stats

from bench.report import align, headed
from bench.science import EXPERIMENTS
from mrtkern import Selection, select_responses
from mrtkern.cli.plot import GREY, INK, plain_axes

FOLDER = Path(__file__).resolve().parents[1]
DOCUMENT, PICTURES = FOLDER / "SCIENCE.md", FOLDER / "results"
FEWEST_SEEDS = 20  # of which numbers are written down
LEVEL = 0.95
BLUE, GREEN, RED, PURPLE, GOLD = "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#b8860b"  # Okabe and Ito's
PREAMBLE = """# Science

Written by `python -m bench.science` (`make science`): what arXiv 2606.00544 says about several responses per prompt,
simulated with this library. The benchmarks and the training runs at the end are written by the commands that they name,
because they fetch text and take longer. Numbers are means over seeds ± the half width of a 95 % interval (Student's t);
*printed* is what the paper or the derivations behind the library say. What is random has a seed, so the same command
gives the same numbers up to rounding.
"""

Found = dict[str, Any]  # what an experiment measured, arrays [seeds, ...]


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and the half width of its interval; arrays of them where an experiment has a grid."""

    value: Any
    half: Any

    @classmethod
    def of(cls, values: Any) -> Mean:
        """Over the first axis; the interval of one seed is not a number."""
        values = np.asarray(values, dtype=np.float64)
        count = len(values)
        if count < 2:
            return cls(values[0], np.full(values.shape[1:], np.nan))
        scale = stats.t.ppf((1 + LEVEL) / 2, count - 1) / np.sqrt(count)
        return cls(values.mean(0), scale * values.std(0, ddof=1))

    def __getitem__(self, index: Any) -> Mean:
        return Mean(self.value[index], self.half[index])

    def text(self, digits: int = 3) -> str:
        """0.501 ± 0.004."""
        return f"{self.value:.{digits}f} ± {self.half:.{digits}f}"


def generator(*key: int) -> np.random.Generator:
    """Random numbers of one seed and one purpose."""
    return np.random.default_rng(key)


def kept(rows: Any, K: int, method: str, reward: Any, seed: int) -> Selection:
    """K of the rows [prompts, N, D] of every prompt, by their rewards [prompts, N], without the library's warnings."""
    prompts, N, D = rows.shape
    x = torch.from_numpy(rows.reshape(-1, D)).float()
    offsets = torch.arange(0, prompts * N + 1, N)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that reward alone is as good: the experiments say how much
        return select_responses(x, offsets, K, method=method, reward=torch.from_numpy(reward.reshape(-1)), seed=seed)


def figure(width: float = 12.0, height: float = 4.6) -> Figure:
    """An empty picture."""
    return Figure(figsize=(width, height), dpi=110, facecolor="white", layout="constrained")


def titled(axes: Any, title: str, x: str, y: str) -> None:
    """Plain axes with a title to the left."""
    plain_axes(axes)
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)


def ticks(axis: Any, values: Sequence[float]) -> None:
    """These numbers alone, on a logarithmic axis too."""
    axis.set_ticks(values, [f"{value:g}" for value in values])
    axis.set_minor_locator(NullLocator())


def points(axes: Any, x: Any, mean: Mean, colour: str, **style: Any) -> None:
    """Means with their intervals."""
    style = {"marker": "o", "markersize": 4.5, "linestyle": "none", "capsize": 2.5, "linewidth": 1.4} | style
    axes.errorbar(x, mean.value, yerr=np.nan_to_num(mean.half), color=colour, ecolor=colour, **style)


def legend(axes: Any, **where: Any) -> None:
    """Without a box."""
    axes.legend(**{"frameon": False, "fontsize": 9, "labelcolor": INK} | where)


def baseline(axes: Any, y: float) -> None:
    """A thin line where nothing is gained or lost."""
    axes.axhline(y, color=GREY, linewidth=1.0, zorder=0)


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In Markdown; all columns but the first hold numbers."""
    return align(header, lines, is_markdown=True, numbers=slice(1, None))


def headings() -> list[str]:
    """Of all experiments, in their order."""
    return [importlib.import_module(f"bench.science.{name}").HEADING for name in EXPERIMENTS]


def replaced(document: str, heading: str, body: str, order: Sequence[str]) -> str:
    """The document with one section new; sections in the order of the experiments, others after them."""
    parts = {name: text for name, text in headed(document, "##").items() if name}
    parts[heading] = body.strip("\n")
    names = [name for name in order if name in parts] + [name for name in parts if name not in order]
    return PREAMBLE + "".join(f"\n## {name}\n\n{parts[name].strip()}\n" for name in names)


def write_section(heading: str, body: str, order: Sequence[str], path: Path = DOCUMENT) -> None:
    """Replace one section of SCIENCE.md, by way of a temporary file and a rename."""
    document = replaced(path.read_text(encoding="utf-8") if path.exists() else "", heading, body, order)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(document)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def save(picture: Figure, path: Path) -> None:
    """As PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, metadata={"Software": None})
