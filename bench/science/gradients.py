"""What selection does to a gradient: its cosine with the gradient of the whole distribution, for every method."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.science import common
from bench.science.common import Found, Mean
from mrtkern.cli.plot import COLOURS, MARKERS
from mrtkern.select import METHODS

HEADING = "Gradients under selection"
CLAIM = """Keeping the largest rewards can point away from the gradient that all responses give. A Gaussian model (mean,
log sigma) faces data in three modes, rewards fall with the distance from the middle one, 4 of 64 are kept. A softmax
model (.6, .2, .2) faces three equally frequent modes, the reward is the model's own likelihood, K of 32 are kept."""
SIZE = (12.0, 4.8)
DISTANCES = (0.0, 0.25, 0.5, 1.0)  # of the model's mean from the data's
PRINTED = {"reward": (-1.00, -0.78, -0.39, 0.55), "random": (0.53, None, None, 0.73)}
PAPER = {"random": 0.63, "reward": -0.096}  # its headline
N, K, NOISE = 64, 4, 0.1
POOL, KEPT = 32, (1, 4, 16, 32)  # of the softmax model
PRINTED_SOFTMAX = {"reward": (-1.0, -1.0, -0.32, 1.0)}
PROMPTS = 250  # a seed
SHARED = ("stratified",)  # methods whose picks are weighted by the share they stand for, as documented


def cosine(a: Any, b: Any) -> Any:
    """Along the last axis."""
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def averages(method: str, rows: Any, reward: Any, gradient: Any, kept: int, seed: int) -> Any:
    """[prompts, features]: what the kept responses of every prompt say the gradient is."""
    found = common.kept(rows, kept, method, reward, seed)
    weight = found.share.numpy() if method in SHARED else np.full(len(found.ids), 1 / kept)
    flat = gradient.reshape(-1, gradient.shape[-1])
    return (flat[found.ids.numpy()] * weight[:, None]).reshape(len(rows), kept, -1).sum(1)


def gaussian(seed: int, distance: float, prompts: int) -> dict[str, float]:
    """Mean over prompts of the cosine, by method."""
    rng = common.generator(3, seed)
    y = 1.5 * rng.integers(-1, 2, (prompts, N)) + NOISE * rng.standard_normal((prompts, N))
    gradient = np.stack([distance - y, 1 - (y - distance) ** 2], axis=-1)
    true = np.array([distance, 1 - (distance**2 + 1.5 + NOISE**2)])
    rows = np.stack([y, np.ones_like(y)], axis=-1)
    return {m: float(cosine(averages(m, rows, -(y**2), gradient, K, seed), true).mean()) for m in METHODS}


def softmax(seed: int, kept: int, prompts: int, *, is_sorted: bool = True) -> dict[str, float]:
    """Cosine of the mean gradient over prompts, by method. Equal rewards go to the lower row: the order matters."""
    rng = common.generator(4, seed)
    model = np.array([0.6, 0.2, 0.2])
    mode = rng.integers(0, 3, (prompts, POOL))
    mode = np.sort(mode, axis=1) if is_sorted else mode
    one_hot = np.eye(3)[mode]
    found = {}
    for method in METHODS:
        mean = averages(method, one_hot, model[mode], one_hot, kept, seed).mean(0)
        found[method] = float(cosine(model - mean, model - 1 / 3))
    return found


def measure(seeds: int, *, prompts: int = PROMPTS) -> Found:
    """gaussian [seeds, distance, method], softmax [seeds, K, method]; unsorted [seeds], of reward and K = 16."""
    found: Found = {"gaussian": [], "softmax": [], "unsorted": []}
    for seed in range(seeds):
        by_distance = [gaussian(seed, distance, prompts) for distance in DISTANCES]
        by_count = [softmax(seed, kept, prompts) for kept in KEPT]
        for name, grid in (("gaussian", by_distance), ("softmax", by_count)):
            found[name].append([[row[method] for method in METHODS] for row in grid])
        found["unsorted"].append(softmax(seed, 16, prompts, is_sorted=False)["reward"])
    return {name: np.asarray(values) for name, values in found.items()}


