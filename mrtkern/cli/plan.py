"""`mrtkern plan`: how many responses per prompt a budget should buy, from a table of values or gradients of responses.

packing.py reads the prompts and values; the library estimates the components and the best K; prompts drawn anew, with
replacement, say how sure that is; plan_plot.py draws the curve. Memory beside the values: 24 bytes per prompt and
feature, and some hundred megabytes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from mrtkern import __version__
from mrtkern.budget import (
    KChoice,
    VarianceComponents,
    optimal_k,
    prompts_bought,
    responses_bought,
    variance_components,
)
from mrtkern.cli import InputError, add_table, counted, new_parser
from mrtkern.cli.packing import Packed, Wanted, read_columns
from mrtkern.cli.progress import Steps
from mrtkern.cli.reading import open_source
from mrtkern.cli.writing import Temporary, without_nan

DRAWS = 1000  # of the prompts: the ends of a 95 % interval are then 25 draws from the ends
INTERVAL = (2.5, 97.5)  # percent
NUMBERS_PER_CHUNK = 1 << 23  # float64 counts of prompts in the largest temporary array
CURVE = 200  # points of it
# Of 300 pilots each of 5, 10, 20, 40 and 100 prompts, values normal, 75, 83, 86, 90 and 94 % of the intervals held V_x.
FEW = 40  # prompts, below which intervals are said to be too narrow
FLOATS = (np.float16, np.float32, np.float64)  # of a file of gradients
SUMMARY = "how many responses per prompt a budget should buy, from the variance between and within prompts"
DESCRIPTION = """\
How many responses per prompt: the mean over n prompts of the mean over K responses has variance V_x / n + V_yx / (n K),
a budget buys n = B / (prompt cost + K response cost) prompts, so there is a best K.

V_x, between prompts, and V_yx, within a prompt, are estimated from a table with a row per response (or lists of them),
of prompts of any sizes, some with at least two. What varies should be what training averages: gradients. A loss or a
reward (--value) is a rough stand-in: where a model is uniform, losses do not vary at all and gradients do. A proxy of a
gradient costs nearly nothing, because linear_cross_entropy holds the gradient of the hidden states already. Its sum
over the tokens of a response, [responses, features], is a file for --gradients:

  hidden = hidden.detach().requires_grad_()
  loss = mk.linear_cross_entropy(hidden, head, targets, token_weight=mk.response_weights(
      targets, "response", offsets=offsets))
  (dh,) = torch.autograd.grad(loss, hidden)
  numpy.save("gradients.npy", torch.segment_reduce(dh.float(), "sum", offsets=offsets))

That is the gradient of a vector added to the hidden states. For one of the head's input side as well, append
segment_reduce(dh * (hidden @ r)[:, None], ...) for a few fixed random vectors r of length 1.

With --prompts their number is fixed, and K is what the budget buys. Intervals (95 %) come from prompts drawn anew;
those of fewer than 40 prompts are too narrow.
"""
EXAMPLE = """\
example: from the folder of the repository; a word is a prompt and how often a sense is met its value
  mrtkern plan mrtkern/data/wordnet_senses.parquet --group-by word --value tag_count \\
      --prompt-cost 4 --response-cost 1 --plot plan.png
800 prompts there are, of 100 tokens, responses of 250, for a million tokens
  mrtkern plan responses.parquet --group-by prompt_id --gradients gradients.npy \\
      --prompt-cost 100 --response-cost 250 --prompts 800 --budget 1e6

