"""What a run found: one file of results, and a table that fits a screen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bench import report
from bench.device import number
from bench.gpu.steps import Done

MOST_TESTS = 25  # failed tests in the table; the file holds all of them
LONGEST = 100  # letters of a reason


def loaded(path: Path) -> dict[str, Any]:
    """A file of JSON, or nothing where a step did not come to write it to its end."""
    with suppress(FileNotFoundError, json.JSONDecodeError):
        return json.loads(path.read_text(encoding="utf-8"))
    return {}


def failed_tests(path: Path) -> list[tuple[str, str]]:
    """Name and reason of every test that failed, from the report of pytest."""
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except ElementTree.ParseError:
        return [(path.name, "was not written to its end")]
    return [
        (f"{case.get('classname')}::{case.get('name')}", bad.get("message") or "")
        for case in cases
        for bad in case
        if bad.tag in ("failure", "error")
    ]


def collected(folder: Path, steps: Sequence[Done]) -> dict[str, Any]:
    """Everything that the steps wrote."""
    parts = [loaded(path) for path in sorted(folder.glob("bench-*.json"))]
    return {
        "facts": loaded(folder / "facts.json"),
        "steps": [asdict(step) for step in steps],
        "failed tests": [test for path in sorted(folder.glob("*.xml")) for test in failed_tests(path)],
        "rows": [row for part in parts for row in part.get("rows", [])],
    }


def text(found: dict[str, Any]) -> str:
    """The steps, the tests that failed, the times."""
    steps = [(step["name"], step["ended"], f"{step['seconds']:.0f}", step["last"][:LONGEST]) for step in found["steps"]]
    parts = [report.align(("step", "ended", "s", "last line"), steps, is_markdown=False, numbers=slice(2, 3))]
    failed = found["failed tests"]
    parts += [f"failed: {name}: {' '.join(reason.split())[:LONGEST]}" for name, reason in failed[:MOST_TESTS]]
    if len(failed) > MOST_TESTS:
        parts.append(f"failed: {len(failed) - MOST_TESTS} more")
    timed = [
        (
            f"{row['op']}, {row['case']}", row["name"], number(row["microseconds"]), number(row["of_floor"], ".0%"),
            number(row["host_microseconds"]), number(row["launches"], "d"),
        )
        for row in found["rows"] if row["microseconds"] is not None
    ]  # fmt: skip
    header = ("operation, case", "", "kernels us", "% of floor", "host us", "launches")
    if timed:
        parts.append(report.align(header, timed, is_markdown=False, numbers=slice(2, 6)))
    parts += [f"{row['op']}, {row['case']}, {row['name']}: {row['fault']}" for row in found["rows"] if row["fault"]]
    return "\n".join(parts)
