"""What limits a step: planted in made-up rows of the ledger, and named by the verdict."""

import pytest

from deploy.measure.verdict import Verdict, verdict
from ps.ledger import ServerRow, WorkerRow
from tests.deploy.steps import COMPUTE, MB, THIN, ranks, step_of, window_of, with_bytes

FAST_SHARD = {"push_s": 0.05, "busy_s": 0.08}

PLANTED = [
    pytest.param(step_of(ranks(4, **COMPUTE)), "compute 0.30 s of 0.37 s", id="compute-bound"),
    pytest.param(step_of([*ranks(3, **COMPUTE), COMPUTE | {"compute_s": 0.9}]), "rank 3's compute 0.90 s, others 0.30 s", id="slow rank by compute"),
    pytest.param(step_of([*ranks(1, **COMPUTE), COMPUTE | {"compute_s": 0.6}]), "rank 1's compute 0.60 s, others 0.30 s", id="slow rank of two"),
    pytest.param(
        step_of([COMPUTE, COMPUTE | {"data_wait_s": 0.3}, COMPUTE]),
        "rank 1's data loading 0.30 s, others 10.0 ms",
        id="slow rank by data, much compute",
    ),
    pytest.param(step_of(ranks(2, data_wait_s=0.5, compute_s=0.1, receive_s=0.05)), "data loading 0.50 s of 0.65 s", id="all loaders slow"),
    pytest.param(step_of([COMPUTE | {"compute_s": 0.32}, COMPUTE]), "compute 0.32 s of 0.39 s", id="a rank slightly slower is no bottleneck"),
    pytest.param(
        step_of(ranks(2, **THIN), [FAST_SHARD, {"push_s": 0.3, "busy_s": 0.35}]),
        "shard 1 ingress 6.7 MB/s",
        id="one shard throttled in, rate unknown",
    ),
    pytest.param(
        step_of(ranks(2, **THIN), [FAST_SHARD, {"push_s": 0.06, "pull_s": 0.30, "busy_s": 0.36}]),
        "shard 1 egress 6.7 MB/s",
        id="one shard throttled out, rate unknown",
    ),
    pytest.param(
        step_of(ranks(2, **THIN), [{"push_s": 0.2, "busy_s": 0.34}, {"push_s": 0.213, "busy_s": 0.35, "link_bytes_per_s": 10.0 * MB}]),
        "shard 1 ingress 9.4 of 10.0 MB/s",
        id="one shard shaped: its full window slows the frames of the other one too",
    ),
    pytest.param(
        step_of([*ranks(3, **THIN), THIN | {"send_s": 0.29}], [FAST_SHARD, {"push_s": 0.36, "busy_s": 0.4}]),
        "shard 1 ingress 11.1 MB/s",
        id="the rank served last by a throttled shard is not to blame",
    ),
    pytest.param(
        step_of(ranks(4, **THIN), [{"push_s": 0.4, "busy_s": 0.4, "link_bytes_per_s": 10.0 * MB}] * 2),
        "ingress of all shards 10.0 of 10.0 MB/s each",
        id="all links thin, rate known",
    ),
    pytest.param(
        step_of(ranks(2, link_bytes_per_s=10.0 * MB, **THIN), [{"link_bytes_per_s": 10.0 * MB}] * 3),
        "links of all workers 8.6 of 10.0 MB/s each way",
        id="more servers than workers on links of one rate",
    ),
    pytest.param(
        step_of(ranks(1, compute_s=0.05, receive_s=0.1, link_bytes_per_s=10.0 * MB), [{}] * 3),
        "rank 0's link 10.0 of 10.0 MB/s each way",
        id="bytes that are mostly hidden behind compute pass no quicker than the link",
    ),
    pytest.param(
        step_of(
            [*ranks(2, compute_s=0.05, send_s=0.02, receive_s=0.03, link_bytes_per_s=40.0 * MB), THIN | {"link_bytes_per_s": 10.0 * MB}],
            [{"link_bytes_per_s": 40.0 * MB}] * 3,
        ),
        "rank 2's link 8.6 of 10.0 MB/s each way",
        id="one rank's link thin, rate known",
    ),
    pytest.param(
        step_of(ranks(4, **THIN), [{"push_s": 0.4, "busy_s": 0.4}] * 2), "transport of all shards 22.9 MB/s in, 22.9 MB/s out", id="all links thin"
    ),
    pytest.param(
        step_of([*ranks(3, compute_s=0.05, send_s=0.02, receive_s=0.03), THIN], [{"push_s": 0.3, "busy_s": 0.3}] * 2),
        "rank 3's transfers 0.35 s, others 0.05 s",
        id="one rank's link thin",
    ),
    pytest.param(
        step_of(
            ranks(2, compute_s=0.0005, send_s=0.0001, receive_s=0.002, apply_s=0.0002),
            [{"push_s": 0.0001}, {"push_s": 0.0004}],
            shard_bytes=5000,
        ),
        "latency of the exchange 5.0 kB per rank and shard in 2.1 ms",
        id="tiny model",
    ),
    pytest.param(
        step_of(ranks(2, compute_s=0.1, apply_s=0.3, receive_s=0.1), [{"apply_s": 0.2, "aggregate_s": 0.1}] * 2),
        "servers' apply 0.30 s of 0.50 s",
        id="apply",
    ),
    pytest.param(
        step_of(ranks(2, compute_s=0.1, apply_s=0.3, receive_s=0.1), [{"apply_s": 0.05}, {"apply_s": 0.3}]),
        "shard 1's apply 0.30 s of 0.50 s",
        id="slow server",
    ),
    pytest.param(
        step_of(ranks(2, compute_s=0.1, copy_s=0.2, encode_s=0.2, install_s=0.1)), "copies and encoding 0.50 s of 0.60 s", id="a worker's own copies"
    ),
    pytest.param(step_of(ranks(1, **COMPUTE), [{}]), "compute 0.30 s of 0.37 s", id="one process of each kind"),
    pytest.param(
        step_of(ranks(1, **THIN), [{"push_s": 0.1, "link_bytes_per_s": 5.0 * MB}]), "shard 0 ingress 5.0 of 5.0 MB/s", id="the only shard, shaped"
    ),
]


