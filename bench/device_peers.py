"""Programs for GPUs that a case is timed against: torch's own, and packages that may be installed.

Packages are imported when they are first called, so that one that is absent, or that breaks, says so like a program
that fails. Every answer goes through the same check as ours: what computes something else cannot be reported.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import peers, search
from bench.device_time import Maker, again
from bench.facility_location import equal_groups
from bench.neighbors import FLASH_KMEANS
from mrtkern import similarity

Makers = dict[str, Maker]
TRL = "trl-lib/fused-linear-ce"  # on the Hugging Face Hub; used where `hf download` has brought it


def found(op: str, inputs: dict[str, Any]) -> Makers:
    """Name -> maker of a call, of the peers of an operation."""
    programs = {
        "facility_location": _facility_location,
        "similarity": _similarity,
        "cross_entropy": _cross_entropy,
        "linear_cross_entropy": _linear_cross_entropy,
        "neighbors": _neighbors,
    }
    return programs[op](inputs) if op in programs else {}


def _facility_location(inputs: dict[str, Any]) -> Makers:
    """Programs of tensor operations; on a GPU also with the similarities of the Triton kernel."""
    x, offsets, K = inputs["x"], inputs["offsets"], inputs["k"]
    B, N = equal_groups(offsets)
    makers = {
        "torch program": again(partial(peers.torch_program, x, B, N, K)),
        "torch, norms from diagonal": again(partial(peers.torch_diagonal, x, B, N, K)),
    }
    if x.is_cuda:
        makers["similarity on Triton, torch greedy"] = again(
            lambda: peers.greedy(
                similarity(x, metric="shifted_cosine", offsets=offsets, backend="triton").float().view(B, N, N), K
            )
        )
    return makers


def _similarity(inputs: dict[str, Any]) -> Makers:
    from bench.similarity import torch_program

    return {"torch program": again(partial(torch_program, inputs))}


def _cross_entropy(inputs: dict[str, Any]) -> Makers:
    from bench.cross_entropy import compiled, with_gradient

    x, y = inputs["x"], inputs["y"]
    if inputs["inplace"]:
        return {"Liger": lambda: partial(with_gradient, x.clone(), lambda z: liger_loss(z, y))}
    return {
        "torch eager": again(partial(with_gradient, x, lambda z: F.cross_entropy(z, y))),
        "torch.compile": again(partial(with_gradient, x, lambda z: compiled()(z, y))),
        "quack": again(partial(with_gradient, x, lambda z: quack_loss(z, y))),
    }


def liger_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Liger's kernel, which writes the gradient over the logits."""
    return importlib.import_module("liger_kernel.transformers.functional").liger_cross_entropy(logits, targets)


def quack_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Quack's kernel."""
    return importlib.import_module("quack.cross_entropy").cross_entropy(logits, targets, reduction="mean")


def _linear_cross_entropy(inputs: dict[str, Any]) -> Makers:
    """Only programs whose losses can be weighted token by token."""
    from bench.linear_cross_entropy import compiled_loss, naive_loss, with_gradients

    losses: dict[str, Callable[..., Tensor]] = {
        "torch naive": naive_loss,
        "torch.compile": lambda *given: compiled_loss()(*given),
        "TRL": trl_loss,
    }
    if inputs["x"].dtype != torch.float32:  # its kernels take 16-bit types
        losses["cut-cross-entropy"] = cut_loss
    return {name: again(partial(with_gradients, inputs, loss)) for name, loss in losses.items()}


def cut_loss(hidden: Tensor, head: Tensor, targets: Tensor, w: Tensor) -> Tensor:
    """Apple's kernel, nothing of the gradient filtered away."""
    loss = importlib.import_module("cut_cross_entropy").linear_cross_entropy
    return (loss(hidden, head, targets, reduction="none", filter_eps=None) * w).sum()


def downloaded(repository: str) -> Path | None:
    """Where the snapshot of a repository of the Hub lies on this machine; nothing is fetched."""
    found = importlib.import_module("huggingface_hub").try_to_load_from_cache(repository, "README.md")
    return Path(found).parent if isinstance(found, str) else None


@cache
def trl_kernel() -> Any:
    """The module of TRL's kernel. It lies in a repository of models, from which `kernels` loads it as a local one."""
    loader, folder = importlib.import_module("kernels"), downloaded(TRL)
    if folder is None:
        raise ModuleNotFoundError(f"{TRL} is not on this machine")
    return loader.get_local_kernel(folder)


def trl_loss(hidden: Tensor, head: Tensor, targets: Tensor, w: Tensor) -> Tensor:
    """TRL's fused kernel, which takes the same ignore_index."""
    return (trl_kernel().fused_linear_cross_entropy(hidden, head, targets, reduction="none") * w).sum()


def _neighbors(inputs: dict[str, Any]) -> Makers:
    if inputs["k"] is None or inputs["precision"] != "exact":
        return {}
    searches: dict[str, search.Search] = {
        "torch program": search.torch_knn,
        "FAISS-GPU": _faiss_gpu,
        "cuVS": _cuvs,
    }
    x, y, k = inputs["x"], inputs["y"], inputs["k"]
    if k == 1 and y is not None:
        searches[FLASH_KMEANS] = _flash_kmeans
    return {name: again(partial(search.found, knn, x, y, k, len(x))) for name, knn in searches.items()}


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
