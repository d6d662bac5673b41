"""Approximate neighbours: rows meet only in the cells that they probe, and what that misses is measured.

    centroids  k-means of at most 32 ceil(sqrt N) rows of y, drawn at random, into C = ceil(sqrt N) cells
    cell       of a row of y, the centroid nearest to it
    probes     of a row of x, the P nearest centroids
    lists      the k best of a row among the members of the cells that it probes: `neighbors`, with fewer pairs
    recall     of at most 256 rows drawn at random: how much of the true list was found, or rows as near as its last

`neighbors` itself decides what is nearest: cosines on the lattice; for rbf squared distances; for dot the distance
of a row of y and the product of a row of x. So cells and lists have the same bits on every machine; only the centroids
are another library's, which clusters on one thread.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mrtkern import _check, _device, _dispatch, _progress, lattice
from mrtkern.ops.neighbors.problem import ENTRY_BYTES, Cells, Inputs, Problem

OP = "neighbors"
ROUNDS = 6  # of k-means: cells need not be the best
ROWS_PER_CELL = 32  # that k-means sees
CHECKED = 256  # rows whose lists are compared with the exact ones
TENTH = 10
PARTS = (0.05, 0.08, 0.97, 1.0)  # of a call of 1,000,000 rows: until clustered, assigned, searched, measured


class Found(NamedTuple):
    """Lists, and how many of the true neighbours are in them."""

    ids: Tensor
    scores: Tensor
    recall: float
    recall_worst_tenth: float


def num_cells(N: int) -> int:
    """C, of N rows."""
    return math.isqrt(max(N - 1, 0)) + 1 if N else 0


def search(inputs: Inputs, num_probes: int, seed: int, backend: str | None) -> Found:
    """Cells, lists and recall; the exact lists where every row would probe every cell or there are no features."""
    y = inputs.x if inputs.y is None else inputs.y
    count = num_cells(y.shape[0])
    if num_probes >= count or y.shape[1] == 0:
        return Found(*exact(inputs, backend), 1.0, 1.0)
    _check.finite_rows(f"{OP}: x", inputs.x)
    _check.finite_rows(f"{OP}: y", y)
    generator = torch.Generator().manual_seed(seed)
    with _progress.part(0.0, PARTS[0]):
        centroids = clustered(y, count, inputs.metric, seed, generator)
        _progress.report(1.0)
    with _progress.part(PARTS[0], PARTS[1]):
        cells = assigned(inputs, centroids, num_probes, backend)
    inputs = inputs._replace(cells=cells)
    problem = Problem.of(inputs)
    module = _dispatch.run(OP, backend, problem)
    _device.fits(f"{OP}: x and k", problem.M * problem.K * ENTRY_BYTES + module.memory(problem), y.device)
    with _progress.part(PARTS[1], PARTS[2]), torch.autocast(y.device.type, enabled=False):
        ids, scores = module.forward(inputs)
    with _progress.part(PARTS[2], PARTS[3]):
        shares = recalls(inputs._replace(cells=None), ids, scores, generator, backend)
    worst = shares.sort().values[: -(-len(shares) // TENTH)]
    return Found(ids, scores, float(shares.mean()), float(worst.mean()))


def exact(inputs: Inputs, backend: str | None) -> tuple[Tensor, Tensor]:
    """The operator of `neighbors`."""
    ids, scores = torch.ops.mrtkern.neighbors(*inputs[:-1], backend)
    return ids, scores


def nearest(x: Tensor, y: Tensor, k: int, metric: str, precision: str, backend: str | None) -> Tensor:
    """ids [M, k] of the nearest rows of y."""
    return exact(Inputs(x, y, k, metric, precision=precision, exclude_self=False), backend)[0]


def clustered(y: Tensor, count: int, metric: str, seed: int, generator: torch.Generator) -> Tensor:
    """Centroids [C, D] of the type of y: of directions, or of rows where lengths count."""
    rows = torch.randperm(y.shape[0], generator=generator, dtype=torch.int64, device="cpu")[: ROWS_PER_CELL * count]
    sample = lattice.to_float32(y[rows.sort().values.to(y.device)].cpu()).double()
    lengths = lattice.square_root(lattice.squared_norms(sample))
    scale = lengths[:, None] if metric not in ("dot", "rbf") else lengths.max()
    features = (sample / torch.where(scale > 0, scale, 1.0)).float().numpy()
    centroids = torch.from_numpy(k_means(features, count, seed))
    if metric in ("dot", "rbf"):
        centroids = (centroids.double() * lengths.max()).float()
    return centroids.to(y.device, y.dtype)


def k_means(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Centroids [C, D] float32 by a library, on one thread: its sums have an order of their own for every number."""
    if is_installed("faiss"):
        import faiss

        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            options: dict[str, Any] = {"min_points_per_centroid": 1, "max_points_per_centroid": ROWS_PER_CELL}
            found = faiss.Kmeans(rows.shape[1], count, niter=ROUNDS, seed=seed % 2**31, **options)
            found.train(rows)
        finally:
            faiss.omp_set_num_threads(threads)
        return np.asarray(found.centroids, np.float32)
    if not is_installed("sklearn"):
        raise RuntimeError(f"{OP}: approximate must have faiss or scikit-learn installed, which cluster, got neither")
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows: fewer clusters than were asked for
        found = KMeans(count, init="random", n_init=1, max_iter=ROUNDS, random_state=seed % 2**32).fit(rows)
    return np.asarray(found.cluster_centers_, np.float32)


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def assigned(inputs: Inputs, centroids: Tensor, num_probes: int, backend: str | None) -> Cells:
    """The cell of every row of y and the probes of every row of x."""
    x, y, metric = inputs.x, inputs.y, inputs.metric
    is_cosine = metric not in ("dot", "rbf")
    own = "cosine" if is_cosine else "rbf"  # by which a row belongs to a cell
    precision = "int16" if is_cosine else "exact"
    probes = nearest(x, centroids, num_probes, "cosine" if is_cosine else metric, precision, backend)
    if y is None and metric != "dot":
        cell = probes[:, 0].contiguous()
    else:
        cell = nearest(x if y is None else y, centroids, 1, own, precision, backend)[:, 0]
    return Cells(centroids.shape[0], cell, probes)


