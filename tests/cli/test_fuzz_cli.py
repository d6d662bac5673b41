"""`mrtkern select` on damaged and strange files: status 0 or 2, one sentence, never a traceback, never a crash.

Every case is a number: it seeds the file, its damage and the options, so `python -m tests.cli.test_fuzz_cli 1234 1`
repeats case 1234. Cases run in child processes, a few hundred each: a crash inside a parser would otherwise end the
test run.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.tools.repository import ROOT

CASES, CASES_OF_EVERY_RUN, BATCH = 10_000, 200, 500
WORKERS = 2
ROWS = 12
STRANGE: tuple[Any, ...] = (
    None, True, "", " ", "nan", "\x00", "\ud800", "\u202e", "𝄞" * 50, "e\u0301", "\ufeff", "=1+1", '"', ",", "\r\n",
    float("nan"), float("inf"), -0.0, 1e308, -1e308, 5e-324, 1e39, 2**31, 2**63, -(2**63), 10**30, 0,
    [], [None], [[]], [[None]], [0.0, 0.0], [1.0, 2.0, 3.0], [1e308, -1e308], ["x"], {}, {"a": None},
    {"a": [{"b": []}]}, "[1, 2]", "2020-01-01 00:00:00", b"\xff".decode("latin-1"), "a" * 5000,
)  # fmt: skip


def rows(rng: random.Random, nested: bool) -> list[dict[str, Any]]:
    """A good table."""
    table = []
    for i in range(ROWS):
        words = [" ".join(rng.choices(("red", "green", "blue", "one", "two", "three"), k=4)) for _ in range(3)]
        scores = [rng.gauss(0, 1) for _ in range(3)]
        vectors = [[rng.gauss(0, 1) for _ in range(3)] for _ in range(3)]
        row = {"p": f"prompt {i if nested else i // 4}", "t": words, "r": scores, "e": vectors, "note": i}
        table.append(
            row if nested else {name: value[0] if isinstance(value, list) else value for name, value in row.items()}
        )
    return table


def with_strange_cells(rng: random.Random, table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few cells hold something else; now and then a name is missing, new, or a whole column is strange."""
    for _ in range(rng.choice((0, 1, 1, 2, 5))):
        name, value = rng.choice(["p", "t", "r", "e", "note"]), copy.deepcopy(rng.choice(STRANGE))
        victims = table if rng.random() < 0.2 else [rng.choice(table)]
        for row in victims:
            how = rng.random()
            if how < 0.1:
                row.pop(name, None)
            elif how < 0.15:
                row[ascii(value)] = value
            elif how < 0.4 and isinstance(row.get(name), list) and row[name]:
                row[name][rng.randrange(len(row[name]))] = value
            else:
                row[name] = value
    return table


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes flipped, cut, doubled, replaced, or the end missing."""
    data = bytearray(content)
    for _ in range(rng.choice((0, 1, 1, 2, 8, 40))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 2, 4, 16, 200))
        how = rng.randrange(6)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at : at + length] = rng.randbytes(min(length, max(len(data) - at, 0)))  # parquet keeps its places
        elif how == 2:
            del data[at : at + length]
        elif how == 3:
            data[at:at] = data[at : at + length]
        elif how == 4:
            data[at:at] = rng.choice((b"[" * 1000, b"{", b'"', b"\n", b"\x00", b"\xff\xfe", b"1e999", b"PAR1", b","))
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def as_parquet(table: list[dict[str, Any]], rng: random.Random) -> bytes:
    """The table as parquet; a column whose values have no common type becomes text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    for name in dict.fromkeys(name for row in table for name in row):
        values = [row.get(name) for row in table]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            columns[name] = pa.array([None if value is None else ascii(value) for value in values])
    options = {"compression": rng.choice(("none", "snappy", "zstd")), "use_dictionary": rng.random() < 0.5}
    file = io.BytesIO()
    try:
        pq.write_table(pa.table(columns), file, row_group_size=rng.choice((3, 100)), **options)
    except pa.ArrowException:  # a structure without fields
        return b"PAR1"
    return file.getvalue()


