"""What the driver makes of the parts of checkpoints, whatever processes bring, and in whatever order."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploy.checkpoints import CheckpointKeeper, Standing
from deploy.config import Config, RunConfig, ScalingConfig, TaskConfig
from deploy.resume import Beginning, begin
from ps.checkpoints.load import Checkpoint
from ps.checkpoints.parts import ShardData, shard_shape
from ps.config import CheckpointConfig, OptimizerConfig
from ps.control_service import SavedPart
from ps.errors import MalformedFrame
from ps.layout import Layout
from ps.plan import Plan
from tests.ps.written import SPECS
from workers.config import TrainConfig

S0, S1 = ("server", 0), ("server", 1)
LAYOUT = Layout(SPECS, 2)


class Kept:
    """A keeper of two servers' parts, whose books know nothing but the best version."""

    def __init__(self, storage: Path, **checkpoint: Any) -> None:
        config = Config(
            task=TaskConfig(name="digits"),
            train=TrainConfig(batch_size=4),
            optimizer=OptimizerConfig(lr=0.1),
            scaling=ScalingConfig(num_workers=2, num_servers=2),
            checkpoint=CheckpointConfig(every_steps=2, **checkpoint),
            run=RunConfig(storage_path=str(storage), name="run"),
        )
        self.beginning: Beginning = begin(config, "digits")
        self.rundir = self.beginning.rundir
        self.said: list[str] = []
        self.best: int | None = None
        reader: Any = SimpleNamespace(layout=LAYOUT, model=(LAYOUT, Plan(4, 100)), initial_digests=np.zeros(len(LAYOUT), np.uint64))
        self.keeper = CheckpointKeeper(
            config, self.beginning, reader=lambda: reader, books=lambda version: Standing([], -1, 1.0, self.best), say=self.said.append
        )

    def part(self, sender: tuple[str, int], version: int) -> tuple[bytes, SavedPart]:
        shape, mine = shard_shape(LAYOUT, sender[1], 0), LAYOUT.shards[sender[1]]
        data = np.random.default_rng((version, sender[1])).integers(0, 255, shape.data_bytes, np.uint8)
        found = ShardData(data, mine, 0)
        header = shape.header(version)
        report = SavedPart(version, len(header) + len(data), found.digests().tolist(), found.state_digests().tolist())
        return header + data.tobytes(), report

    def bring(self, sender: tuple[str, int], version: int) -> None:
        data, report = self.part(sender, version)
        half = len(data) // 2
        self.keeper.deposit(sender, version, 0, data[:half])
        self.keeper.deposit(sender, version, half, data[half:])
        self.keeper.saved(sender, report)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_a_checkpoint_is_there_when_all_parts_are_and_can_be_read(kept: Kept) -> None:
    kept.bring(S1, 2)
    assert kept.rundir.checkpoints.versions() == []
    kept.bring(S0, 2)
    assert kept.rundir.checkpoints.versions() == [2]
    assert Checkpoint(kept.rundir.checkpoints.manifest(kept.rundir.checkpoints.whole(2))).version == 2
    assert kept.keeper.wait(0) and not kept.said


def test_parts_of_several_versions_may_come_at_once(kept: Kept) -> None:
    kept.bring(S0, 2)
    kept.bring(S0, 4)
    kept.bring(S1, 2)
    kept.bring(S1, 4)
    assert kept.rundir.checkpoints.versions() == [2, 4] and not kept.said


def test_a_part_that_will_not_come_gives_its_checkpoint_up_and_no_other(kept: Kept) -> None:
    kept.bring(S0, 2)
    kept.bring(S0, 4)
    kept.keeper.saved(S1, SavedPart(4, error="its disk is full"))
    kept.bring(S1, 2)
    assert kept.rundir.checkpoints.versions() == [2]
    assert kept.said == ["no checkpoint of step 4: server 1: its disk is full; there is none yet"]


def test_whoever_brings_a_later_part_brings_no_earlier_one(kept: Kept) -> None:
    kept.bring(S0, 2)
    kept.bring(S0, 4)
    kept.bring(S1, 4)
    kept.bring(S1, 2)
    assert kept.rundir.checkpoints.versions() == [4]
    assert kept.said == ["no checkpoint of step 2: server 1 has brought no part of it; there is none yet"]


def test_what_is_awaited_has_a_bound_and_an_end(kept: Kept) -> None:
    for version in range(2, 14, 2):
        kept.bring(S0, version)
    assert [line.split(":")[0] for line in kept.said] == ["no checkpoint of step 2", "no checkpoint of step 4"]
    kept.keeper.wait(0)
    assert len(kept.said) == 6 and kept.said[-1].startswith("no checkpoint of step 12: the run has ended before")


def test_the_newest_are_kept_and_the_best(tmp_path: Path) -> None:
    kept = Kept(tmp_path, num_to_keep=2)
    kept.best = 4
    for version in range(2, 14, 2):
        kept.bring(S0, version)
        kept.bring(S1, version)
    assert kept.rundir.checkpoints.versions() == [4, 10, 12]


def test_a_checkpoint_is_never_written_over(kept: Kept) -> None:
    folder = kept.rundir.checkpoints.whole(2)
    folder.mkdir()
    (folder / "theirs").touch()
    kept.bring(S0, 2)
    kept.bring(S1, 2)
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert kept.said[0].startswith(f"no checkpoint of step 2: {folder} exists")


def test_a_part_that_is_not_what_its_report_says_makes_no_checkpoint(kept: Kept) -> None:
    data, report = kept.part(S0, 2)
    kept.keeper.deposit(S0, 2, 0, data[:-1])
    kept.keeper.saved(S0, report)
    kept.bring(S1, 2)
    assert kept.rundir.checkpoints.versions() == [] and "shard-0.safetensors is not whole" in kept.said[0]
    few = replace(report, version=4, digests=report.digests[:-1])
    with pytest.raises(MalformedFrame, match="server 0 brings digests of another number of chunks"):
        kept.keeper.saved(S0, few)


@pytest.mark.parametrize(
    ("sender", "version", "offset", "size", "named"),
    [
        (S0, 3, 0, 10, "which is not due"),
        (("worker", 0), 2, 0, 10, "which is not due"),
        (S0, 2, 5, 10, "brings byte 5 of a part of a checkpoint of which there are"),
        (S0, 2, 0, 1 << 22, "brings more of a part of a checkpoint than that has"),
        (S0, 2, 1 << 60, 1, "brings more of a part of a checkpoint than that has"),
    ],
)
def test_bytes_that_do_not_belong_to_a_part_are_refused(
    kept: Kept, sender: tuple[str, int], version: int, offset: int, size: int, named: str
) -> None:
    kept.keeper.deposit(S0, 2, 0, b"beginning of the part")
    with pytest.raises(MalformedFrame, match=named):
        kept.keeper.deposit(sender, version, offset, bytes(size))


def test_a_folder_that_is_no_run_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "mine" / "checkpoints" / ".hidden").mkdir(parents=True)
    config = Config(
        task=TaskConfig(name="digits"), train=TrainConfig(batch_size=4), run=RunConfig(storage_path=str(tmp_path), name="mine", resume="auto")
    )
    with pytest.raises(Exception, match="mine exists"):
        begin(config, "digits")
    assert (tmp_path / "mine" / "checkpoints" / ".hidden").is_dir()
    new = begin(replace(config, run=replace(config.run, name=None)), "digits")
    assert new.checkpoint is None and new.generation == 1