exit status: 0 done; 2 input that cannot be used: one sentence says why, and no output is written; 130 Ctrl-C
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the parser of `mrtkern`."""
    parser = new_parser(subparsers, "plan", SUMMARY, DESCRIPTION, EXAMPLE)
    add = parser.add_argument
    add_table(parser, writes=False)
    add("--group-by", metavar="COL", required=True, help="the prompt of a row")
    values = parser.add_mutually_exclusive_group(required=True)
    values.add_argument("--value", metavar="COL", help="a number per response")
    values.add_argument(
        "--gradients", type=Path, metavar="FILE", help=".npy, [responses] or [responses, features], in IN's order"
    )
    add("--prompt-cost", type=float, required=True, metavar="C", help="of a prompt, in any unit: tokens, seconds")
    add("--response-cost", type=float, required=True, metavar="C", help="of one response, in the same unit")
    add("--budget", type=float, metavar="B", help="what there is, in the same unit")
    add("--prompts", type=int, metavar="n", help="their number is fixed; needs --budget")
    add("--max-k", type=int, metavar="K", help="the most to plan for (default: the most that a prompt of IN has)")
    add("--seed", type=int, default=0, help="of the prompts drawn anew (default: %(default)s)")
    add("--report", type=Path, metavar="R.json", help="write the numbers as JSON")
    add("--plot", type=Path, metavar="P.png", help="write a picture of the curve")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what no table could satisfy."""
    if not 0 <= args.prompt_cost < math.inf:
        raise InputError(f"--prompt-cost must be finite and not negative, got {args.prompt_cost}")
    for name in ("response_cost", "budget"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} must be positive and finite, got {value}")
    for name in ("prompts", "max_k"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.prompts is not None and args.budget is None:
        raise InputError("--prompts needs --budget, which says how many responses of each can be had")
    is_free = args.budget is not None and args.prompts is None
    if is_free and responses_bought(args.budget, args.prompt_cost, args.response_cost) < 1:
        least = args.prompt_cost + args.response_cost
        raise InputError(f"--budget must buy a prompt with a response, at least {least:g}, got {args.budget:g}")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"--seed must be from 0 to 2**63 - 1, got {args.seed}")
    if args.gradients is not None and args.gradients.suffix.lower() != ".npy":
        raise InputError(f"--gradients must end in .npy, got {str(args.gradients)!r}")
    if args.plot is not None and args.plot.suffix.lower() != ".png":
        raise InputError(f"--plot must end in .png, got {str(args.plot)!r}")
    paths = [path.resolve() for path in (args.input, args.gradients, args.report, args.plot) if path is not None]
    if len(set(paths)) < len(paths):
        raise InputError("IN, --gradients, --report and --plot must be different files")
    if args.plot is not None:
        importlib.import_module("matplotlib")


def run(args: argparse.Namespace) -> int:
    """Estimate, choose, tell."""
    check_arguments(args)
    source = open_source(args.input)
    wanted = Wanted(args.group_by, None, None, args.value)
    with ExitStack() as stack:
        files = [
            None if path is None else Temporary(path, role).opened(stack)
            for path, role in ((args.report, "--report"), (args.plot, "--plot"))
        ]
        steps = stack.enter_context(Steps())
        steps.begin("reading", source.num_rows)
        packed = read_columns(source, wanted, steps.advance)
        values = packed.reward if args.value is not None else gradients(args.gradients, packed)
        steps.begin("estimating")
        plan = planned(args, packed, values)
        if files[0] is not None:
            files[0].file.write(as_json(args, plan))
            files[0].commit()
        if files[1] is not None:
            importlib.import_module("mrtkern.cli.plan_plot").draw(files[1].file, plan)
            files[1].commit()
        steps.stop()
    print_plan(args, plan)
    return 0


def gradients(path: Path, packed: Packed) -> Any:
    """[T] or [T, D] float, in packed order."""
    try:
        values = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as npy: {str(error).splitlines()[0].rstrip('.')}") from error
    T = int(packed.offsets[-1])
    if not isinstance(values, np.ndarray):
        raise InputError(f"{path} must be one array in a file npy, got an archive")
    if values.ndim not in (1, 2) or values.dtype not in FLOATS:
        raise InputError(f"{path} must hold floats [T] or [T, D], got {values.dtype} {list(values.shape)}")
    if len(values) != T:
        raise InputError(f"{path} must have a row per response, {T:,}, got {len(values):,}")
    values = np.asarray(values if packed.order is None else values[packed.order])
    finite = np.isfinite(values.reshape(T, -1)).all(1)
    if not finite.all():
        place = int(np.flatnonzero(~finite)[0])
        row = place if packed.order is None else int(packed.order[place])
        raise InputError(f"{path} must be finite, got NaN or infinity in row {row}")
    return values


class Groups(NamedTuple):
    """What is enough of every prompt to estimate components from any of them again."""

    sizes: Any  # [B] float64
    means: Any  # [B, D] float64, of values without their common mean
    inside: Any  # [B] sum of squared distances from the mean


