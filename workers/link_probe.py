"""A loop that trains nothing: ranks measure their links to shards, no host in two pairs at once.

Which rank and shard share a host, Join has proved to the rank; the others learn it as they learn everything, from a parameter.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from workers.context import Context

TIMES = 3
"""Tests of one link, of which the median counts."""


class Places(NamedTuple):
    """The host of each rank and of each shard, by a number; who has not proved to share one is on its own."""

    ranks: tuple[int, ...]
    shards: tuple[int, ...]


def places_of(local: Sequence[Sequence[bool]]) -> Places:
    """`local[rank][shard]`: the two share a host."""
    ranks, shards = list(range(len(local))), [len(local) + shard for shard in range(len(local[0]))]
    for rank, row in enumerate(local):
        for shard, is_local in enumerate(row):
            if is_local:
                former, host = sorted((ranks[rank], shards[shard]), reverse=True)
                ranks, shards = ([host if its == former else its for its in members] for members in (ranks, shards))
    return Places(tuple(ranks), tuple(shards))


def rounds(places: Places) -> list[list[tuple[int, int]]]:
    """A rank and a shard for every host that has one and every host that has the other, each pair once; no host is twice in a round."""
    pairs: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, here in enumerate(places.ranks):
        for shard, there in enumerate(places.shards):
            pairs.setdefault((here, there), (rank, shard))
    numbers = {host: number for number, host in enumerate(sorted({*places.ranks, *places.shards}))}
    found: list[tuple[set[int], list[tuple[int, int]]]] = []
    for here, there in sorted(pairs, key=lambda ends: ((numbers[ends[1]] - numbers[ends[0]]) % len(numbers), ends)):
        busy, turn = next((turn for turn in found if not turn[0] & {here, there}), (set(), []))
        if not turn:
            found.append((busy, turn))
        busy |= {here, there}
        turn.append(pairs[here, there])
    return [turn for _, turn in found]


def most_steps(hosts: int) -> int:
    """Of so many ranks and shards, wherever they are: one to learn where, and the rounds, since a pair waits for at most 4 (N − 1) others."""
    return 1 + 4 * (hosts - 1) + 1


class _Model(nn.Module):
    def __init__(self, num_ranks: int, num_shards: int) -> None:
        super().__init__()
        self.fillers = nn.ParameterList(torch.zeros(64) for _ in range(num_shards))
        """Every shard has something to wait for."""
        self.local = nn.Parameter(torch.zeros(num_ranks, num_shards))
        """Not 0 where rank and shard share a host, from version 1 on."""

    def places(self) -> Places:
        return places_of((self.local != 0).tolist())


def measure(ctx: Context) -> None:
    """The loop. Reports by "what_RANK_SHARD"."""
    shards = range(ctx._session.settings.num_servers)
    model = _Model(ctx.num_workers, len(shards))
    opt = ctx.optimizer(model)
    local = [float(ctx._session.client.is_local(shard)) for shard in shards]
    found = {f"local_{ctx.rank}_{shard}": flag for shard, flag in zip(shards, local, strict=True)}
    for step in ctx.steps():
        turns = [[], *rounds(model.places())] if step else [[]]
        if step == len(turns):
            break  # all ranks do
        for shard in [shard for rank, shard in turns[step] if rank == ctx.rank]:
            found |= _tested(ctx, shard)
        opt.zero_grad()
        (sum(filler.sum() for filler in model.fillers) + (model.local[ctx.rank] * torch.tensor(local)).sum()).backward()
        opt.step(weight=1.0)
    ctx.report(found)


def _tested(ctx: Context, shard: int) -> dict[str, float]:
    pacings = [pacing for _ in range(TIMES) if (pacing := ctx._session.client.measure(shard))]
    if not pacings:
        return {}
    return {
        f"bytes_per_s_{ctx.rank}_{shard}": statistics.median(pacing.link_bytes_per_s for pacing in pacings),
        f"delay_s_{ctx.rank}_{shard}": min(pacing.delay_s for pacing in pacings),
    }
