"""The heaviest links that join N rows into as many chains as are asked for: a maximum spanning tree, cut.

Every chain takes its heaviest link to another one, all chains at a time (Boruvka 1926); each round is one exact search
for the nearest row outside one's own chain. Links are ordered by cosine in float64, then by the lower row, then by the
higher one: a total order, so there is one tree, and cutting it at any link leaves as many chains as that asks for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mrtkern import _progress, lattice
from mrtkern.ops.neighbors import chains
from mrtkern.ops.neighbors.op import neighbors
from mrtkern.ops.neighbors.reference import BLOCK_N

Links = tuple[Tensor, Tensor, Tensor]  # cosines float64, lower rows, higher rows int64


def cosines(x: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Of rows i with rows j, as `neighbors` compares them: float64, one for each pair."""
    found = []
    for a, b in zip(i.split(BLOCK_N), j.split(BLOCK_N), strict=True):
        rows, others = (lattice.scaled(x[ids]) if x.dtype == torch.float64 else x[ids] for ids in (a, b))
        squares = lattice.squared_norms(rows) * lattice.squared_norms(others)
        lengths = lattice.square_root(squares)
        found.append(torch.where(lengths > 0, lattice.row_dots(rows, others) / lengths, 0.0).clamp_(-1, 1))
    return torch.cat(found) if found else x.new_zeros(0, dtype=torch.float64)


def heaviest_first(links: Links, chain: Tensor | None = None) -> Tensor:
    """Places of links in their order, within chains where these are given."""
    weight, low, high = links
    order = torch.arange(len(low), dtype=torch.int64, device=low.device)
    for key in (high, low, -weight, *([] if chain is None else [chain])):
        order = order[key[order].sort(stable=True).indices]
    return order


def outgoing(x: Tensor, labels: Tensor, backend: str | None) -> Links:
    """The heaviest link of every chain to another one."""
    nearest = neighbors(x, 1, exclude_group=labels, backend=backend).ids[:, 0]
    rows = (nearest >= 0).nonzero()[:, 0]
    others = nearest[rows]
    links = (cosines(x, rows, others), rows.minimum(others), rows.maximum(others))
    order = heaviest_first(links, labels[rows])
    chain = labels[rows][order]
    is_first = torch.ones_like(chain, dtype=torch.bool)
    is_first[1:] = chain[1:] != chain[:-1]
    order = order[is_first]
    pairs = links[1][order] * len(x) + links[2][order]
    order = order[_firsts(pairs)]  # two chains may take the same link
    return links[0][order], links[1][order], links[2][order]


def _firsts(values: Tensor) -> Tensor:
    """Places of one of each value."""
    ascending, order = values.sort(stable=True)
    is_new = torch.ones_like(ascending, dtype=torch.bool)
    is_new[1:] = ascending[1:] != ascending[:-1]
    return order[is_new]


def joined(x: Tensor, num_chains: int, backend: str | None) -> Tensor:
    """The lowest row of the chain of every row [N], of exactly num_chains chains."""
    N = len(x)
    own = torch.arange(N, dtype=torch.int64, device=x.device)
    needed, labels, links, done = N - num_chains, own, (x.new_zeros(0, dtype=torch.float64), own[:0], own[:0]), 0.0
    while needed:
        with _progress.part(done, (1 + done) / 2):
            found = outgoing(x, labels, backend)
        done = (1 + done) / 2
        if len(links[0]) >= needed and float(found[0].max()) < float(links[0].sort(descending=True).values[needed - 1]):
            break
        links = tuple(torch.cat(parts) for parts in zip(links, found, strict=True))  # type: ignore[assignment]
        labels = chains.joined(labels, found[1], found[2])
        if bool((labels == 0).all()):
            break
    order = heaviest_first(links)[:needed]
    return chains.joined(own, links[1][order], links[2][order])
