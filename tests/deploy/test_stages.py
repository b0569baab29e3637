"""Runs whose ranks are split over stages, each a process: the bits of whole ranks, and those of a run left alone when one dies."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from deploy import compare
from deploy.config import Config, ScalingConfig, TaskConfig
from deploy.launch.base import ProcessKey
from deploy.measure.ledger_file import read_ledger
from deploy.result import Result
from deploy.rundir import RunDirectory
from ps.config import CommConfig
from ps.errors import ConfigError
from ps.failpoints import POINTS
from tests.deploy.faults import S1, W0, W1, Faults
from tests.deploy.killing import bits_of, deaths_of, run
from workers.config import TrainConfig

BLOCKS = "tests.deploy.own_loops:Blocks"
W3 = ProcessKey("worker", 3)
"""Rank 1's second stage."""


def staged(storage: Path, faults: Faults | None = None, dropout: float = 0.3, task: str = BLOCKS, **options: Any) -> Result:
    """Two ranks of two stages, of two micro-batches each; steps have two phases."""
    sizes = {"num_stages": 2, "accumulate": 2, "batch_size": 2, **options}
    return run(storage, "two phases", faults or Faults(), task=task, fields={"dropout": dropout}, **sizes)


@cache
def undisturbed() -> dict[str, Any]:
    with TemporaryDirectory() as storage:
        return bits_of(staged(Path(storage)))


def test_ranks_of_stages_give_the_bits_of_whole_ranks(tmp_path: Path) -> None:
    """With dropout, whose masks come from each block's own seed. The last batch leaves a rank with one micro-batch."""
    whole = bits_of(staged(tmp_path / "whole", num_stages=1))
    over_grpc = {"shared_memory": False, "num_servers": 1, "balance": (1, 4), "schedule": "gpipe", "recompute": True}
    three = staged(tmp_path / "three", num_stages=3, **over_grpc)
    assert bits_of(three) == whole
    assert re.search(r"3 stages of .* MB, largest \S+ of the mean", (three.path / "logs" / "driver.log").read_text())
    assert all(
        row.peak_bytes and row.passed_bytes and row.bubble_s > 0 for step in read_ledger(RunDirectory(three.path).comm) for row in step.workers
    )
    assert not any("the whole model" in log.read_text() for log in (three.path / "logs").iterdir()), "each has its own blocks only"
    cut_again = {"accumulate": 1, "batch_size": 4, "micro_batches": 2, "num_servers": 3, "balance": "time"}
    assert bits_of(staged(tmp_path / "two", **cut_again))["params"] == whole["params"]


DEATHS = [
    Faults().kill(W0, ("worker.joined", 1)).kill(W3, ("worker.sent", 5)),
    Faults().kill(W1, ("stage.took", 4), ("worker.reported", 4)),
    Faults().kill(S1, ("shard.recorded", 3)).kill(W0, ("stage.put", 12)).kill(W3, ("stage.took", 12)),
]


@pytest.mark.parametrize("faults", DEATHS, ids=str)
def test_stages_killed_anywhere_with_a_server_too_cost_no_bit(faults: Faults, tmp_path: Path) -> None:
    result = staged(tmp_path, faults)
    assert bits_of(result) == undisturbed()
    assert deaths_of(result) == faults.victims


def test_uneven_stages_with_a_skip_of_which_one_dies_while_it_flushes_have_the_bits_of_whole_ranks(tmp_path: Path) -> None:
    """Rank 1's middle stage has pushed a part of what its last backward of a step has made."""
    task = {"task": "tests.workers.stages.staged:Split5", "dropout": 0.0, "max_steps": 6}
    whole = staged(tmp_path / "whole", **task, num_stages=1, num_servers=1)
    faults = Faults().kill(ProcessKey("worker", 4), ("worker.sent", 12))
    split = staged(tmp_path / "split", faults, **task, num_stages=3, num_servers=3, balance=(1, 3))
    assert bits_of(split) == bits_of(whole)
    assert deaths_of(split) == faults.victims


def test_a_run_of_stages_goes_on_from_its_checkpoint_and_only_with_the_same_stages(tmp_path: Path) -> None:
    options = {"name": "run", "every_steps": 2, "max_failures": 0}
    assert staged(tmp_path, Faults().kill(W3, ("stage.took", 25)), **options).error
    for other, said in (({"num_stages": 3}, "scaling.num_stages: 2 -> 3"), ({"balance": (1,)}, "pipeline.balance: bytes -> ")):
        with pytest.raises(ConfigError, match=f"can only go on with the stages that its checkpoint was made with: {said}"):
            staged(tmp_path, **options, **other, resume="auto", allow_drift=True)
    result = staged(tmp_path, **options, num_servers=1, recompute=True, resume="auto")
    assert "resumed from step " in (result.path / "logs" / "driver.log").read_text()
    assert bits_of(result) == undisturbed()


def config(**scaling: int) -> Config:
    sections = {"train": TrainConfig(batch_size=4), "scaling": ScalingConfig(num_stages=2, **scaling)}
    return Config(task=TaskConfig(name=BLOCKS), **sections)  # type: ignore[arg-type]


def test_compare_says_why_it_knows_no_stages_and_what_does() -> None:
    with pytest.raises(ConfigError, match="DDP beside it, which splits no layers: .*Set scaling.num_stages = 1.*pserver plan"):
        compare.check(config(), 100)


WITH_STAGES = {
    'train.autocast = "bfloat16"': {"train": TrainConfig(batch_size=4, autocast="bfloat16")},
    'comm.push_format = "int8"': {"comm": CommConfig(push_format="int8")},
    "a GPU in scaling.resources_per_worker": {"scaling": ScalingConfig(num_stages=2, use_gpu=True)},
}


@pytest.mark.parametrize("what", WITH_STAGES)
def test_what_split_ranks_cannot_do_is_refused_before_anything_starts(what: str) -> None:
    with pytest.raises(ValueError, match=f"scaling.num_stages = 2 with .*{what}: ranks of several stages cannot do that, take one stage"):
        replace(config(), **WITH_STAGES[what])


def test_what_cannot_be_split_is_refused_by_name(tmp_path: Path) -> None:
    result = run(tmp_path, "adam", Faults(), num_stages=2)
    assert isinstance(result.error, ConfigError)
    assert "Noisy has no blocks: return them from blocks(model), or take one stage" in str(result.error)


def test_no_failpoint_between_stages_is_left_out() -> None:
    assert all(f" at {name} " in str(DEATHS) for name in POINTS if name.startswith("stage."))
