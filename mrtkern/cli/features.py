"""Texts to vectors: TF-IDF and truncated SVD by scikit-learn, or a sentence-transformers model when it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from mrtkern.cli import InputError

DIMENSIONS = 384  # as the small sentence encoders have; less when there are fewer words or rows
MAX_WORDS = 1 << 18  # bounds the vocabulary, most frequent first
WORD = r"(?u)\b\w+\b"  # one letter is a word too: answers such as "7" or "B" differ by nothing else
SEED = 0  # of the randomised SVD: the features do not depend on --seed, only the picks do
LOST = 1e-4  # a row that keeps less of its unit length than this has no direction in the reduced space
# Vectors are rounded to this: BLAS on another processor moves them by up to 3e-12 (sample: OpenBLAS for Haswell,
# Nehalem, Prescott and SkylakeX), in float32 by 7e-4, which flips picks. Half a step is far below the lattice's error.
STEP = 2.0**-16


def iterated(texts: Any) -> Iterator[str]:
    """The texts one block at a time: all of them at once as Python strings would need several times their memory."""
    for chunk in texts.chunks:
        for start in range(0, len(chunk), 4096):
            yield from chunk.slice(start, 4096).to_pylist()


def tfidf_vectors(texts: Any) -> Any:
    """[T, D] float32, D <= 384. Words weighted by (1 + log count) · idf, then SVD; zeros for a text without words.

    Computed in float64 and rounded, so that every processor and every number of threads gives the same vectors.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    weigh = TfidfVectorizer(token_pattern=WORD, sublinear_tf=True, max_features=MAX_WORDS, dtype=np.float64)
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