@pytest.mark.parametrize(("rows", "expected"), PLANTED)
def test_the_planted_bottleneck_is_named(rows: list[WorkerRow | ServerRow], expected: str) -> None:
    found = verdict(window_of(rows, rows, rows))
    assert str(found) == expected
    assert sum(found.shares.values()) == pytest.approx(1)


def verdict_of(rows: list[WorkerRow | ServerRow], steps: int = 10) -> Verdict:
    return verdict(window_of(*[rows] * steps))


def test_a_rank_that_computes_a_third_longer_is_named_where_all_compute_most_of_the_step() -> None:
    found = verdict_of(step_of([*ranks(2, **COMPUTE), COMPUTE | {"compute_s": 0.4}]))
    assert (str(found), found.is_sure) == ("rank 2's compute 0.40 s, others 0.30 s", True)


def test_a_shard_with_more_bytes_on_links_of_one_rate_is_a_bad_layout() -> None:
    links = [{"link_bytes_per_s": 10.0 * MB}] * 3
    rows = step_of(ranks(2, **THIN), links)
    found = verdict_of(with_bytes(rows, [MB // 2, MB, MB // 2]))
    assert (str(found), found.is_sure) == ("layout shard 1 has 2.0 MB of a step, others 1.0 MB: ingress 10.0 of 10.0 MB/s", True)
    even = verdict_of(with_bytes(rows, [MB - MB // 20, MB, MB - MB // 20]))
    assert even.resource == "ingress of all shards" and even.is_sure


def test_a_thinner_link_is_told_from_a_bad_layout() -> None:
    thin = {"link_bytes_per_s": 5.0 * MB}
    for other in ({"link_bytes_per_s": 10.0 * MB}, {}):
        found = verdict_of(with_bytes(step_of(ranks(2, **THIN), [other, thin, other]), [MB, MB + MB // 5, MB]))
        assert found.resource == "shard 1 ingress"


@pytest.mark.parametrize(("size", "resource", "is_sure"), [(1.05, "ingress of all shards", True), (1.12, "ingress of all shards", False),
                                                         (1.17, "shard 1 ingress", False), (1.3, "shard 1 ingress", True)])  # fmt: skip
def test_links_of_known_rates_are_told_apart_from_a_sixth_on(size: float, resource: str, is_sure: bool) -> None:
    found = verdict_of(step_of(ranks(3, **THIN), [{"link_bytes_per_s": 10.0 * MB}, {"link_bytes_per_s": 10.0 * MB / size}]))
    assert (found.resource, found.is_sure) == (resource, is_sure)


def test_links_that_are_idle_for_most_of_the_transfers_are_named_without_confidence() -> None:
    for rate, is_sure in ((10.0, True), (14.0, False)):
        found = verdict_of(step_of(ranks(2, **THIN), [{"link_bytes_per_s": rate * MB}] * 2))
        assert (found.resource, found.is_sure) == ("ingress of all shards", is_sure)


def test_bytes_of_ranks_on_a_shards_own_host_use_no_link() -> None:
    """Of three ranks, each beside one shard: two thirds of its bytes travel, in 0.2 s of 0.25 s each way."""
    rows = step_of(ranks(3, compute_s=0.05, send_s=0.25, receive_s=0.1), [{"link_bytes_per_s": 10.0 * MB, "push_s": 0.25}] * 3)
    for row in rows:
        if isinstance(row, WorkerRow):
            for traffic in row.shards:
                traffic.local = traffic.shard == row.rank
    assert str(verdict_of(rows)) == "ingress of all shards 8.0 of 10.0 MB/s each"


def test_a_server_without_a_processor_of_its_own_is_named_by_its_work_that_takes_too_long() -> None:
    """Whether its ranks wait for bytes that it does not take, or for updates that it does not finish."""
    starved = {"aggregate_s": 0.02, "apply_s": 0.08, "work_cpu_s": 0.02, "cpu_s": 0.06, "busy_s": 0.3}
    quick = {"aggregate_s": 0.004, "apply_s": 0.016, "work_cpu_s": 0.018, "cpu_s": 0.06, "busy_s": 0.1}
    named = "CPU of shard 1's host 20.0 ms of checks, sums and updates take 0.10 s for want of a processor"
    for spans in (THIN, {"compute_s": 0.05, "apply_s": 0.2}):
        found = verdict_of(step_of(ranks(2, **spans), [quick, starved]))
        assert (str(found), found.is_sure) == (named, True)
        alike = verdict_of(step_of(ranks(2, **spans), [starved, starved]))
        assert "CPU" not in alike.resource, "none is worse off than the other"
        assert not alike.is_sure or "apply" in alike.resource
    assert verdict_of(step_of(ranks(2, **COMPUTE), [quick, starved])).resource == "compute", "nobody waits for it"


@pytest.mark.parametrize(
    ("cores", "named"),
    [
        ((2.0, 0.4), "CPU of shard 1's host 0.14 s of work for 0.4 of a processor: 85% of the step"),
        ((0.4, 0.4), "CPU of all servers' hosts 0.14 s of work for 0.4 of a processor: 85% of the step"),
        ((0.4,), "CPU of shard 0's host 0.14 s of work for 0.4 of a processor: 85% of the step"),
        ((2.0, 0.5), "transport of all shards 11.4 MB/s in, 11.4 MB/s out"),
    ],
    ids=["one has less", "all have as little", "the only one", "it has enough"],
)
def test_a_server_that_uses_up_its_quota_is_named_though_the_machine_lets_others_wait_as_long(cores: tuple[float, ...], named: str) -> None:
    starved = {"aggregate_s": 0.02, "apply_s": 0.08, "work_cpu_s": 0.02, "cpu_s": 0.14, "busy_s": 0.3}
    found = verdict_of(step_of(ranks(2, **THIN), [starved | {"cores": its} for its in cores]))
    assert (str(found), found.is_sure) == (named, "CPU" in named)


def test_what_a_server_did_before_its_first_step_fills_no_later_one() -> None:
    first, later = (step_of(ranks(2, **THIN), [{"cores": 0.5, "cpu_s": cpu_s}] * 2) for cpu_s in (9.0, 0.1))
    assert "CPU" not in verdict(window_of(first, *[later] * 4)).resource


def test_no_verdict_is_sure_after_few_steps_or_where_something_else_comes_close() -> None:
    clear, close = step_of(ranks(2, **COMPUTE)), step_of(ranks(2, compute_s=0.3, receive_s=0.28))
    assert verdict_of(clear).is_sure and not verdict_of(clear, steps=3).is_sure
    assert verdict_of(close).resource == "compute" and not verdict_of(close).is_sure


def test_noise_that_alternates_between_ranks_blames_none() -> None:
    slow, fast = COMPUTE | {"compute_s": 0.5}, COMPUTE
    steps = [step_of([slow, fast] if number % 2 else [fast, slow]) for number in range(20)]
    assert verdict(window_of(*steps)).resource == "compute"


def test_stalls_of_others_in_a_few_steps_hide_no_slow_rank() -> None:
    slow = [step_of([COMPUTE | {"data_wait_s": 0.3}, *ranks(2, **COMPUTE)])] * 6
    stalls = [step_of([COMPUTE, COMPUTE | {"compute_s": 0.5}, COMPUTE]), step_of([*ranks(2, **COMPUTE), COMPUTE | {"compute_s": 0.8}])]
    assert verdict(window_of(*slow, *stalls)).resource == "rank 0's data loading"
    assert verdict(window_of(*slow[:2], *stalls)).resource == "compute"


def test_a_rank_that_is_slower_in_some_steps_and_quicker_in_as_many_is_not_to_blame() -> None:
    slow, quick = step_of([COMPUTE, COMPUTE | {"compute_s": 0.6}]), step_of([COMPUTE | {"compute_s": 0.55}, COMPUTE])
    assert verdict(window_of(*[slow, slow, quick] * 6)).resource == "compute"


def test_a_rank_that_is_slow_in_two_steps_may_be_so_by_chance() -> None:
    rows = step_of([COMPUTE, COMPUTE | {"compute_s": 0.6}])
    assert [verdict_of(rows, steps).resource for steps in (2, 3)] == ["compute", "rank 1's compute"]
