"""Programs and packages that search for nearest rows: each takes queries [M, D] and rows y [N, D] of length 1, float32.

Each returns ids [M, k] int64 and cosines [M, k], nearest first.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import machine

CORE_TYPE = "OPENBLAS_CORETYPE"
Search = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
BLOCK = 512  # rows of one product: its scores are selected from while they are in a cache of megabytes
DENSE = 4096  # rows of one product of deduplication


def found(knn: Search, x: Tensor, y: Tensor | None, k: int, part: int) -> tuple[Tensor, Tensor]:
    """What a search finds for the first `part` rows of x; without y a row is kept out of its own list."""
    u = F.normalize(x, dim=1)
    if y is not None:
        return knn(u[:part], F.normalize(y, dim=1), k)
    ids, cosines = knn(u[:part], u, k + 1)
    is_self = ids == torch.arange(part, device=ids.device)[:, None]
    is_self[:, -1] |= ~is_self.any(dim=1)  # among equal rows it may be missing
    return ids[~is_self].view(part, k), cosines[~is_self].view(part, k)


def torch_knn(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Blocks of one product and topk."""
    parts = [(block @ y.mT).topk(k, dim=1) for block in x.split(BLOCK)]
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


@functools.cache
def load_faiss() -> Any:
    """faiss, its OpenBLAS told which processor this is.

    The OpenBLAS 0.3.15 in faiss-cpu 1.15.1 takes processors newer than itself for a Prescott and multiplies with SSE3:
    60 instead of 240 GFLOP/s on two cores of a Xeon, family 6 model 207. It reads the variable when it is loaded.
    """
    before = os.environ.get(CORE_TYPE)
    flags = machine.cpu()
    chosen = "SkylakeX" if "avx512f" in flags else "Haswell" if "avx2" in flags else None
    if before is None and chosen is not None:
        os.environ[CORE_TYPE] = chosen
    faiss = importlib.import_module("faiss")
    if before is None:
        os.environ.pop(CORE_TYPE, None)
    return faiss


def faiss_knn(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """faiss.knn, exact, by inner products."""
    faiss = load_faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    cosines, ids = faiss.knn(x.numpy(), y.numpy(), k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(ids), torch.from_numpy(cosines)


def faiss_cells(x: Tensor, k: int, cells: int, probes: int, per_cell: int, rounds: int) -> tuple[Tensor, Tensor]:
    """Rows among themselves in faiss's cells; a row is kept out of its own list."""
    faiss = load_faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())

    def knn(u: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(y.shape[1]), y.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = rounds, per_cell, 1
        index.train(y.numpy())
        index.add(y.numpy())
        index.nprobe = probes
        cosines, ids = index.search(u.numpy(), k)
        return torch.from_numpy(ids), torch.from_numpy(cosines)

    return found(knn, x, None, k, len(x))


def sklearn_knn(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """scikit-learn's fused search, by squared distances."""
    from sklearn.metrics._pairwise_distances_reduction import ArgKmin

    squares, ids = ArgKmin.compute(X=x.numpy(), Y=y.numpy(), k=k, metric="sqeuclidean", return_distance=True)
    return torch.from_numpy(np.ascontiguousarray(ids, np.int64)), 1 - torch.from_numpy(np.asarray(squares)) / 2


def usearch_knn(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """usearch's exact search."""
    from usearch.index import MetricKind, search

    matches = search(y.numpy(), x.numpy(), k, MetricKind.IP, exact=True, threads=torch.get_num_threads())
    return torch.from_numpy(matches.keys.astype(np.int64)), 1 - torch.from_numpy(matches.distances)


PACKAGES = {faiss_knn: "faiss", sklearn_knn: "sklearn", usearch_knn: "usearch"}


def is_installed(knn: Search) -> bool:
    """Whether what a search needs is installed."""
    return knn not in PACKAGES or importlib.util.find_spec(PACKAGES[knn]) is not None


def torch_chains(x: Tensor, threshold: float) -> Tensor:
    """First rows of the connected components of cosine >= threshold, from blocks above the diagonal."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    u = F.normalize(x, dim=1)
    N, links = len(u), []
    for i in range(0, N, DENSE):
        for j in range(i, N, DENSE):
            links.append((u[i : i + DENSE] @ u[j : j + DENSE].mT >= threshold).nonzero() + torch.tensor([i, j]))
    row, column = torch.cat(links).unbind(1)
    graph = coo_array((np.ones(len(row), np.int8), (row.numpy(), column.numpy())), shape=(N, N))
    labels = connected_components(graph, directed=False)[1]
    return torch.from_numpy(np.sort(np.unique(labels, return_index=True)[1]))