def table(found: Found) -> str:
    """Both models; the printed numbers in brackets."""
    lines = []
    means, modes = Mean.of(found["gaussian"]), Mean.of(found["softmax"])
    for i, method in enumerate(METHODS):
        line = [method]
        for mean, printed in ((means, PRINTED), (modes, PRINTED_SOFTMAX)):
            for j, number in enumerate(printed.get(method, (None,) * len(mean.value))):
                line.append(mean[j, i].text(2) + (f" [{number:.2f}]" if number is not None else ""))
        lines.append(line)
    header = ["cosine [printed]", *(f"distance {d:g}" for d in DISTANCES), *(f"softmax, K = {k}" for k in KEPT)]
    return common.table(header, lines)


def told_apart(cosines: Any) -> list[str]:
    """Methods above random at every distance, by the interval of what they differ by, seed for seed."""
    apart = Mean.of(cosines - cosines[..., [METHODS.index("random")]])
    return [m for i, m in enumerate(METHODS) if (apart.value[:, i] > apart.half[:, i]).all()]


def findings(found: Found) -> list[str]:
    """In words."""
    means = Mean.of(found["gaussian"])
    random, reward = (means[:, METHODS.index(name)] for name in ("random", "reward"))
    worse, better = (told_apart(sign * found["gaussian"]) for sign in (-1, 1))
    return [
        f"Reward-only selection has a negative cosine up to a distance of 0.5 ({reward[2].text(2)} there), random K "
        f"never ({random.value.min():.2f} to {random.value.max():.2f}). The paper's headline for its own task: "
        f"{PAPER['random']} and {PAPER['reward']}.",
        f"Better than random at every distance: {', '.join(better) or 'none'}; worse at every distance: "
        f"{', '.join(worse) or 'none'} (by the interval of the difference on the same pools).",
        "Equal rewards go to the lower row, and the softmax model's pools are sorted by mode, as for the printed "
        f"numbers. In any order reward-only keeps both rare modes alike, and its cosine at K = 16 is "
        f"{Mean.of(found['unsorted']).text(2)} instead of {PRINTED_SOFTMAX['reward'][2]}.",
        "The cosine is that of one prompt's gradient, averaged over prompts (Gaussian), or of the mean gradient "
        "(softmax): the noise of an unbiased method averages out, the bias of a biased one does not.",
    ]


def draw(figure: Figure, found: Found) -> None:
    """A line per method."""
    left, right = figure.subplots(1, 2)
    names = ("distance of the model's mean from the data's", f"responses K kept of {POOL}")
    common.titled(left, f"Gaussian model, {K} of {N} kept", names[0], "cosine with the true gradient")
    common.titled(right, "Softmax model over three modes", names[1], "cosine of the mean gradient")
    for axes, name, x in ((left, "gaussian", np.asarray(DISTANCES)), (right, "softmax", np.arange(len(KEPT)))):
        means = Mean.of(found[name])
        for i, method in enumerate(METHODS):
            style = {"marker": MARKERS[method], "linestyle": "-", "markersize": 6}
            shift = 0.01 * (i - 2.5) * (x.max() - x.min())
            common.points(axes, x + shift, means[:, i], COLOURS[method], label=method.replace("_", " "), **style)
        common.baseline(axes, 0.0)
        axes.set_ylim(-1.08, 1.08)
    for i, printed in enumerate(PRINTED["reward"]):
        ring = {"s": 130, "facecolors": "none", "edgecolors": common.INK, "linewidths": 1.0, "zorder": 5}
        left.scatter(DISTANCES[i] + 0.01 * 2.5, printed, **ring)
        right.scatter(i + 0.03 * 2.5, PRINTED_SOFTMAX["reward"][i], **ring)
    left.scatter([], [], s=80, facecolors="none", edgecolors=common.INK, label="printed, of reward")
    left.set_xticks(DISTANCES)
    right.set_xticks(range(len(KEPT)), [str(kept) for kept in KEPT])
    common.legend(left, loc="lower right", ncols=2)
