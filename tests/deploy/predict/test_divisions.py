"""Ranks or stages: what blocks take here, the ways to divide as many workers, and the same from the ledger of a run of stages."""

import json
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from deploy.cli.main import main
from deploy.config import Config, ScalingConfig, TaskConfig
from deploy.measure.ledger_file import LedgerStep
from deploy.predict import stages
from deploy.predict.blocks import Blocks
from deploy.predict.calibrate import fit
from deploy.predict.changes import outlook
from deploy.predict.inputs import Wishes, on_hosts_of, scenario_of_config
from deploy.predict.plan import floor_s, plan, ring_step_s
from deploy.predict.sources import asked
from deploy.predict.stages import Division, Divisions, best
from ps.config import CommConfig
from ps.errors import ConfigError
from tests.deploy.ledgers import step_of, write_run
from workers.config import PipelineConfig, TrainConfig
from workers.tasks.synthetic_mlp import SyntheticMLP

WIDTH = 64
BATCH = 64


def config(num_workers: int = 4, num_stages: int = 1, depth: int = 2, **sections: Any) -> Config:
    """Linear layers of 64 x 64 and what is between them; 64 samples per step."""
    fields = {"inputs": WIDTH, "width": WIDTH, "classes": WIDTH, "depth": depth, "samples": 256}
    scaling = ScalingConfig(num_workers=num_workers, num_stages=num_stages, num_servers=1)
    usual = {"train": TrainConfig(global_batch_size=BATCH), "scaling": scaling, "task": TaskConfig(name="synthetic-mlp", fields=fields)}
    return Config(**(usual | sections))


def test_blocks_say_what_they_pass_on_and_keep_and_how_long_they_take() -> None:
    blocks = Blocks(config())
    found = blocks.profile(16)
    assert blocks.num_blocks == 5 and len(found.forward_s) == len(found.backward_s) == 5 and blocks.profile(16) is found
    assert all(4 * 16 * WIDTH < size < 4 * 16 * WIDTH + 100 for size in found.passed_bytes), "activations, and a header"
    assert min(*found.forward_s, *found.backward_s, *found.put_s[:-1], found.load_s) > 0
    first, second = (found.kept_bytes(range(at, at + 2)) for at in (0, 2))
    assert first == second == 2 * 4 * 16 * WIDTH and found.kept_bytes(range(4)) == 3 * 4 * 16 * WIDTH, "what a layer gives is kept once"
    more_than_there_are = blocks.profile(512)
    assert more_than_there_are.kept_bytes(range(2)) == 2 * 4 * 512 * WIDTH
    whole = blocks.whole(16)
    assert whole.forward_s > 0 and found.kept_bytes(range(5)) >= whole.kept_bytes > found.kept_bytes(range(4))


@dataclass(frozen=True)
class SlowToLoad(SyntheticMLP):
    """Data that takes half a second of a processor to load."""

    def train_data(self) -> Any:
        begun = time.thread_time()
        while time.thread_time() - begun < 0.5:
            pass
        return super().train_data()


def test_loading_the_data_is_no_part_of_a_micro_batch() -> None:
    fields = {"inputs": WIDTH, "width": WIDTH, "classes": WIDTH, "depth": 1, "samples": 256}
    of = config(task=TaskConfig(name=f"{__name__}:SlowToLoad", fields=fields))
    assert 0 < Blocks(of).whole(16).load_s < 0.25
    assert 0 < Blocks(of).profile(16).load_s < 0.25


def divided(of: Config, num_members: int = 4) -> list[Division]:
    blocks = Blocks(of)
    return Divisions(of, on_hosts_of(of, [], blocks.specs), blocks).all(num_members)


def test_every_division_that_the_model_has_blocks_for_is_tried_with_as_many_micro_batches_as_pay() -> None:
    whole, *split = found = divided(config(depth=1))  # three blocks
    ways = [(way.scenario.num_workers, way.scenario.num_stages, way.micro_batches) for way in found]
    assert ways in [[(4, 1, 1), (2, 2, 1), (2, 2, micro)] for micro in (4, 16)], "there is no fourth block"
    assert all(way.scenario.samples * way.scenario.num_workers == BATCH == way.step.num_samples for way in found)
    model = whole.scenario.model_bytes
    assert [way.pushed_bytes for way in found] == [4 * model, 2 * model, 2 * model]
    assert whole.passed_bytes == 0 and all(2 * 2 * 4 * 32 * WIDTH < way.passed_bytes < 2 * 2 * 4 * 32 * WIDTH + 10_000 for way in split)
    assert split[0].step.bubble_s / split[0].step.step_s > split[1].step.bubble_s / split[1].step.step_s > 0 == whole.step.bubble_s
    for way in split:
        assert sum(way.scenario.pipeline.forward_shares) == pytest.approx(1)  # type: ignore[union-attr]
        assert way.memory_bytes < whole.memory_bytes + 100_000
    timed = [replace(way, step=replace(way.step, step_s=step_s)) for way, step_s in zip(found, (2.0, 3.0, 1.0), strict=True)]
    assert str(best(timed)).startswith("2 ranks x 2 stages with ") and str(best(timed[:2])) == "4 ranks of one worker"
    lines = stages.table(timed).splitlines()
    columns = ["ranks x stages", "micro-batches", "step", "samples/s", "pushed", "passed", "bubble", "memory of a worker"]
    assert len(lines) == len(found) + 3 and re.split(r"  +", lines[1].strip()) == columns and lines[-1].strip() == f"best: {best(timed)}"