def as_jsonl(table: list[dict[str, Any]], rng: random.Random) -> bytes:
    """The table as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=rng.random() < 0.5) + "\n" for row in table).encode(
        errors="surrogatepass"
    )


def as_csv(table: list[dict[str, Any]], rng: random.Random) -> bytes:
    """The table as CSV, quoted by hand so that nothing strange is refused here."""
    names = list(dict.fromkeys(name for row in table for name in row))
    quote = '"' if rng.random() < 0.7 else ""
    lines = [names] + [[str(row.get(name, "")) for name in names] for row in table]
    text = "\n".join(
        ",".join(quote + cell.replace('"', '""' if quote else "'") + quote for cell in line) for line in lines
    )
    return (text + "\n").encode(errors="surrogatepass")


FORMATS: dict[str, Callable[[list[dict[str, Any]], random.Random], bytes]] = {
    ".parquet": as_parquet, ".jsonl": as_jsonl, ".csv": as_csv,
}  # fmt: skip


def case(number: int, folder: Path) -> tuple[Path, list[str]]:
    """The file of a case, and the command to run on it."""
    rng = random.Random(number)
    ending = rng.choice(list(FORMATS))
    nested = ending != ".csv" and rng.random() < 0.3
    content = FORMATS[ending](with_strange_cells(rng, rows(rng, nested)), rng)
    source = folder / f"in{ending}"
    source.write_bytes(damaged(rng, content) if rng.random() < 0.4 else content)
    out = folder / f"out{rng.choice(list(FORMATS))}"
    options = ["--embedding", "e"] if rng.random() < 0.6 else ["--text", "t"]
    methods = ["random", "stratified", "coverage"]
    if rng.random() < 0.7:
        options += ["--reward", "r"]
        methods += ["quality_diversity", "additive", "reward"]
    options += ["--method", rng.choice(methods), "--fill", rng.choice(("coverage", "random", "none"))]
    options += ["--k", rng.choice(("1", "2", "4", "1000000000000"))]
    for flag, part in (("--all-rows", 0.2), ("--compare", 0.1)):
        options += [flag] if rng.random() < part else []
    if rng.random() < 0.3:
        options += ["--report", str(folder / "r.json")]
    if rng.random() < 0.02:
        options += ["--plot", str(folder / "p.png")]
    among = ["--group-by", rng.choice(("p", "p", "p", "note"))] if rng.random() < 0.8 else ["--global"]
    if among == ["--global"] and rng.random() < 0.5:
        options += rng.choice((["--approximate", "1"], ["--stop-fraction", "0.5"], ["--max-memory", "1G"]))
    return source, ["select", str(source), "-o", str(out), *among, *options]


def run_case(number: int, main: Callable[[list[str]], int], folder: Path) -> int:
    """The status of one case; raises when the command breaks its promises."""
    source, command = case(number, folder)
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        status = main(command)
    left = {path.name for path in folder.iterdir()} - {source.name}
    out = Path(command[3]).name
    if status not in (0, 2):
        raise AssertionError(f"status {status}")
    if status == 2 and (err.getvalue().count("\n") != 1 or (out in left and "is written" not in err.getvalue())):
        raise AssertionError(f"refused with {sorted(left)} left and {err.getvalue()!r}")
    if (status == 0 and out not in left) or any(name.endswith(".tmp") for name in left):
        raise AssertionError(f"status {status} with {sorted(left)} left")
    for name in (*left, source.name):
        (folder / name).unlink()
    return status


def run_batch(first: int, count: int) -> None:
    """In the child: run the cases, saying which before each; the last line is the statuses' counts."""
    import torch

    from mrtkern.__main__ import main

    torch.set_num_threads(1)
    done = {0: 0, 2: 0}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + count):
            print(f"case {number}", flush=True)
            done[run_case(number, main, Path(folder))] += 1
    print(f"kept {done[0]}, refused {done[2]}")


def child(first: int, count: int) -> tuple[int, int]:
    """Run a batch in a process of its own; (kept, refused)."""
    command = [sys.executable, "-m", "tests.cli.test_fuzz_cli", str(first), str(count)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=3600, cwd=ROOT, check=False)
    lines = ended.stdout.splitlines() or ["nothing"]
    if ended.returncode != 0:
        raise AssertionError(f"{lines[-1]} ended with {ended.returncode}: {ended.stderr[-2000:]}")
    kept, refused = (int(word.rstrip(",")) for word in lines[-1].split()[1::2])
    return kept, refused


def test_a_few_strange_files_never_crash() -> None:
    pytest.importorskip("pyarrow")
    kept, refused = child(0, CASES_OF_EVERY_RUN)
    assert kept + refused == CASES_OF_EVERY_RUN
    assert min(kept, refused) > CASES_OF_EVERY_RUN // 10  # the damage is neither too much nor too little to tell


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_ten_thousand_strange_files_never_crash() -> None:
    pytest.importorskip("pyarrow")
    with ThreadPoolExecutor(WORKERS) as pool:
        counts = list(pool.map(lambda first: child(first, BATCH), range(0, CASES, BATCH)))
    assert sum(kept + refused for kept, refused in counts) == CASES


if __name__ == "__main__":
    run_batch(int(sys.argv[1]), int(sys.argv[2]))
