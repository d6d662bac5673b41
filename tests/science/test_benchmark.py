"""The benchmark of prompts with many responses: nothing of what is held out is seen, and libraries read it."""

from __future__ import annotations

import io
import json
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("sklearn")

from bench.science import benchmark  # noqa: E402
from tests.tools import oracle  # noqa: E402
from tests.tools.repository import ROOT  # noqa: E402


def prompts(most: int = 200) -> list[benchmark.Prompt]:
    """Of the sample in the package: words with their glosses as keys."""
    sample = pq.read_table(ROOT / "mrtkern" / "data" / "wordnet_senses.parquet").to_pylist()
    found: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for row in sample:
        found[row["word"], row["pos"]][row["gloss"]] = row["tag_count"]
    chosen = [(words, glosses) for words, glosses in found.items() if len(glosses) >= benchmark.LEAST][:most]
    return [
        benchmark.Prompt(f"{word} ({pos})", (word, pos), tuple(g), tuple(g.values()), frozenset(g))
        for (word, pos), g in chosen
    ]


def test_training_shares_no_word_and_no_response_with_what_is_held_out() -> None:
    every = prompts()
    train, held = benchmark.split(every)
    assert 0.03 < len(held) / len(every) < 0.25
    assert not {p.words[0] for p in train} & {p.words[0] for p in held}
    assert not {text for p in train for text in p.responses} & {text for p in held for text in p.responses}
    dropped = [p for p in every if p not in train and p not in held]
    texts = {text for p in held for text in p.responses}
    assert dropped and all(set(p.responses) & texts for p in dropped)


def test_rows_are_wordings_of_a_prompt_with_all_its_responses() -> None:
    few = prompts(5)
    rows = benchmark.table(few, benchmark.TEMPLATES["wordnet"]).to_pylist()
    assert len(rows) == 4 * len(few)
    assert len({row["prompt"] for row in rows}) == len(rows)
    for row in rows:
        prompt = next(p for p in few if p.name == row["prompt_id"])
        assert (row["responses"], row["count"]) == (list(prompt.responses), list(prompt.counts))
        expected = (np.asarray(prompt.counts) + 1.0) / (sum(prompt.counts) + len(prompt.counts))
        assert row["weight"] == expected.tolist()


def test_the_proxy_is_the_gradient_of_a_unigram_model() -> None:
    few = prompts(3)
    gradients, offsets = benchmark.gradients(few)
    texts = [text for prompt in few for text in prompt.responses]
    assert int(offsets[-1]) == len(gradients) == len(texts)
    counts = [torch.tensor(list(text.encode())).bincount(minlength=256).double() for text in texts]
    corpus = torch.stack([count / count.sum() for count in counts]).mean(0)
    logits = (corpus + 1e-30).log().requires_grad_()
    for text, gradient in zip(texts, gradients, strict=True):
        targets = torch.tensor(list(text.encode()))
        loss = torch.nn.functional.cross_entropy(logits.expand(len(targets), -1), targets)
        (own,) = torch.autograd.grad(loss, logits)
        oracle.assert_summed(-own, gradient, 64 * len(targets), 1.0)


def test_names_of_all_locales_are_counted_frequent_first(tmp_path: Path) -> None:
    """A package of six locales: the English name is the prompt, a code that stands for a missing name is no answer."""
    names = {"en": "Chad", "de": "Tschad", "fr": "Tchad", "br": "Tchad", "es": "Chad", "it": "Ciad", "cy": "Tsiad"}
    package = tmp_path / "names.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for locale, name in names.items():
            tables = {"localeDisplayNames": {"territories": {"TD": name, "ZZ": "ZZ", "TD-alt-short": "T"}}}
            text = json.dumps({"main": {locale: tables}}).encode()
            member = tarfile.TarInfo(f"package/main/{locale}/territories.json")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    (prompt,) = benchmark.cldr(package)
    assert (prompt.name, prompt.words) == ("territories TD", ("Chad",))
    assert prompt.responses == ("Tchad", "Ciad", "Tschad", "Tsiad")
    assert prompt.counts == (2, 1, 1, 1)


def test_the_folder_is_read_by_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    facts = benchmark.write(prompts(60), "wordnet", b"a licence", tmp_path / "made")
    assert float(facts["V_yx / V_x"].replace("∞", "inf")) > 1  # glosses of a word differ more than words do
    assert (tmp_path / "made" / "LICENSE").read_bytes() == b"a licence"
    found = datasets.load_dataset(str(tmp_path / "made"), cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train", "test"}
    assert set(found["train"].column_names) >= {"prompt", "responses", "weight", "prompt_id"}