def test_stages_hold_less_and_recomputation_keeps_only_what_comes_in() -> None:
    kept, again = (config(1, 2, depth=7, pipeline=PipelineConfig(micro_batches=4, recompute=recompute)) for recompute in (False, True))
    blocks = Blocks(kept)
    hosts = on_hosts_of(kept, [], blocks.specs)
    stored, recomputed = (Divisions(of, hosts, blocks).division(1, 2, 4) for of in (kept, again))
    layer = 4 * WIDTH * (WIDTH + 1)
    least = stages.OF_STAGE * 4 * layer
    assert least < recomputed.memory_bytes < stored.memory_bytes < least + 2 * 9 * 4 * 16 * WIDTH
    place, _ = blocks.placed(2)
    forward_s = sum(blocks.profile(16).forward_s[block] for block in place.split.stages[0])
    assert recomputed.scenario.backward_s == pytest.approx(stored.scenario.backward_s + 4 * forward_s), "a forward more of the first stage"


@dataclass(frozen=True)
class Tied(SyntheticMLP):
    """Its first and last layers have the same weights."""

    def model(self) -> nn.Module:
        model = super().model()
        list(model.children())[-1].weight = next(model.children()).weight  # type: ignore[assignment]
        return model


def test_blocks_that_share_parameters_and_ranks_without_samples_leave_divisions_out() -> None:
    tied = TaskConfig(name=f"{__name__}:Tied", fields={"inputs": 8, "width": 8, "classes": 8, "samples": 64})
    assert [way.scenario.num_stages for way in divided(config(task=tied))] == [1]
    few = config(train=TrainConfig(global_batch_size=2))
    assert {way.scenario.num_stages for way in divided(few)} == {2, 4}, "a rank without samples is no rank"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": None, "train": TrainConfig(batch_size=1, loop="mine.py:train")}, "an own loop .* has no blocks"),
        ({"train": TrainConfig(batch_size=1, autocast="bfloat16")}, "without autocast: plan from a run"),
    ],
)
def test_what_is_not_timed_here_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Blocks(config(**changes))


# -- a run of stages -----------------------------------------------------------------------------------------

STAGED = config(2, 2, pipeline=PipelineConfig(micro_batches=4))


def staged_steps(count: int = 8) -> list[LedgerStep]:
    """Two ranks of two stages: the second computes twice as long, half of it on a processor; rank 1 is slow."""
    steps = []
    for step in (step_of(number, 4, 1) for number in range(count)):
        rows = []
        for row in step.workers:
            rank, stage = divmod(row.rank, 2)
            compute_s = 0.01 * (1 + stage) * (1 + rank)
            rows.append(
                replace(row, forward_s=compute_s, backward_s=2 * compute_s, compute_cpu_s=1.5 * compute_s, data_wait_s=0.0, num_stages=2,
                        micro_batches=4, samples=32 * stage, passed_bytes=8200 if stage == 0 else 8300, bubble_s=0.004)
            )  # fmt: skip
        steps.append(replace(step, workers=rows))
    return steps


def test_a_ledger_of_stages_tells_their_compute_and_what_they_pass_on() -> None:
    found = fit(staged_steps(), scenario_of_config(STAGED, []))
    pipeline = found.pipeline
    assert pipeline and pipeline.forward_shares == pytest.approx((1 / 3, 2 / 3)) and pipeline.passed_bytes == (8200,) and pipeline.micro_batches == 4
    assert (found.forward_s, found.backward_s, found.samples) == pytest.approx((0.015, 0.03, 32)), "of the quicker rank, on processors"
    assert {spec.stage for spec in found.specs} == {0, 1}
    assert found.costs.step_s == pytest.approx(step_of(0, 4, 1).workers[0].other_s)


