"""Norms that servers take for the gradient noise scale."""

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from deploy.measure.window import Window
from ps.config import CommConfig
from ps.layout import Layout, Run, TensorSpec
from ps.ledger import ServerRow, from_line
from ps.noise import NormSamples, square
from tests.deploy.ledgers import step_of
from tests.ps.cluster import Cluster, cluster, exchange, in_threads, start
from tests.waiting import until


def rows_until(step: int, servers: Cluster) -> list[ServerRow]:
    """All rows to that of `step`, which servers make when they have answered."""
    rows: list[ServerRow] = []

    def is_there() -> bool:
        found = [from_line(line) for server in servers.servers for line in server.rows.take()]
        rows.extend(row for row in found if isinstance(row, ServerRow))
        return sum(row.step == step for row in rows) == len(servers.servers)

    until(is_there, timeout_s=20)
    return rows


@pytest.mark.parametrize("shared", [True, False])
def test_norms_of_all_ranks_and_of_the_weighted_mean_are_in_the_rows_of_every_tenth_step(shared: bool) -> None:
    weights = (1.0, 3.0)
    with cluster(2, 2, comm=CommConfig(shared_memory=shared)) as servers:
        members = [servers.member(rank, nn.Linear(300, 70)) for rank in range(2)]
        for mine, first in zip(members[1].bound.landing, members[0].bound.landing, strict=True):
            mine[:] = first
        in_threads([lambda m=m: start(m) for m in members])
        gradients = []
        for member in members:
            flat = member.bound.gradients.view(np.float32)
            for at, count in ((0, 21000), (21120, 70)):  # the bias begins at a multiple of 512 bytes
                flat[at : at + count] = np.random.default_rng(member.rank).standard_normal(count, dtype=np.float32)
            gradients.append(flat[:21190].astype(np.float64).copy())
        in_threads([lambda m=m, w=w: [exchange(m, step, w) for step in range(11)] for m, w in zip(members, weights, strict=True)])
        rows = rows_until(10, servers)
    mean = (gradients[0] + 3 * gradients[1]) / 4
    for step in (0, 10):
        of_step = [row for row in rows if row.step == step]
        assert len(of_step) == 2
        assert sum(row.rank_squares or 0 for row in of_step) == pytest.approx(sum(float(one @ one) for one in gradients), rel=1e-5)
        assert sum(row.mean_square or 0 for row in of_step) == pytest.approx(float(mean @ mean), rel=1e-5)
    assert all(row.rank_squares is row.mean_square is None for row in rows if row.step % 10)


def test_norms_are_taken_where_they_mean_something_and_cost_little() -> None:
    def samples(elements: int, num_workers: int = 2, *, exact: bool = True) -> list[int]:
        layout = Layout([TensorSpec(name="w", shape=(elements,), dtype="float32")], 1)
        norms = NormSamples(layout, layout.shards[0], num_workers, exact=exact)
        return [step for step in range(200) if norms.takes(step, Run(0, 1))]

    assert samples(100) == list(range(0, 200, 10))
    assert samples(25_000_000) == [0, 100]
    assert samples(100, 1) == samples(100, exact=False) == []


def test_a_norm_is_exact_to_float32() -> None:
    values = np.random.default_rng(0).standard_normal(1_000_003, dtype=np.float32)
    assert square(values) == pytest.approx(float(np.square(values, dtype=np.float64).sum()), rel=1e-6)


def test_the_scale_comes_from_steps_in_which_all_shards_have_taken_norms() -> None:
    """|G|² = 3 and S = 40 at 32 samples for each of two ranks, divided between two shards."""
    window = Window()
    small, big = 3 + 40 / 32, 3 + 40 / 64
    for step in range(4):
        made = step_of(step)
        if step % 2:
            parts = zip(made.servers, (0.3, 0.7), strict=True)
            servers = [replace(row, rank_squares=2 * small * part, mean_square=big * part) for row, part in parts]
            made = replace(made, servers=servers if step == 1 else [servers[0], made.servers[1]])
        window.add(step, made.rows)
    assert window.noise.num_steps == 1
    assert window.totals()["noise_scale"] == pytest.approx(40 / 3)
