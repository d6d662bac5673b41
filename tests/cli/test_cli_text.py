"""What `--text` compares texts by: words, and letters where a script has no spaces between words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("sklearn")
pytest.importorskip("rich")

from mrtkern.__main__ import main  # noqa: E402
from mrtkern.cli import features  # noqa: E402
from tests.tools.repository import ROOT  # noqa: E402

SAMPLE = ROOT / "mrtkern" / "data" / "wordnet_senses.parquet"

# Three sentences that differ by a word or two about the weather, and three about a train.
TOPICS = {
    "Chinese": (
        (
            "今天的天气非常好，我们去公园散步吧。",
            "今天的天气特别好，我们去公园散步吧。",
            "今天的天气非常好，他们去公园散步吧。",
        ),
        (
            "火车晚点了两个小时，乘客都很生气。",
            "火车晚点了三个小时，乘客都很生气。",
            "火车晚点了两个小时，乘客们很生气。",
        ),
    ),
    "Japanese": (
        (
            "今日はとても天気がいいので公園を散歩しましょう。",
            "今日はすごく天気がいいので公園を散歩しましょう。",
            "今日はとても天気がいいので公園で散歩しました。",
        ),
        (
            "電車が二時間おくれて乗客はおこっている。",
            "電車が三時間おくれて乗客はおこっている。",
            "電車が二時間おくれたので乗客はおこった。",
        ),
    ),
    "Thai": (
        ("วันนี้อากาศดีมากเราไปเดินเล่นในสวนกัน", "วันนี้อากาศดีจริงเราไปเดินเล่นในสวนกัน", "วันนี้อากาศดีมากเขาไปเดินเล่นในสวนกัน"),
        ("รถไฟมาช้าสองชั่วโมงผู้โดยสารโกรธ", "รถไฟมาช้าสามชั่วโมงผู้โดยสารโกรธ", "รถไฟมาช้าสองชั่วโมงผู้คนโกรธ"),
    ),
    "Khmer": (
        ("ថ្ងៃនេះអាកាសធាតុល្អណាស់យើងទៅដើរលេង", "ថ្ងៃនេះអាកាសធាតុល្អមែនយើងទៅដើរលេង", "ថ្ងៃនេះអាកាសធាតុល្អណាស់គេទៅដើរលេង"),
        ("រថភ្លើងយឺតពីរម៉ោងអ្នកដំណើរខឹង", "រថភ្លើងយឺតបីម៉ោងអ្នកដំណើរខឹង", "រថភ្លើងយឺតពីរម៉ោងអ្នកដំណើរខឹងណាស់"),
    ),
    "Hindi": (
        ("आज मौसम बहुत अच्छा है चलो पार्क में घूमें", "आज मौसम काफी अच्छा है चलो पार्क में घूमें", "आज मौसम बहुत अच्छा है हम पार्क में घूमें"),
        (
            "रेलगाड़ी दो घंटे देर से आई यात्री नाराज़ थे",
            "रेलगाड़ी तीन घंटे देर से आई यात्री नाराज़ थे",
            "रेलगाड़ी दो घंटे देर से आई लोग नाराज़ थे",
        ),
    ),
    "English": (
        ("the weather is very fine today", "the weather is quite fine today", "the weather was very fine today"),
        ("a train came two hours late", "a train came three hours late", "one train came two hours late"),
    ),
}


@pytest.mark.parametrize("language", TOPICS)
def test_near_copies_are_one_topic(tmp_path: Path, language: str) -> None:
    texts = [text for copies in zip(*TOPICS[language], strict=True) for text in copies]  # the topics alternate
    pq.write_table(pa.table({"p": ["a"] * 6, "t": texts, "topic": [0, 1] * 3}), tmp_path / "in.parquet")
    command = ["select", str(tmp_path / "in.parquet"), "-o", str(tmp_path / "out.parquet"), "--group-by", "p"]
    assert main([*command, "--k", "2", "--text", "t", "--method", "coverage"]) == 0
    assert sorted(pq.read_table(tmp_path / "out.parquet")["topic"].to_pylist()) == [0, 1]
    x = features.tfidf_vectors(pa.chunked_array([texts])).astype(np.float64)
    cosine = x @ x.T / np.outer(*[np.linalg.norm(x, axis=1)] * 2)
    same = np.equal.outer([0, 1] * 3, [0, 1] * 3)
    assert cosine[same].min() > cosine[~same].max()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("can't see B-52s at 7 naïve café", ["can", "t", "see", "B", "52s", "at", "7", "naïve", "café"]),
        ("天气好", ["天", "气", "好", "天气", "气好"]),
        ("GPT在2024年", ["GPT", "在", "2024", "年"]),
        ("カナ、かな", ["カ", "ナ", "カナ", "か", "な", "かな"]),
        ("ที่นี่", ["ที่", "นี่", "ที่นี่"]),
        ("안녕 세계", ["안녕", "세계"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("cafe\u0301 q\u0323u", ["café", "q\u0323u"]),  # composed where Unicode has the letter
        ("𠮷野家", ["𠮷", "野", "家", "𠮷野", "野家"]),
        ("?! …", []),
    ],
)
def test_tokens_are_words_or_letters_and_pairs(text: str, found: list[str]) -> None:
    assert features.tokens(text) == found


def test_texts_of_spaced_scripts_are_split_as_scikit_learn_splits_them() -> None:
    from sklearn.feature_extraction.text import CountVectorizer

    split = CountVectorizer(token_pattern=r"(?u)\b\w+\b").build_tokenizer()
    glosses = pq.read_table(SAMPLE)["gloss"].to_pylist()
    assert all(features.tokens(gloss) == split(gloss) for gloss in glosses)
    assert features.tokens("Ünïcödé Ж жук, ελληνικά; עברית 12") == split("Ünïcödé Ж жук, ελληνικά; עברית 12")