def recalls(inputs: Inputs, ids: Tensor, scores: Tensor, generator: torch.Generator, backend: str | None) -> Tensor:
    """The share found of the true lists of some rows, float64.

    A row that was found counts where its score reaches the last one of the true list: of equal rows any will do.
    """
    x, device = inputs.x, inputs.x.device
    y = x if inputs.y is None else inputs.y
    rows = torch.randperm(x.shape[0], generator=generator, dtype=torch.int64, device="cpu")[:CHECKED].sort().values
    rows = rows.to(device)
    if not len(rows) or not inputs.k:
        return torch.ones(1, dtype=torch.float64, device="cpu")
    groups: tuple[Tensor | None, Tensor | None] = (None, None)
    if inputs.group_x is not None:  # a row is of its own group, too
        groups = (inputs.group_x[rows], inputs.group_y)
    elif inputs.exclude_self:
        groups = (rows, torch.arange(y.shape[0], dtype=torch.int64, device=device))
    few = inputs._replace(x=x[rows], y=y, exclude_self=False, group_x=groups[0], group_y=groups[1])
    true_ids, true_scores = exact(few, backend)
    is_real = true_ids >= 0
    total = is_real.sum(dim=1)
    last = true_scores.masked_fill(~is_real, math.inf).amin(dim=1)
    hits = ((scores[rows] >= last[:, None]) & (ids[rows] >= 0)).sum(dim=1)
    return torch.where(total > 0, hits.double() / total, 1.0).cpu()
