"""What a run says: an aligned table on the terminal, and under its CPU one section per operation in RESULTS.md."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.harness import Spread, ratios
from bench.roofline import PRODUCT, PRODUCT_FLOPS, READ, Roofline

OURS = "mrtkern"
MIB = 1 << 20
UNITS = {"memory": "MiB", "seconds": "s"}  # of a target's quantity; a ratio has x
FEWEST = 3  # rounds that have quartiles: those of one or two are these numbers again
COLUMNS = ("", "median ms", "quartiles", "GB/s", "GFLOP/s", "% of roof", "MiB", "time / ours", "quartiles", "answer")
PREAMBLE = """# Results

Written by `python -m bench`: under every CPU that was measured one section per operation, which only a run on that CPU
replaces. What is not here is not claimed. Nothing was measured on a GPU; the section about one holds floors, not times.

* **time / ours**: median over the rounds of its time divided by ours in the same round.
* **GB/s**, **GFLOP/s**: bytes moved at least once and operations of all pairs, over the median time.
* **roof**: the larger of moving those bytes as fast as `read` reads the features in the same round, and doing those
  operations at the rate of torch's fastest large matrix product in the same round.
* **MiB**: peak memory beyond inputs and outputs, in a process of its own.
* **answer**: a selection's value, or its relative difference from ours; a similarity's largest error.

The caches are emptied before every call.
"""


@dataclass(frozen=True)
class Target:
    """What an operation set out to reach on the cases whose names begin with `case`.

    quantity: "speedup" (time of `against` over ours, at least the limit), "cost" (ours over `against`, at most the
    limit), "seconds" (ours, at most the limit) or "memory" (MiB beyond inputs and outputs, at most the limit).
    """

    case: str
    text: str
    quantity: str
    limit: float
    against: str = ""


@dataclass(frozen=True)
class CaseResult:
    """All numbers of one case."""

    name: str
    seconds: Mapping[str, list[float]]  # competitor -> rounds
    answers: Mapping[str, str]
    notes: Mapping[str, str]
    memory: Mapping[str, int | None]
    read_bytes: int  # of the features
    bytes: int
    flops: int
    ratios: Mapping[str, Spread] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", ratios(self.seconds, OURS))

    def roof(self) -> list[float]:
        """Least seconds of the call in each round."""
        return Roofline.seconds(self.seconds, self.read_bytes, self.bytes, self.flops)

    def reached(self, target: Target) -> float | None:
        """The number that a target speaks of; None when it was not measured."""
        if target.quantity == "memory":
            used = self.memory.get(OURS)
            return None if used is None else used / MIB
        if target.quantity == "seconds":
            return Spread.of(self.seconds[OURS]).median
        if target.against not in self.ratios:
            return None
        if target.quantity == "speedup":
            return self.ratios[target.against].median
        return ratios(self.seconds, target.against)[OURS].median


def quartiles(spread: Spread, rounds: Sequence[float], scale: float = 1.0) -> str:
    """The lower and the upper one; nothing where there were too few rounds to have any."""
    return f"{spread.low * scale:.2f} – {spread.high * scale:.2f}" if len(rounds) >= FEWEST else ""


def rows(result: CaseResult) -> list[tuple[str, ...]]:
    """One line per competitor, ours first, the roof's product left out."""
    roof = result.roof()
    found = []
    for name, seconds in result.seconds.items():
        if name == PRODUCT:
            continue
        time = Spread.of(seconds)
        share = Spread.of(least / mine for least, mine in zip(roof, seconds, strict=True))
        ratio = result.ratios.get(name)
        memory = result.memory.get(name)
        nbytes, flops = (result.read_bytes, 0) if name == READ else (result.bytes, result.flops)
        found.append(
            (
                name,
                f"{time.median * 1e3:.2f}",
                quartiles(time, seconds, 1e3),
                f"{nbytes / time.median / 1e9:.1f}",
                f"{flops / time.median / 1e9:.1f}" if flops else "",
                f"{share.median:.0%}" if flops else "",
                "" if memory is None else f"{memory / MIB:.1f}",
                f"{ratio.median:.2f}" if ratio else "1",
                quartiles(ratio, seconds) if ratio else "",
                result.answers.get(name, ""),
            )
        )
    return found


