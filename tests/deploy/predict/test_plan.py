"""`pserver plan`: inputs by hand and from a ledger, the bottleneck by name, the best number of servers and format."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deploy.measure.ledger_file import LedgerStep
from deploy.predict import floors
from deploy.predict.calibrate import fit
from deploy.predict.costs import Costs
from deploy.predict.inputs import Wishes, changed, parse_size, parse_straggler, scenario_by_hand, tensors_named
from deploy.predict.plan import floor_s, plan, ring_step_s
from deploy.predict.scenario import Scenario, equal_tensors
from ps.config import CommConfig
from ps.errors import ConfigError
from ps.ledger import ServerRow, ShardTraffic, WorkerRow
from tests.deploy.predict.told import json_and_text

FREE = Costs(**{name: 0.0 for name in vars(Costs()) if name.endswith("_s")}, wire_overhead=1.0)
BASE = Scenario(
    specs=equal_tensors(1 << 18, 4),
    forward_s=0.001,
    backward_s=0.002,
    num_workers=4,
    num_servers=2,
    comm=CommConfig(bandwidth="100mbit", frame_bytes=1 << 16),
    costs=FREE,
    samples=8,
)


@pytest.mark.parametrize(
    ("changes", "bottleneck"),
    [
        ({}, "time on servers' links"),
        ({"num_servers": 4, "worker_links": {1: 1e6}}, "time on rank 1's link"),
        ({"num_servers": 4, "worker_links": {1: 1e6, 2: 1e6}}, "time on workers' links"),
        ({"num_servers": 4, "comm": replace(BASE.comm, server_bandwidth={2: "8mbit"})}, "time on shard 2's link"),
        ({"hosts": "colocated"}, "time on links of all hosts"),
        ({"num_servers": 4}, "time on links of all hosts"),
        ({"forward_s": 1.0, "backward_s": 2.0}, "compute"),
        ({"forward_s": 0.1, "backward_s": 0.2, "stragglers": {2: 6.0}}, "rank 2's delay"),
        ({"costs": replace(FREE, apply_byte_s=1e-5)}, "work on frames, sums and updates"),
        ({"latency_s": 1.0}, "latency"),
        ({"hosts": "one", "forward_s": 1.0, "backward_s": 2.0, "cores_per_host": 1}, "sharing of cores"),
    ],
)
def test_bottleneck_is_what_helps_most_when_it_is_halved(changes: dict[str, object], bottleneck: str) -> None:
    found = plan(replace(BASE, **changes))  # type: ignore[arg-type]
    if bottleneck in ("compute", "sharing of cores") and changes.get("hosts") == "one":
        assert {"compute", "sharing of cores"} == set(list(found.halved)[:2])  # one core for four: both halve the step
    else:
        assert found.bottleneck == bottleneck


def test_more_servers_help_up_to_one_per_worker_and_halves_halve() -> None:
    found = plan(BASE)
    assert found.best_servers in (4, 8) and found.by_servers[1] > 1.5 * found.by_servers[2] > 2 * found.by_servers[4]
    assert found.best_format == "bf16/bf16"
    assert found.floor_s == pytest.approx(2 * (1 << 18) / 12.5e6) and found.floor_s < found.step.step_s
    halved = replace(BASE, comm=replace(BASE.comm, push_format="bf16", pull_format="bf16"))
    assert floor_s(halved) == pytest.approx(found.floor_s / 2)
    assert floor_s(replace(halved, comm=replace(halved.comm, pull_format="fp32"))) == pytest.approx(found.floor_s)
    assert found.step.samples_per_s == pytest.approx(32 / found.step.step_s)


def test_every_format_is_planned_and_those_that_leave_gradients_to_later_steps_are_no_best() -> None:
    found = plan(BASE)
    assert list(found.by_format) == ["fp32/fp32", "bf16/bf16", "fp16/fp16", "int8/bf16", "topk/bf16"]
    assert found.by_format["topk/bf16"] < found.by_format["int8/bf16"] < found.by_format["bf16/bf16"] < found.by_format["fp32/fp32"]
    hidden = plan(replace(BASE, forward_s=1.0, backward_s=2.0))
    assert hidden.best_format == "fp32/fp32", "where no format is felt, none is worth its rounding"
    assert (found.best_format, found.quickest_format) == ("bf16/bf16", "topk/bf16")
    assert re.search(r"bf16/bf16 \S+ m?s, .*int8/bf16 \S+ m?s\*, topk/bf16 \S+ m?s\*; best bf16/bf16$", found.text(), re.MULTILINE)
    late = plan(replace(BASE, comm=replace(BASE.comm, push_format="int8")))
    assert next(iter(late.by_format)) == "int8/fp32" and late.best_format == "bf16/bf16"


def test_a_link_for_all_hosts_is_for_those_that_had_another_one_too() -> None:
    comm = replace(BASE.comm, server_bandwidth={0: "1mbit"}, worker_bandwidth={1: "2mbit"})
    run = replace(BASE, comm=comm, stragglers={1: 2.0, 3: 4.0})
    assert changed(run, Wishes(workers=3)).comm == comm
    found = changed(run, Wishes(bandwidth="8mbit"))
    assert {found.worker_link(rank) for rank in range(4)} == {found.server_link(shard) for shard in range(2)} == {1e6}


def test_a_slow_rank_of_the_run_is_slow_in_its_plan() -> None:
    def slowed(step: LedgerStep) -> LedgerStep:
        return replace(step, workers=[replace(row, backward_s=0.08) if row.rank == 1 else row for row in step.workers])

    found = fit([slowed(ledger_step(step)) for step in range(8)], replace(BASE, costs=Costs()))
    assert found.stragglers == {1: pytest.approx(3)} and found.compute_s == pytest.approx(0.03)
    assert changed(found, Wishes(workers=8)).stragglers == found.stragglers and not changed(found, Wishes(workers=1)).stragglers
    assert changed(found, Wishes(stragglers=["rank=0,factor=2"])).stragglers == {0: 2.0}


def test_ring_step_without_compute_is_the_closed_form() -> None:
    idle = replace(BASE, forward_s=0.0, backward_s=0.0)
    assert ring_step_s(idle) == pytest.approx(floors.ring_s(1 << 18, 4, 12.5e6))
    hidden = replace(BASE, forward_s=1.0, backward_s=2.0)  # one bucket, which is full when backward ends
    assert ring_step_s(hidden) == pytest.approx(3 + floors.ring_s(1 << 18, 4, 12.5e6))


def ledger_step(step: int) -> LedgerStep:
    traffics = [ShardTraffic(shard=shard, push_bytes=1 << 17, pull_bytes=1 << 17, encode_s=0.002) for shard in range(2)]
    worker = {"step": step, "time_s": 1.0, "step_s": 0.1, "forward_s": 0.01, "backward_s": 0.02, "copy_s": 0.004, "other_s": 0.005, "samples": 16}
    server = {"step": step, "time_s": 1.0, "aggregate_s": 0.004, "apply_s": 0.006, "cpu_s": 0.03}
    return LedgerStep(
        step, [WorkerRow(rank=rank, shards=traffics, **worker) for rank in range(4)], [ServerRow(shard=shard, **server) for shard in range(2)]
    )


def test_calibration_finds_what_the_ledger_shows() -> None:
    found = fit([ledger_step(step) for step in range(8)], replace(BASE, costs=Costs()))
    costs, usual = found.costs, Costs()
    assert (found.forward_s, found.backward_s, found.samples) == pytest.approx((0.01, 0.02, 16))
    assert costs.sum_byte_s == pytest.approx(0.008 / (4 * (1 << 18))) and costs.apply_byte_s == pytest.approx(0.012 / (1 << 18))
    assert costs.copy_byte_s == pytest.approx(0.004 / (1 << 18)) and costs.step_s == pytest.approx(0.005)
    # 0.03 s of a server's processor, less sums and updates, on frames: 2 of each of 4 ranks, in and out
    frames = 2 * 0.02 / 4
    factor = costs.take_frame_s / usual.take_frame_s
    assert costs.answer_byte_s / usual.answer_byte_s == pytest.approx(factor)
    num_frames = 4
    modelled = num_frames * (usual.take_frame_s + usual.answer_frame_s) + (1 << 18) * (usual.take_byte_s + usual.answer_byte_s)
    assert factor == pytest.approx(frames / modelled)


def test_calibration_needs_whole_steps() -> None:
    with pytest.raises(ConfigError, match="no whole step"):
        fit([ledger_step(step) for step in range(3)], BASE)


def test_inputs_by_hand() -> None:
    by_hand = Wishes(
        model_bytes="4MB", gflops=3.0, device_gflops=1500.0, batch=32, workers=3, servers=2, bandwidth="1gbit", stragglers=["rank=2,factor=2"]
    )
    found = scenario_by_hand(by_hand)
    assert found.compute_s == pytest.approx(32 * 3 / 1500) and found.backward_s == pytest.approx(2 * found.forward_s)
    assert found.model_bytes == 4_000_000 and not found.computes_on_host and found.stragglers == {2: 2.0}
    assert scenario_by_hand(Wishes(model="resnet50", compute_ms=1)).model_bytes == 4 * 25_557_032


def test_models_are_named_by_file_and_task_too(tmp_path: Path) -> None:
    save_file({"a.weight": np.zeros((3, 5), np.float32)}, tmp_path / "w.safetensors")
    (found,) = tensors_named(str(tmp_path / "w.safetensors"))
    assert (found.name, found.shape) == ("a.weight", (3, 5))
    assert tensors_named("workers.tasks.digits:Digits")[0].shape == (64, 64)


@pytest.mark.parametrize(
    "wishes",
    [
        Wishes(),
        Wishes(model="resnet50"),
        Wishes(model="resnet18", compute_ms=1),
        Wishes(model_bytes="many", compute_ms=1),
        Wishes(model_bytes="1MB", compute_ms=1, bandwidth="fast"),
        Wishes(model_bytes="1MB", compute_ms=1, stragglers=["2"]),
        Wishes(model="missing.safetensors", compute_ms=1),
    ],
)
def test_wrong_inputs_are_named(wishes: Wishes) -> None:
    with pytest.raises(ConfigError):
        scenario_by_hand(wishes)


def test_sizes_and_stragglers_are_read() -> None:
    assert (parse_size("400MB"), parse_size("8MiB"), parse_size("1.5GB")) == (400_000_000, 8 << 20, 1_500_000_000)
    assert parse_straggler("rank=2,factor=1.5") == (2, 1.5)
    assert math.isinf(scenario_by_hand(Wishes(model_bytes="1MB", compute_ms=1)).worker_link(0))


def test_the_command_prints_json_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    told, text = json_and_text(capsys, "plan", "--model-bytes", "64kB", "--compute-ms", "1", "--bandwidth", "100mbit")
    assert told["model_bytes"] == 64_000
    assert "bottleneck:" in text and "ring all-reduce" in text


def test_what_a_model_by_hand_prints_stays_off_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loud_model.py").write_text("print('loud')\nfrom workers.tasks.digits import Digits as Mine\n")
    told, _ = json_and_text(capsys, "plan", "--model", f"{tmp_path}/loud_model.py:Mine", "--compute-ms", "1", "--bandwidth", "100mbit")
    assert told["workers"] == 2


def test_links_of_virtual_hosts_are_no_shared_memory_and_each_rank_has_its_own() -> None:
    comm = CommConfig(bandwidth="100mbit", worker_bandwidth={1: "8mbit"}, shaping="links")
    scenario = replace(BASE, hosts="one", comm=comm)
    assert not scenario.is_shared
    assert [scenario.worker_link(rank) for rank in (0, 1)] == [12.5e6, 1e6]
    assert replace(BASE, hosts="one", comm=CommConfig()).is_shared
