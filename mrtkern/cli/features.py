"""Texts to vectors: TF-IDF and truncated SVD by scikit-learn, or a sentence-transformers model when it is installed."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import itertools
import re
import unicodedata
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from mrtkern.cli import InputError
from mrtkern.cli.packing import Packed

DIMENSIONS = 384  # as the small sentence encoders have; less when there are fewer words or rows
MAX_WORDS = 1 << 18  # bounds the vocabulary, most frequent first
WORD = re.compile(r"\w+")  # one letter is a word too: answers such as "7" or "B" differ by nothing else
# Blocks of scripts without spaces between words: Thai and Lao, Myanmar, Khmer, Tai Le to Tai Tham, Balinese, ideographs
# with kana and bopomofo, Javanese, Tai Viet, halfwidth kana, rare kana and ideographs. Tibetan marks its syllables.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\u2e80-\u2fdf\u3005-\u3007"
    "\u3021-\u3029\u3031-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua980-\ua9ff\uaa60-\uaadf"
    "\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
SEED = 0  # of the randomised SVD: the features do not depend on --seed, only the picks do
LOST = 1e-4  # a row that keeps less of its unit length than this has no direction in the reduced space
# Vectors are rounded to this: BLAS on another processor moves them by up to 3e-12 (sample: OpenBLAS for Haswell,
# Nehalem, Prescott and SkylakeX), in float32 by 7e-4, which flips picks. What lies that near the middle between two
# steps, one number in millions, is a step apart there: far below the lattice's error.
STEP = 2.0**-16


def iterated(texts: Any) -> Iterator[str]:
    """The texts one block at a time: all of them at once as Python strings would need several times their memory."""
    for chunk in texts.chunks:
        for start in range(0, len(chunk), 4096):
            yield from chunk.slice(start, 4096).to_pylist()


@functools.cache
def patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Words with their combining marks (for `re` a mark ends a word), runs of a kind of script, letters with marks."""
    codes = (*range(0x300, 0x1F000), *range(0xE0100, 0xE01F0))  # all of Unicode's marks
    marks = "".join(chr(code) for code in codes if unicodedata.category(chr(code))[0] == "M")
    runs = rf"[{UNSPACED}][{UNSPACED}{marks}]*|[^{UNSPACED}]+"
    return re.compile(rf"\w[\w{marks}]*"), re.compile(runs), re.compile(rf".[{marks}]*")


def tokens(text: str) -> list[str]:
    """What a text is compared by: its words, and of scripts without spaces each letter and each two that follow."""
    if text.isascii():
        return WORD.findall(text)
    words, runs, letters = patterns()
    found = []
    for word in words.findall(unicodedata.normalize("NFC", text)):
        for run in runs.findall(word):
            if re.match(f"[{UNSPACED}]", run):
                alone = letters.findall(run)
                found += alone + [first + second for first, second in itertools.pairwise(alone)]
            else:
                found.append(run)
    return found


def tfidf_vectors(texts: Any) -> Any:
    """[T, D] float32, D <= 384. Tokens weighted by (1 + log count) · idf, then SVD; zeros for a text without any.

    Computed in float64 by one thread, so that torch's number of threads changes nothing, and rounded to steps.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    weigh = TfidfVectorizer(tokenizer=tokens, token_pattern=None, sublinear_tf=True, max_features=MAX_WORDS)
    try:
        counts = weigh.fit_transform(iterated(texts))  # [T, words], unit rows
    except ValueError:  # no text has a word
        return np.zeros((len(texts), 1), dtype=np.float32)
    if counts.shape[1] <= DIMENSIONS:
        return rounded(counts.toarray())
    D = min(DIMENSIONS, counts.shape[0])
    one_thread = importlib.import_module("threadpoolctl").threadpool_limits  # comes with scikit-learn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # explained variance of identical texts is 0/0; it is not used
        with one_thread(1):  # BLAS adds up in another order with another number of threads
            reduced = TruncatedSVD(D, random_state=SEED).fit_transform(counts)
    reduced[np.linalg.norm(reduced, axis=1) < LOST] = 0.0
    return rounded(reduced)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the vectors of rows come from."""
    vectors = parser.add_mutually_exclusive_group(required=True)
    vectors.add_argument("--embedding", metavar="COL", help="vectors, all of one length")
    vectors.add_argument("--text", metavar="COL", help="texts, turned into vectors by TF-IDF and SVD")
    help_model = "turn texts into vectors by this sentence-transformers model instead"
    parser.add_argument("--text-model", metavar="NAME", help=help_model)


def of(packed: Packed, model: str | None) -> Any:
    """[T, D] float32 of packed rows: their embeddings, or what their texts become, which are packed from then on."""
    if packed.vectors is None:
        packed.vectors = tfidf_vectors(packed.texts) if model is None else model_vectors(packed.texts, model)
    return torch.from_numpy(packed.vectors)


def rounded(vectors: Any) -> Any:
    """float64 of at most 1 as float32 multiples of STEP, which hold 16 bits; overwrites its argument."""
    np.rint(np.divide(vectors, STEP, out=vectors), out=vectors)
    vectors *= STEP
    vectors += 0.0  # no -0.0: equal vectors are equal bytes
    return vectors.astype(np.float32)


def check_model(name: str | None) -> None:
    """Refuse a model name early when no package can load it."""
    if name is not None and importlib.util.find_spec("sentence_transformers") is None:
        raise InputError(
            '--text-model needs sentence-transformers, pip install "mrtkern[text]"; leave it out to use TF-IDF'
        )


def model_vectors(texts: Any, name: str) -> Any:
    """[T, D] float32 from a sentence-transformers model, by name or folder."""
    from safetensors import SafetensorError  # comes with sentence-transformers, as does transformers
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would be drawn through the command's own
    try:
        model = SentenceTransformer(name)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:  # of a broken folder
        raise InputError(f"--text-model {name} cannot be loaded: {str(error).splitlines()[0]}") from error
    vectors: Any = model.encode(list(iterated(texts)), convert_to_numpy=True, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32)
