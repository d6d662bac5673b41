"""Programs for GPUs that a case is timed against: torch's own, and packages that happen to be installed.

Every answer goes through the same check as ours, so a program that computes something else cannot be reported.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import search

Runs = dict[str, Callable[[], Any]]


def has(*modules: str) -> bool:
    """Whether all of these can be imported."""
    return all(importlib.util.find_spec(name.split(".")[0]) is not None for name in modules)


def found(op: str, inputs: dict[str, Any]) -> Runs:
    """Name -> call, of the peers of an operation that are installed."""
    peers = {
        "similarity": _similarity,
        "cross_entropy": _cross_entropy,
        "linear_cross_entropy": _linear_cross_entropy,
        "neighbors": _neighbors,
    }
    return peers[op](inputs) if op in peers else {}


def _similarity(inputs: dict[str, Any]) -> Runs:
    from bench.similarity import torch_program

    return {"torch program": partial(torch_program, inputs)}


def _cross_entropy(inputs: dict[str, Any]) -> Runs:
    from bench.cross_entropy import compiled, with_gradient

    if inputs["inplace"]:
        return {}
    x, y = inputs["x"], inputs["y"]
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "torch eager": lambda z: F.cross_entropy(z, y),
        "torch.compile": lambda z: compiled()(z, y),
    }
    if has("liger_kernel"):
        liger = importlib.import_module("liger_kernel.transformers.functional").liger_cross_entropy
        losses["Liger"] = lambda z: liger(z.clone(), y)  # it writes its gradient over the logits
    if has("quack"):
        quack = importlib.import_module("quack.cross_entropy").cross_entropy
        losses["quack"] = lambda z: quack(z, y, reduction="mean")
    return {name: partial(with_gradient, x, loss) for name, loss in losses.items()}


def _linear_cross_entropy(inputs: dict[str, Any]) -> Runs:
    from bench.linear_cross_entropy import naive_loss, with_gradients

    return {"torch naive": partial(with_gradients, inputs, naive_loss)}  # Liger's and torch's own take no weights


def _neighbors(inputs: dict[str, Any]) -> Runs:
    if inputs["k"] is None or inputs["precision"] != "exact":
        return {}
    searches: dict[str, search.Search] = {"torch program": search.torch_knn}
    if has("faiss") and hasattr(importlib.import_module("faiss"), "StandardGpuResources"):
        searches["FAISS-GPU"] = _faiss_gpu
    if has("cuvs"):
        searches["cuVS"] = _cuvs
    x, y, k = inputs["x"], inputs["y"], inputs["k"]
    return {name: partial(search.found, knn, x, y, k, len(x)) for name, knn in searches.items()}


def _faiss_gpu(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    faiss = importlib.import_module("faiss")
    importlib.import_module("faiss.contrib.torch_utils")  # so that it takes tensors
    scores, ids = faiss.knn_gpu(faiss.StandardGpuResources(), x, y, k, metric=faiss.METRIC_INNER_PRODUCT)
    return ids, scores


def _cuvs(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    brute_force = importlib.import_module("cuvs.neighbors.brute_force")
    scores, ids = brute_force.search(brute_force.build(y, metric="inner_product"), x, k)
    return torch.as_tensor(ids, device=x.device), torch.as_tensor(scores, device=x.device)
