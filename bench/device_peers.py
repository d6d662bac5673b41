"""Programs for GPUs that a case is timed against: torch's own, and packages that happen to be installed.

Every answer goes through the same check as ours, so a program that computes something else cannot be reported.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peers, search
from bench.facility_location import equal_groups
from bench.neighbors import FLASH_KMEANS
from mrtkern import similarity

Runs = dict[str, Callable[[], Any]]
TRL = "trl-lib/fused-linear-ce"  # on the Hugging Face Hub; used where `hf download` has brought it


def has(*modules: str) -> bool:
    """Whether all of these can be imported."""
    return all(importlib.util.find_spec(name.split(".")[0]) is not None for name in modules)


def found(op: str, inputs: dict[str, Any]) -> Runs:
    """Name -> call, of the peers of an operation that are installed."""
    programs = {
        "facility_location": _facility_location,
        "similarity": _similarity,
        "cross_entropy": _cross_entropy,
        "linear_cross_entropy": _linear_cross_entropy,
        "neighbors": _neighbors,
    }
    return programs[op](inputs) if op in programs else {}


def _facility_location(inputs: dict[str, Any]) -> Runs:
    """Programs of tensor operations; on a GPU also with the similarities of the Triton kernel."""
    x, offsets, K = inputs["x"], inputs["offsets"], inputs["k"]
    B, N = equal_groups(offsets)
    runs: Runs = {
        "torch program": partial(peers.torch_program, x, B, N, K),
        "torch, norms from diagonal": partial(peers.torch_diagonal, x, B, N, K),
    }
    if x.is_cuda and has("triton"):
        runs["similarity on Triton, torch greedy"] = lambda: peers.greedy(
            similarity(x, metric="shifted_cosine", offsets=offsets, backend="triton").float().view(B, N, N), K
        )
    return runs


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
    """Only programs whose losses can be weighted token by token."""
    from bench.linear_cross_entropy import naive_loss, with_gradients

    losses: dict[str, Callable[..., Tensor]] = {"torch naive": naive_loss}
    if has("kernels", "huggingface_hub") and (folder := downloaded(TRL)) is not None:
        losses["TRL"] = partial(trl_loss, folder)
    return {name: partial(with_gradients, inputs, loss) for name, loss in losses.items()}


def downloaded(repository: str) -> Path | None:
    """Where the snapshot of a repository of the Hub lies on this machine; nothing is fetched."""
    found = importlib.import_module("huggingface_hub").try_to_load_from_cache(repository, "README.md")
    return Path(found).parent if isinstance(found, str) else None


@cache
def trl_kernel(folder: Path) -> Any:
    """The module of TRL's kernel. It lies in a repository of models, from which `kernels` loads it as a local one."""
    return importlib.import_module("kernels").get_local_kernel(folder)


def trl_loss(folder: Path, hidden: Tensor, head: Tensor, targets: Tensor, w: Tensor) -> Tensor:
    """TRL's fused kernel, which takes the same ignore_index."""
    return (trl_kernel(folder).fused_linear_cross_entropy(hidden, head, targets, reduction="none") * w).sum()


def _neighbors(inputs: dict[str, Any]) -> Runs:
    if inputs["k"] is None or inputs["precision"] != "exact":
        return {}
    searches: dict[str, search.Search] = {"torch program": search.torch_knn}
    if has("faiss") and hasattr(importlib.import_module("faiss"), "StandardGpuResources"):
        searches["FAISS-GPU"] = _faiss_gpu
    if has("cuvs"):
        searches["cuVS"] = _cuvs
    x, y, k = inputs["x"], inputs["y"], inputs["k"]
    if k == 1 and y is not None and has("flash_kmeans"):
        searches[FLASH_KMEANS] = _flash_kmeans
    return {name: partial(search.found, knn, x, y, k, len(x)) for name, knn in searches.items()}


@cache
def _faiss_resources() -> Any:
    """Memory that FAISS works in, taken once and not in a call that is timed."""
    return importlib.import_module("faiss").StandardGpuResources()


def _faiss_gpu(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    faiss = importlib.import_module("faiss")
    importlib.import_module("faiss.contrib.torch_utils")  # so that it takes tensors, and torch's stream
    scores, ids = faiss.knn_gpu(_faiss_resources(), x, y, k, metric=faiss.METRIC_INNER_PRODUCT)
    return ids, scores


def _cuvs(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    brute_force = importlib.import_module("cuvs.neighbors.brute_force")
    scores, ids = brute_force.search(brute_force.build(y, metric="inner_product"), x, k)
    return torch.as_tensor(ids, device=x.device), torch.as_tensor(scores, device=x.device)


def _flash_kmeans(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Its assignment of rows to centroids is a search for k = 1; it says which row, not how near."""
    assign = importlib.import_module("flash_kmeans.assign_euclid_triton").euclid_assign_triton
    ids = assign(x[None], y[None], x.square().sum(1)[None])[0].long()
    return ids[:, None], (x * y[ids]).sum(1, keepdim=True)
