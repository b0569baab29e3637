"""A loop that trains nothing: ranks measure their links to shards, no host in two pairs at once; shard s is on the host of rank s."""

import statistics

import torch
from torch import nn

from workers.context import Context

TIMES = 3
"""Tests of one link, of which the median counts."""


def num_steps(hosts: int) -> int:
    """Until every rank has met every shard: its own host's, and then in both directions the others of a tournament."""
    return 1 + 2 * (hosts + hosts % 2 - 1)


def target(rank: int, step: int, hosts: int) -> int | None:
    """The shard that `rank` measures in `step`; None if it is another's turn."""
    if step == 0:
        return rank
    turn, direction = divmod(step - 1, 2)
    last = hosts + hosts % 2 - 1  # the player that keeps its place; none, if the number is odd
    if rank == last:
        other = turn * (last + 1) // 2 % last
    else:
        other = (turn - rank) % last
        other = last if other == rank else other
    return other if other < hosts and (rank < other) == (direction == 0) else None


def measure(ctx: Context) -> None:
    """The loop. Reports by "what_RANK_SHARD"."""
    hosts = ctx._session.settings.num_servers
    model = nn.ParameterList(torch.zeros(64) for _ in range(hosts))
    opt = ctx.optimizer(model)
    found: dict[str, float] = {}
    for step in ctx.steps():
        if (shard := target(ctx.rank, step, hosts)) is not None:
            found |= _tested(ctx, shard)
        opt.zero_grad()
        sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
        opt.step(weight=1.0)
    ctx.report(found)


def _tested(ctx: Context, shard: int) -> dict[str, float]:
    tests = [ctx._session.client.measure(shard) for _ in range(TIMES)]
    pacings = [pacing for pacing, _ in tests if pacing]
    if not pacings:
        return {}
    return {
        f"bytes_per_s_{ctx.rank}_{shard}": statistics.median(pacing.link_bytes_per_s for pacing in pacings),
        f"delay_s_{ctx.rank}_{shard}": min(pacing.delay_s for pacing in pacings),
        f"local_{ctx.rank}_{shard}": float(tests[0][1]),
    }
