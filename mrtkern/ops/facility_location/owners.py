"""The kept row most similar to each row, where similarities are given: what weighs pairs has no say in it."""

from __future__ import annotations

import torch
from torch import Tensor

from mrtkern.ops.facility_location import graphs
from mrtkern.ops.facility_location.ground import Graph, Matrix
from mrtkern.ops.facility_location.units import fixed_point, quotient

COLUMNS_AT_ONCE = 1 << 19  # entries of a matrix that are looked at together


def of_matrix(ground: Matrix, ids: Tensor) -> Tensor:
    """Position of the most similar of `ids` (ascending) for each row, -1 where none is similar at all, [M]."""
    s, found = ground.s, []
    if not len(ids) or not len(s):
        return ids.new_full((len(s),), -1)
    ones = torch.ones(max(len(s), len(ids)), dtype=torch.float32, device=s.device)
    for rows in s.split(max(COLUMNS_AT_ONCE // len(ids), 1)):
        chosen = rows.index_select(1, ids).double()  # rows[:, ids] of uint16 is not in torch 2.6
        plain = fixed_point(quotient(chosen, ground.scale), 1.0, ones[: len(rows)], ones[: len(ids)], 1.0)
        best, position = plain.max(dim=1)  # the first of equal similarities
        found.append(torch.where(best > 0, position, -1))
    return torch.cat(found)


def of_graph(ground: Graph, ids: Tensor) -> Tensor:
    """The same of a graph."""
    position = ids.new_full((ground.size,), -1)
    position[ids] = torch.arange(len(ids), dtype=torch.int64, device=ids.device)
    found = [_of_edges(ground, ids, position, *part) for part in graphs.parts(ground.ends)]
    return torch.cat([ids.new_empty(0), *found])


def _of_edges(ground: Graph, ids: Tensor, position: Tensor, first: int, behind: int, edges: slice) -> Tensor:
    at = position[ground.ids[edges]]
    sizes = ground.ends[first : behind + 1].diff()
    row = torch.repeat_interleave(sizes, output_size=len(at))
    is_kept = at >= 0
    row, at, value = row[is_kept], at[is_kept], ground.values[edges][is_kept]
    if ground.has_self:  # kept rows that do not list themselves
        mine = ids[(ids >= first) & (ids < behind)]
        alone = mine[~torch.isin(mine, ids[at[row + first == ids[at]]])]
        row, at = torch.cat([row, alone - first]), torch.cat([at, position[alone]])
        value = torch.cat([value, value.new_ones(len(alone))])
    one = torch.ones(1, dtype=torch.float32, device=value.device)
    steps = fixed_point(quotient(value.double(), ground.scale)[None], 1.0, one, torch.ones_like(value), 1.0)[0]
    key = steps * (len(ids) + 1) - at  # the largest: the most similar, of equals the lowest position
    best = ids.new_zeros(behind - first).scatter_reduce(0, row, torch.where(steps > 0, key, 0), "amax")
    found = -best % (len(ids) + 1)
    return torch.where(best > 0, found, -1)