def test_a_plan_of_stages_counts_their_workers() -> None:
    comm = CommConfig(bandwidth="8mbit")
    found = replace(fit(staged_steps(), scenario_of_config(STAGED, [])), hosts="apart", comm=comm, latency_s=0.001)
    own = max(sum(spec.num_bytes for spec in found.specs if spec.stage == stage) for stage in (0, 1))
    wire = found.costs.wire_overhead
    assert floor_s(replace(found, comm=replace(comm, server_bandwidth={0: "1gbit"}))) == pytest.approx(wire * (own + 8200) / 1e6)
    assert floor_s(found) == pytest.approx(wire * 2 * found.model_bytes / 1e6), "one server takes everything from either rank"
    beside = floor_s(replace(found, hosts="colocated"))
    first = sum(spec.num_bytes for spec in found.specs if spec.stage == 0)
    assert beside == pytest.approx(max(wire * (8200 + 2 * found.model_bytes - first) / 1e6, wire * (own + 8200) / 1e6))
    whole = replace(found, num_workers=4, pipeline=None, forward_s=found.forward_s / 2, backward_s=found.backward_s / 2)
    assert ring_step_s(found) == pytest.approx(ring_step_s(whole))
    text = plan(found).text()
    assert text.startswith("2 ranks x 2 stages, 1 server") and "pipeline bubble" in text


def test_what_would_help_a_run_of_stages_names_its_slow_rank_and_more_micro_batches() -> None:
    steps = staged_steps()
    found = outlook(fit(steps, scenario_of_config(STAGED, steps)), steps)
    assert found
    names = [change.what for change in found.changes]
    assert "rank 1 as quick as the others" in names and not any("rank 2" in name or "rank 3" in name for name in names)
    even = [replace(s, workers=[replace(r, forward_s=0.05, backward_s=0.1, compute_cpu_s=0.15) for r in s.workers]) for s in steps]
    found = outlook(replace(fit(even, scenario_of_config(STAGED, even)), cores_per_host=4.0), even)
    assert found and "twice as many micro-batches (pipeline.micro_batches)" in [change.what for change in found.changes]


def test_a_run_of_stages_is_asked_for_other_divisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "runs", "staged", staged_steps(), config=STAGED)
    of_run = asked(str(run.path), Wishes())
    as_it_was, ways = of_run.scenario, of_run.ways
    assert as_it_was.pipeline and as_it_was.pipeline.forward_shares == pytest.approx((1 / 3, 2 / 3)), "as measured"
    assert {way.scenario.num_stages for way in ways} == {1, 2, 4}
    assert as_it_was in [way.scenario for way in ways]
    other = asked(str(run.path), Wishes(stages=4, workers=1, micro_batches=8)).scenario
    assert other.num_stages == 4 and other.pipeline and other.pipeline.micro_batches == 8
    one = asked(str(run.path), Wishes(stages=1, workers=1)).scenario
    assert one.pipeline is None and 0 < one.forward_s + one.backward_s < 2 * 0.045, "64 samples at once"


def test_a_config_is_timed_and_the_best_division_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "small.toml"
    fields = f"inputs = {WIDTH}\nwidth = {WIDTH}\ndepth = 2\nsamples = 256"
    path.write_text(f'[task]\nname = "synthetic-mlp"\n{fields}\n[train]\nbatch_size = 16\n[scaling]\nnum_workers = 2\nnum_servers = 1\n')
    printed = []
    for extra in (["--json"], ["--stages", "2", "--bandwidth", "100mbit"]):
        with pytest.raises(SystemExit) as ended:
            main(["plan", str(path), *extra])
        assert not ended.value.code
        printed.append(capsys.readouterr().out)
    told = json.loads(printed[0])
    assert told["workers"] == 2 and told["stages"] == 1 and told["best_division"] in told["divisions"]
    assert {(way["workers"], way["stages"]) for way in told["divisions"]} == {(2, 1), (1, 2)}
    assert "4 workers as ranks or stages, 32 samples per step" in printed[1] and "best: " in printed[1] and "2 ranks x 2 stages" in printed[1]
    for wrong, message in ((Wishes(model="resnet50"), "--model beside a run or a config"), (Wishes(stages=9), "9 stages of 5 blocks")):
        with pytest.raises(ConfigError, match=message):
            asked(str(path), wrong)


def test_stages_need_a_task_with_blocks(tmp_path: Path) -> None:
    whole = write_run(tmp_path, "whole", [step_of(step, 2, 1) for step in range(8)], config=config(2))
    assert not asked(str(whole.path), Wishes()).ways
    with pytest.raises(ConfigError, match="--micro-batches are for ranks of several stages"):
        asked(str(whole.path), Wishes(micro_batches=4))
    assert {way.scenario.num_stages for way in asked(str(whole.path), Wishes(stages=2)).ways} == {1, 2, 4}
