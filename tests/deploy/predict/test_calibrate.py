"""Costs from ledgers of several runs, and the hosts that a ledger shows."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from deploy.config import Config, ScalingConfig, TaskConfig
from deploy.measure.ledger_file import LedgerStep
from deploy.predict.calibrate import fit, fit_together
from deploy.predict.classes import EVERY, classes_of
from deploy.predict.costs import Costs
from deploy.predict.inputs import scenario_of_config
from deploy.predict.scenario import Scenario, equal_tensors, layers_of
from ps.config import CommConfig
from ps.ledger import ServerRow, ShardTraffic, WorkerRow
from workers.config import TrainConfig

FRAME_S, BYTE_S = 300e-6, 4e-9
"""What a frame, and a byte, costs each end both ways together."""
STEP_S, WORK_S = 5e-3, 1e-3
"""What each end takes in a step whatever its frames, and a server's threads for a frame whatever its bytes."""


def run_of(
    frame_bytes: int, push_s: Sequence[float] = (0.1, 0.1), num_servers: int = 1, model_bytes: int = 1 << 20
) -> tuple[list[LedgerStep], Scenario]:
    """Workers, two unless `push_s` says otherwise, and one server that spend exactly that; ranks push for `push_s`."""
    scenario = Scenario(
        specs=equal_tensors(model_bytes, 16),
        forward_s=0.0,
        backward_s=0.0,
        num_workers=len(push_s),
        num_servers=num_servers,
        comm=CommConfig(frame_bytes=frame_bytes),
    )
    num_frames = sum(server.count * len(server.frames) for server in classes_of(scenario, layers_of(scenario.specs), EVERY).servers)
    spent_s = num_frames * FRAME_S + 2 * scenario.model_bytes * BYTE_S
    usual_s = scenario.model_bytes * (len(push_s) * scenario.costs.sum_byte_s + scenario.costs.apply_byte_s)
    traffics = [
        ShardTraffic(shard=0, push_bytes=1000, pull_bytes=1000, push_wire_bytes=1030, pull_wire_bytes=1010, push_from_s=push_s[rank], push_to_s=0.0)
        for rank in range(len(push_s))
    ]
    workers = [
        WorkerRow(
            rank=rank, step=0, time_s=1.0, step_s=0.2, backward_s=0.06, compute_cpu_s=0.03, cpu_s=0.03 + STEP_S + spent_s, shards=[traffics[rank]]
        )
        for rank in range(len(push_s))
    ]
    work_s = usual_s + num_frames * WORK_S
    loop_s = len(push_s) * spent_s + num_servers * STEP_S
    servers = [
        ServerRow(shard=shard, step=0, time_s=1.0, work_cpu_s=work_s / num_servers, cpu_s=(work_s + loop_s) / num_servers)
        for shard in range(num_servers)
    ]
    return [
        LedgerStep(step, [replace(row, step=step) for row in workers], [replace(row, step=step) for row in servers]) for step in range(5)
    ], scenario


def both_ways(costs: Costs, *names: str) -> float:
    return float(sum(getattr(costs, name) for name in names))


def test_what_frames_bytes_and_steps_cost_is_told_apart_by_three_runs() -> None:
    short, long, other = fit_together([run_of(32 << 10), run_of(64 << 10), run_of(128 << 10, num_servers=2, model_bytes=4 << 20)])
    assert short.costs == long.costs == other.costs
    assert (short.costs.worker_step_s, short.costs.server_step_s, short.costs.work_frame_s) == pytest.approx((STEP_S, STEP_S, WORK_S))
    assert short.costs.sum_byte_s == pytest.approx(Costs().sum_byte_s)
    for ends in (("push", "land"), ("take", "answer")):
        assert both_ways(short.costs, *(f"{end}_frame_s" for end in ends)) == pytest.approx(FRAME_S)
        assert both_ways(short.costs, *(f"{end}_byte_s" for end in ends)) == pytest.approx(2 * BYTE_S)
    assert short.compute_s == pytest.approx(0.03), "what processors did of it, not what it took where others wanted them"
    assert short.costs.wire_overhead == pytest.approx(1.03)