def summed(values: Any, offsets: Any, exponent: int = 0) -> Groups:
    """Prompts with at least one response, of values times 2**-exponent, some columns at a time.

    What is subtracted first is a row, so that equal rows leave exactly 0.
    """
    T = int(offsets[-1])
    values = np.asarray(values).reshape(T, -1)
    sizes = np.diff(offsets)
    starts, sizes = offsets[:-1][sizes > 0], sizes[sizes > 0]
    means, inside = np.empty((len(sizes), values.shape[1])), np.zeros(len(sizes))
    step = max(1, NUMBERS_PER_CHUNK // T)
    for column in range(0, values.shape[1], step):
        block = slice(column, column + step)
        wide = np.ldexp(values[:, block].astype(np.float64), -exponent)
        wide -= wide[0].copy()
        wide -= wide.mean(0)
        first = wide[starts]
        wide -= np.repeat(first, sizes, axis=0)
        shift = np.add.reduceat(wide, starts, axis=0) / sizes[:, None]
        wide -= np.repeat(shift, sizes, axis=0)
        means[:, block] = first + shift
        inside += np.add.reduceat(np.square(wide).sum(1), starts)
    return Groups(sizes.astype(np.float64), means, inside)


def resampled(groups: Groups, times: Any, correction: float = 1.0) -> Any:
    """[draws, 2]: V_x (not cut off) and V_yx of prompts that occur `times` [draws, B], as `variance_components`.

    Prompts drawn with replacement differ by (B - 1) / B of what all B do, on average: with B / (B - 1) as correction of
    the squares between prompts, V_x of the draws is V_x of the prompts on average, exactly where their sizes are equal.
    """
    n, count = groups.sizes, times.sum(1)
    T = times @ n
    totals = times @ (n[:, None] * groups.means)
    inside = times @ groups.inside / (T - count)
    outside = times @ (n * np.square(groups.means).sum(1)) - np.square(totals).sum(1) / T
    k0 = (T - times @ np.square(n) / T) / (count - 1)
    return np.column_stack([(correction * outside / (count - 1) - inside) / k0, inside])


def drawn(groups: Groups, seed: int, draws: int) -> Iterator[Any]:
    """Counts [draws, B] of prompts drawn with replacement, some draws at a time, without those that say nothing."""
    B, rng = len(groups.sizes), np.random.default_rng(seed)
    chunk = max(1, NUMBERS_PER_CHUNK // B)
    for first in range(0, draws, chunk):
        times = np.stack(
            [np.bincount(rng.integers(0, B, B), minlength=B) for _ in range(min(chunk, draws - first))]
        ).astype(np.float64)
        yield times[(times @ (groups.sizes - 1)) > 0]  # some prompt has two responses


@dataclass(frozen=True)
class Costs:
    """What things cost, and what there is."""

    prompt: float
    response: float
    budget: float | None
    prompts: int | None
    max_k: int

    def choice(self, between: float, within: float) -> KChoice:
        """The library's."""
        return optimal_k(
            max(between, 0.0), within, prompt_cost=self.prompt, response_cost=self.response, num_prompts=self.prompts,
            budget=self.budget, max_k=self.max_k,
        )  # fmt: skip

    def gains(self, between: Any, within: Any, K: Any) -> Any:
        """The variance of one response over that of K, for the same budget or the same prompts; 1 of nothing."""
        unit = max(self.prompt, self.response)  # sums of costs, and of halves of variances, stay in float64
        prompt, response = (0.0 if self.prompts is not None else cost / unit for cost in (self.prompt, self.response))
        saved = 1.0 if self.prompts is not None else (prompt + response) / (prompt + K * response)
        alone, several = between / 2 + within / 2, between / 2 + within / 2 / K
        return np.where(several > 0, alone / np.where(several > 0, several, 1.0) * saved, 1.0)


class Span(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Plan:
    """All that is told."""

    num_responses: int
    sizes: Any  # [B] responses of each prompt
    costs: Costs
    found: VarianceComponents
    choice: KChoice
    K: Any  # [CURVE] of the curve
    ratio: Any  # [CURVE] variance(1) / variance(K)
    band: Any  # [2, CURVE] its interval
    spans: dict[str, Span]  # between, within, continuous, k, ratio

    @property
    def is_blind(self) -> bool:
        """Whether no value differs from another, so that nothing can be planned from them."""
        return self.found.between == self.found.within == 0


def most(args: argparse.Namespace, largest: int) -> int:
    """The largest K that is looked at: a budget buys at least one prompt with K responses."""
    limit: int = args.max_k or largest
    if args.budget is None or args.prompts is not None:
        return limit
    return max(1, min(limit, responses_bought(args.budget, args.prompt_cost, args.response_cost)))


def planned(args: argparse.Namespace, packed: Packed, values: Any) -> Plan:
    """Components, the best K, and how sure they are."""
    sizes = np.diff(packed.offsets)
    costs = Costs(args.prompt_cost, args.response_cost, args.budget, args.prompts, most(args, int(sizes.max())))
    try:
        found = variance_components(torch.from_numpy(np.ascontiguousarray(values)), torch.from_numpy(packed.offsets))
        choice = costs.choice(found.between, found.within)
    except (ValueError, MemoryError) as error:
        raise InputError(f"{args.input} cannot be planned from: {reason(error)}") from error
    largest = max(float(np.max(values, initial=0.0)), -float(np.min(values, initial=0.0)))
    exponent = math.frexp(largest)[1]  # squares of what is scaled do not overflow
    groups = summed(values, packed.offsets, exponent)
    B = len(groups.sizes)
    draws = np.concatenate([resampled(groups, times, B / (B - 1)) for times in drawn(groups, args.seed, DRAWS)])
    choices = [costs.choice(*pair) for pair in draws.tolist()]
    K = np.geomspace(1, max(costs.max_k, 2), CURVE)
    band = np.percentile(costs.gains(np.maximum(draws[:, :1], 0.0), draws[:, 1:], K), INTERVAL, axis=0)
    with np.errstate(over="ignore"):
        in_units = np.ldexp(draws, 2 * exponent)  # infinite beyond float64, where neither K nor a ratio is
    series = {
        "between": in_units[:, 0],
        "within": in_units[:, 1],
        "continuous": np.array([one.continuous for one in choices]),
        "k": np.array([float(one.k) for one in choices]),
        "ratio": costs.gains(np.maximum(draws[:, 0], 0.0), draws[:, 1], choice.k),
    }
    spans = {name: span(numbers) for name, numbers in series.items()}
    ratio = costs.gains(found.between, found.within, K)
    return Plan(
        num_responses=int(packed.offsets[-1]), sizes=sizes[sizes > 0], costs=costs, found=found, choice=choice, K=K,
        ratio=ratio, band=band, spans=spans,
    )  # fmt: skip


def span(numbers: Any) -> Span:
    """By the nearest draw: between infinity and a number nothing lies."""
    low, high = np.percentile(numbers, INTERVAL, method="nearest")
    return Span(float(low), float(high))


def reason(error: BaseException) -> str:
    """A sentence of the library's in the words of the command line."""
    _, _, text = str(error).partition(": ")
    names = {
        "offsets must have at least two groups with rows": "there must be at least two prompts",
        "offsets must have a group with at least two rows": "some prompt must have at least two responses",
        "budget must": "--budget must",
    }
    for library, words in names.items():
        text = text.replace(library, words)
    return text or str(error)


def number(value: float, digits: int = 3) -> str:
    """Short, with infinity as a person writes it."""
    return "∞" if math.isinf(value) else f"{value:.{digits}g}"


def between(one: Span) -> str:
    """95 %: 4 to 7."""
    return f"95 %: {number(one.low)} to {number(one.high)}"


def advice(plan: Plan) -> str:
    """One sentence: what to take, how sure that is, and what these values cannot tell."""
    c, costs, spans = plan.choice, plan.costs, plan.spans
    gain = f"{number(c.ratio)} times less variance than one response each ({between(spans['ratio'])})"
    most = ", the most that were looked at" if c.k == costs.max_k and c.continuous > c.k else ""
    is_free = costs.prompts is None
    if plan.is_blind:
        gain = "no value differs from another, so what more responses gain cannot be told from them"
    elif plan.found.within == 0:
        gain = "no two responses of a prompt differ in these values, which cannot tell whether their gradients do"
    if not is_free:
        most = most if c.continuous >= c.k + 1 else ""
        bought = (
            f"The budget buys {counted(c.k, 'response')} of each of {counted(costs.prompts or 0, 'prompt')}{most}: "
        )
        return bought + (f"{gain}." if c.k > 1 else "no more than one each.")
    if plan.is_blind:
        return f"These values do not say how many responses to take: {gain}."
    if plan.found.within == 0:
        return f"By these values one response of each prompt is enough: {gain}."
    if c.k == 1:
        return f"Take one response of each prompt ({between(spans['k'])}): the budget is better spent on more prompts."
    n = prompts_bought(costs.budget, costs.prompt, costs.response, c.k) if costs.budget is not None else 0
    taken = f"Take {c.k} responses of {counted(n, 'prompt') if n else 'each prompt'}"
    if plan.found.between > 0:
        return f"{taken} ({between(spans['k'])}{most}): {gain} at the same cost."
    low = spans["continuous"].low
    least = "" if math.isinf(low) else f", and that K* is at least {number(low)}"
    return (
        f"{taken}{most}: that prompts differ at all does not show in these values{least}, so they set no limit to K; "
        f"if prompts do not differ, {number(c.ratio)} times less variance than one response each at the same cost."
    )


def print_plan(args: argparse.Namespace, plan: Plan) -> None:
    """Components, the curve at a few K, the advice."""
    console = Console(highlight=False)
    prompts = counted(len(plan.sizes), "prompt")
    rows = f"{counted(plan.num_responses, 'response')} of {prompts}, {plan.sizes.min()} to {plan.sizes.max()} a prompt"
    console.print(f"{rows}: {args.value or args.gradients.name}", style="bold", soft_wrap=True, markup=False)
    facts = (
        ("V_x, between prompts", plan.found.between_raw, plan.spans["between"]),
        ("V_yx, within a prompt", plan.found.within, plan.spans["within"]),
        ("K* if prompts are free to choose" if args.prompts is None else "K that is paid for", plan.choice.continuous,
         plan.spans["continuous"]),
    )  # fmt: skip
    for name, value, interval in facts[:2] if plan.is_blind else facts:
        console.print(f"  {name}: {number(value, 4)}  ({between(interval)})", soft_wrap=True, markup=False)
    if not plan.is_blind:
        console.print(curve(plan))
        if len(plan.sizes) < FEW:
            console.print(f"Intervals of {prompts} are too narrow; those of {FEW} and more are not.", soft_wrap=True)
    console.print(advice(plan), soft_wrap=True, markup=False)


def curve(plan: Plan) -> Table:
    """A few K of it."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("K", "less variance than K = 1", "95 %"):
        table.add_column(name, justify="right", no_wrap=True)
    for K in shown(plan):
        ratio = float(plan.costs.gains(plan.found.between, plan.found.within, float(K)))
        low, high = (float(np.interp(K, plan.K, end)) for end in plan.band)
        mark = "→ " if plan.choice.k == K else ""
        table.add_row(f"{mark}{K}", f"{ratio:.2f} ×", f"{low:.2f} to {high:.2f}", style="bold" if mark else None)
    return table


def shown(plan: Plan) -> list[int]:
    """Powers of two, the choice and its neighbours."""
    most = plan.costs.max_k
    powers = [1 << i for i in range(most.bit_length())]
    near = range(plan.choice.k - 1, plan.choice.k + 2)
    return sorted({K for K in (*powers, *near, most) if 1 <= K <= most and (K <= 64 or K in near)})


def as_json(args: argparse.Namespace, plan: Plan) -> bytes:
    """The report."""
    report = {
        "mrtkern": __version__,
        "input": str(args.input),
        "values": args.value or str(args.gradients),
        "responses": plan.num_responses,
        "prompts": len(plan.sizes),
        "between": plan.found.between,
        "between_raw": plan.found.between_raw,
        "within": plan.found.within,
        "k": plan.choice.k,
        "continuous": plan.choice.continuous,
        "ratio": plan.choice.ratio,
        "intervals": {name: list(interval) for name, interval in plan.spans.items()},
        "curve": {"k": plan.K.tolist(), "ratio": plan.ratio.tolist()},
        "draws": DRAWS,
        "seed": args.seed,
        "advice": advice(plan),
    }
    if plan.is_blind:
        unknown = ("ratio",) if plan.costs.prompts is not None else ("k", "continuous", "ratio")
        report |= dict.fromkeys(("curve", *unknown))
        report["intervals"] = {name: list(plan.spans[name]) for name in plan.spans if name not in unknown}
    return json.dumps(without_nan(report), indent=2, allow_nan=False).encode() + b"\n"
