"""`mrtkern select --text-model`: vectors by a real sentence-transformers model, saved in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("sklearn")
pytest.importorskip("sentence_transformers", reason="the text extra is not installed")

from mrtkern.__main__ import main  # noqa: E402
from tests.cli.test_cli import picks, select  # noqa: E402

WORDS = ("red", "green", "blue", "one", "two", "three")
WIDTH = 16  # of the model: small, and enough that no two texts get one vector


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model: tokenizer, a transformer of random weights, mean pooling, unit length."""
    transformers = pytest.importorskip("transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    from sentence_transformers import SentenceTransformer

    path = tmp_path_factory.mktemp("model")
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = transformers.BertTokenizer(str(path / "vocab.txt"))
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(path / "bert")
    tokenizer.save_pretrained(path / "bert")
    parts = [modules.Transformer(str(path / "bert")), modules.Pooling(WIDTH), modules.Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(path / "saved"))
    return path / "saved"


def table() -> Any:
    """Two prompts of six different texts."""
    texts = [f"{colour} {number}" for number in WORDS[3:5] for colour in WORDS[:3]] * 2
    return pa.table({"prompt": ["a"] * 6 + ["b"] * 6, "text": texts, "score": [1.0] * 12, "id": range(12)})


def test_keeps_what_the_vectors_of_the_model_keep(tmp_path: Path, folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["--text", "text", "--method", "coverage"]
    kept = select(table(), tmp_path / "in.parquet", *texts, "--text-model", str(folder), vectors=False)
    vectors = SentenceTransformer(str(folder)).encode(table()["text"].to_pylist())
    assert len(np.unique(vectors, axis=0)) == 6
    embedded = table().append_column("vector", pa.array(list(vectors), pa.list_(pa.float32())))
    expected = select(embedded, tmp_path / "embedded.parquet", "--method", "coverage")
    assert picks(kept) == picks(expected)
    assert [row["mrt_gain"] for row in kept] == [row["mrt_gain"] for row in expected]


def test_the_report_names_the_model_and_its_dimensions(tmp_path: Path, folder: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--text", "text", "--text-model", str(folder), "--report", str(report)]
    assert len(select(table(), tmp_path / "in.parquet", *options, vectors=False)) == 8
    expected = {"column": "text", "model": str(folder), "dimensions": WIDTH}
    assert json.loads(report.read_text())["features"] == expected


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", lambda data: data[: len(data) // 2]),
        ("model.safetensors", lambda data: b""),
        ("config.json", lambda data: data.replace(b'"hidden_size": 16', b'"hidden_size": 8')),
        ("config.json", lambda data: data[: len(data) // 2]),
        ("modules.json", lambda data: data.replace(b"Transformer", b"Nothing")),
    ],
)
def test_a_broken_model_is_one_sentence_and_leaves_no_file(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[bytes], bytes]
) -> None:
    broken = tmp_path / "broken"
    for source in (path for path in folder.rglob("*") if path.is_file()):
        target = broken / source.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(damage(source.read_bytes()) if source.name == name else source.read_bytes())
    pq.write_table(table(), tmp_path / "in.parquet")
    command = ["select", str(tmp_path / "in.parquet"), "-o", str(tmp_path / "out.parquet"), "--group-by", "prompt"]
    assert main([*command, "--k", "2", "--text", "text", "--text-model", str(broken)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith(f"mrtkern select: --text-model {broken} cannot be loaded: ")
    assert not (tmp_path / "out.parquet").exists()