@pytest.mark.parametrize("fitted", [lambda *run: fit_together([run])[0], fit], ids=["together", "alone"])
@pytest.mark.parametrize(
    ("compute_cpu_s", "more_cpu_s", "num_ranks", "on_host"),
    [(0.002, 0.0, 2, False), (0.05, 0.0, 2, True), (0.002, 0.2, 2, True), (0.025, 0.0, 4, True)],
    ids=["waits", "computes", "waits for busy processors", "waits for other ranks that compute"],
)
def test_compute_that_leaves_processors_alone_takes_as_long_however_many_ranks_share_them(
    fitted: Callable[..., Scenario], compute_cpu_s: float, more_cpu_s: float, num_ranks: int, on_host: bool
) -> None:
    """Ranks and a server on two cores; steps of 0.2 s, of which a rank computes for 0.06."""
    steps, run = run_of(256 << 10, (0.1,) * num_ranks)
    seen = [
        replace(
            step,
            workers=[
                replace(row, cores=2.0, compute_cpu_s=compute_cpu_s, cpu_s=row.cpu_s - 0.03 + compute_cpu_s + more_cpu_s) for row in step.workers
            ],
            servers=[replace(row, cores=2.0) for row in step.servers],
        )
        for step in steps
    ]
    found = fitted(seen, replace(run, machine_cores=2.0))
    assert found.computes_on_host == on_host
    assert on_host or found.compute_s == pytest.approx(0.06)


@pytest.mark.parametrize("fitted", [lambda *run: fit_together([run])[0], fit], ids=["together", "alone"])
def test_shares_of_a_link_are_uneven_if_pushes_take_some_ranks_longer(fitted: Callable[..., Scenario]) -> None:
    even, uneven = (fitted(*run_of(32 << 10, push_s)).costs for push_s in ((0.1, 0.1), (0.1, 0.2)))
    assert even.unfairness == pytest.approx(0.0, abs=1e-9) and uneven.unfairness > 0.3
    assert even.wire_overhead == pytest.approx(1.03)


@pytest.mark.parametrize(
    "why", [{"link_bytes_per_s": 1e6}, {"backward_s": 0.12}], ids=["its link is thinner", "it computes longer and pushes meanwhile"]
)
def test_a_rank_that_pushes_for_longer_for_a_reason_has_no_smaller_share(why: dict[str, float]) -> None:
    steps, scenario = run_of(32 << 10, (0.1, 0.2))
    reasoned = [replace(step, workers=[step.workers[0], replace(step.workers[1], **why)]) for step in steps]  # type: ignore[arg-type]
    assert fit(reasoned, scenario).costs.unfairness == pytest.approx(0.0, abs=1e-9)


def test_payload_that_stays_on_a_host_tells_nothing_of_links() -> None:
    steps, scenario = run_of(32 << 10, (0.1, 0.2))

    def at_home(row: WorkerRow) -> WorkerRow:
        return replace(row, shards=[replace(traffic, local=True, push_wire_bytes=9, pull_wire_bytes=9) for traffic in row.shards])

    costs = fit([replace(step, workers=[at_home(row) for row in step.workers]) for step in steps], scenario).costs
    assert (costs.wire_overhead, costs.unfairness) == (Costs().wire_overhead, 0.0)


@pytest.mark.parametrize(
    ("local", "shaping", "hosts"),
    [
        ((True, True), "links", "one"),
        ((False, False), "links", "apart"),
        ((False, False), "streams", "one"),
        ((True, False), "links", "colocated"),
    ],
)
def test_hosts_are_those_of_the_shards_that_workers_found_on_theirs(local: tuple[bool, bool], shaping: str, hosts: str) -> None:
    config = Config(
        task=TaskConfig(name="synthetic-mlp"),
        train=TrainConfig(batch_size=8),
        scaling=ScalingConfig(num_workers=2, num_servers=2),
        comm=CommConfig(shaping=shaping),  # type: ignore[arg-type]
    )
    shards = [ShardTraffic(shard=shard, local=is_local) for shard, is_local in enumerate(local)]
    step = LedgerStep(0, [WorkerRow(rank=0, step=0, time_s=1.0, step_s=0.1, shards=shards)], [])
    assert scenario_of_config(config, [step]).hosts == hosts


def test_a_step_that_others_held_up_does_not_shorten_the_compute() -> None:
    steps, scenario = run_of(32 << 10)
    held_up = replace(steps[4], workers=[replace(row, backward_s=0.6) for row in steps[4].workers])
    assert fit_together([([*steps, *steps[3:], held_up], scenario)])[0].compute_s == pytest.approx(0.03)