def align(header: Sequence[str], lines: Iterable[Sequence[str]], *, is_markdown: bool, numbers: slice) -> str:
    """A table in columns of equal width; those of `numbers` stand to the right."""
    table = [list(header), *(list(line) for line in lines)]
    widths = [max(3, *(len(line[i]) for line in table)) for i in range(len(header))]
    is_number = [i in range(len(header))[numbers] for i in range(len(header))]
    bar = [
        "-" * (width - right) + (":" if is_markdown else "-") * right
        for width, right in zip(widths, is_number, strict=True)
    ]
    table.insert(1, bar)
    text = []
    for line in table:
        cells = [f"{v:>{w}}" if right else f"{v:<{w}}" for v, w, right in zip(line, widths, is_number, strict=True)]
        text.append("| " + " | ".join(cells) + " |" if is_markdown else "  ".join(cells).rstrip())
    return "\n".join(text)


def case_text(result: CaseResult, *, is_markdown: bool) -> str:
    """Name, roof, table and notes of one case."""
    read, product = (Spread.of(result.seconds[name]).median for name in (READ, PRODUCT))
    is_by_bytes = result.bytes * read / result.read_bytes >= result.flops * product / PRODUCT_FLOPS
    lines = [
        f"#### {result.name}" if is_markdown else result.name,
        "",
        f"Roof {Spread.of(result.roof()).median * 1e3:.2f} ms, set by {'memory' if is_by_bytes else 'arithmetic'}: "
        f"read {result.read_bytes / read / 1e9:.1f} GB/s, "
        f"{result.notes[PRODUCT]} {PRODUCT_FLOPS / product / 1e9:.0f} GFLOP/s.",
        "",
        align(COLUMNS, rows(result), is_markdown=is_markdown, numbers=slice(1, None)),
        "",
        *(
            f"{'* ' if is_markdown else '  '}{name}: {note}"
            for name, note in result.notes.items()
            if note and name != PRODUCT
        ),
    ]
    return "\n".join(lines)


def target_text(
    results: Sequence[CaseResult],
    targets: Iterable[Target],
    reasons: Mapping[tuple[str, str], str],
    *,
    is_markdown: bool,
) -> str:
    """What was to be reached, what was reached, and why not."""
    lines = []
    for target in targets:
        for result in results:
            if not result.name.startswith(target.case):
                continue
            reached = result.reached(target)
            said, met = "not measured", "–"
            if reached is not None:
                is_met = reached >= target.limit if target.quantity == "speedup" else reached <= target.limit
                said = f"{reached:.2f} {UNITS.get(target.quantity, 'x')}"
                met = "yes" if is_met else "no"
            reason = reasons.get((result.name, target.text), "") if met == "no" else ""
            lines.append((result.name, target.text, said, met, reason))
    header = ("case", "target", "reached", "met", "reason")
    return align(header, lines, is_markdown=is_markdown, numbers=slice(2, 3)) if lines else ""


def section(facts: Mapping[str, str], body: Iterable[str]) -> str:
    """The part of RESULTS.md that belongs to one operation on one CPU."""
    lines = [f"* {name}: {value}" for name, value in facts.items()]
    return "\n\n".join(["\n".join(lines), *(part for part in body if part)]) + "\n"


def headed(text: str, mark: str) -> dict[str, str]:
    """The parts of a text by their headings; what comes before the first one has none."""
    parts = (part.partition("\n") for part in re.split(rf"^{mark} ", f"\n{text}", flags=re.MULTILINE))
    return {heading: body.strip("\n") for heading, _, body in parts}


def replace_section(document: str, heading: str, op: str, text: str) -> str:
    """The document with what stands under a heading (a CPU) about an operation replaced in its place, or appended.

    What was measured on other CPUs stays; the preamble is always today's. An empty op: all that has no operation.
    """
    parts = {name: headed(body, "###") for name, body in headed(document, "##").items() if name}
    parts.setdefault(heading, {"": ""})[op] = text.strip("\n")
    lines = [PREAMBLE]
    for name, sections in parts.items():
        lines.append(f"\n## {name}\n")
        lines += [(f"\n### {op}\n" if op else "") + (f"\n{body}\n" if body else "") for op, body in sections.items()]
    return "".join(lines)


def write_section(path: Path, heading: str, op: str, text: str) -> None:
    """Replace one section of a file, by way of a temporary file and a rename."""
    document = replace_section(path.read_text() if path.exists() else "", heading, op, text)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(document)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
