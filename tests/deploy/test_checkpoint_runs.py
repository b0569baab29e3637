"""What becomes of checkpoints when something goes wrong: disks, files, settings, processes."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from deploy.launch.base import ProcessKey
from deploy.measure.reader import LedgerWriter
from deploy.result import Result
from deploy.rundir import RunDirectory
from ps.errors import ConfigError, ProcessDied
from ps.ledger import WorkerRow, to_line
from tests.deploy.faults import S0, S1, W0, Faults, Point
from tests.deploy.forked import ForkedLauncher, trainer
from tests.deploy.killing import NOISY, OPTIMIZERS, bits_of, deaths_of, run, undisturbed

FAILS: dict[str, Any] = {"every_steps": 2, "num_to_keep": 3, "max_failures": 0, "name": "run"}


def failed(storage: Path, victim: ProcessKey, place: Point, **options: Any) -> Result:
    result = run(storage, "adam", Faults().kill(victim, place), **{**FAILS, **options})
    assert isinstance(result.error, ProcessDied), result.error
    return result


@pytest.fixture(scope="module")
def first_failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run has failed after its last checkpoints but one."""
    storage = tmp_path_factory.mktemp("failed")
    failed(storage, W0, ("worker.landed", 60))
    return storage


@pytest.fixture
def dead(first_failed: Path, tmp_path: Path) -> RunDirectory:
    """A copy of it, in the storage of the test."""
    shutil.copytree(first_failed, tmp_path, dirs_exist_ok=True)
    return RunDirectory(tmp_path / "run")


def log_of(result: Result) -> str:
    return (result.path / "logs" / "driver.log").read_text()


def resumed(storage: Path, **options: Any) -> Result:
    return run(storage, "adam", Faults(), **{**FAILS, "resume": "auto", **options})


def test_the_newest_ones_are_kept_and_the_best_and_nothing_half_done(tmp_path: Path) -> None:
    result = run(tmp_path, "adam", Faults(), every_epochs=1, num_to_keep=1, validate_every=2)
    rundir = RunDirectory(result.path)
    best = json.loads(rundir.summary.read_text())["best"]["version"]
    assert rundir.checkpoints.versions() == sorted({best, 12})
    assert [path.name for path in rundir.checkpoints.path.iterdir() if path.name.startswith(".")] == []


def test_a_full_disk_costs_checkpoints_and_files_but_no_step(tmp_path: Path) -> None:
    made = trainer(tmp_path, NOISY, batch_size=4, epochs=4, optimizer=OPTIMIZERS["adam"], every_steps=2, num_to_keep=9)

    def prepare(launcher: ForkedLauncher, rundir: RunDirectory) -> None:
        for folder in (rundir.checkpoints.unfinished(4, 1), rundir.checkpoints.unfinished(6, 1)):
            folder.mkdir()
            (folder / ".shard-0.safetensors").symlink_to("/dev/full")
        rundir.metrics.symlink_to("/dev/full")

    made.prepare = prepare  # type: ignore[method-assign]
    result = made.fit()
    log = log_of(result)
    full, busy = (
        {int(step) for step in re.findall(rf"no checkpoint of step (\d+): [^;]*{why}[^;]*; ", log)}
        for why in (re.escape("(No space left on device)"), "the one before is still being written")
    )
    assert full and full <= {4, 6} <= full | busy, "on a busy machine one may find the one before not written yet"
    assert "training goes on, but" in log
    assert RunDirectory(result.path).checkpoints.versions() == [step for step in (2, 8, 10, 12) if step not in busy]
    assert bits_of(result) == undisturbed("adam")
    assert len((result.path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_ledger_that_cannot_be_written_says_so_and_counts_on() -> None:
    writer = LedgerWriter(Path("/dev/full"), 1, 0)
    writer.add(("worker", 0), [to_line(WorkerRow(rank=0, step=0, time_s=0.0, step_s=0.1))])
    assert writer.defect == "/dev/full ends before step 0: No space left on device"
    writer.add(("worker", 0), [to_line(WorkerRow(rank=0, step=1, time_s=0.0, step_s=0.1))])
    assert writer.close().num_steps == 2


def test_a_damaged_checkpoint_is_named_put_aside_and_the_one_before_it_used(dead: RunDirectory, tmp_path: Path) -> None:
    *_, before, newest = dead.checkpoints.versions()
    part = dead.checkpoints.whole(newest) / dead.checkpoints.part_name("server", 1)
    part.write_bytes(part.read_bytes()[:-1])
    result = resumed(tmp_path)
    log = log_of(result)
    assert f"{part} has " in log and f"the checkpoint of step {newest} is not used" in log
    assert f"resumed from step {before}, generation 2" in log
    assert bits_of(result) == undisturbed("adam")
    assert (dead.checkpoints.path / f"{newest}.damaged-1").is_dir()


def test_without_any_good_checkpoint_the_run_begins_anew_in_its_directory(dead: RunDirectory, tmp_path: Path) -> None:
    for version in dead.checkpoints.versions():
        dead.checkpoints.manifest(dead.checkpoints.whole(version)).unlink()
    result = resumed(tmp_path)
    assert "resumed from step 0: there is no checkpoint that can be used, generation 2" in log_of(result)
    assert bits_of(result) == undisturbed("adam")
    assert [json.loads(line)["step"] for line in (result.path / "comm.jsonl").read_text().splitlines()] == list(range(12))


def test_other_settings_are_refused_with_the_difference_unless_they_are_allowed(tmp_path: Path) -> None:
    options = {"batch_size": None, "global_batch_size": 8}
    failed(tmp_path, W0, ("worker.landed", 60), **options)
    with pytest.raises(ConfigError, match=r"train.seed: 0 -> 1\n.*--allow-drift"):
        resumed(tmp_path, **options, seed=1)
    with pytest.raises(ConfigError, match="scaling.num_workers: 2 -> 3\n"):
        resumed(tmp_path, **options, num_workers=3)
    result = resumed(tmp_path, **options, num_workers=3, allow_drift=True)
    assert result.error is None
    assert "warning: not the bits of an undisturbed run from step" in log_of(result)


def test_a_run_that_has_finished_is_not_resumed_and_one_that_was_never_begun_begins(tmp_path: Path) -> None:
    assert resumed(tmp_path).error is None
    with pytest.raises(ConfigError, match="run has finished: there is nothing to resume"):
        resumed(tmp_path)
    with pytest.raises(ConfigError, match="has finished"):
        resumed(tmp_path, name=None)


def test_a_server_killed_while_it_cuts_costs_a_checkpoint_and_no_bit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        result = run(tmp_path, "adam", Faults().kill(S0, ("shard.cut", 3)).kill(S1, ("checkpoint.written", 2)), every_steps=2, num_to_keep=9)
    assert bits_of(result) == undisturbed("adam")
    assert deaths_of(result) == ["server 0", "server 1"]
    kept = RunDirectory(result.path).checkpoints.versions()
    lost = sorted(set(range(2, 13, 2)) - set(kept))
    assert lost and all(f"no checkpoint of step {version}: " in log_of(result) for version in lost)


def test_servers_killed_while_they_are_given_a_checkpoint_get_it_again(dead: RunDirectory, tmp_path: Path) -> None:
    faults = Faults().kill(S0, ("store.restored", 1)).kill(S1, ("shard.made", 1), ("store.restored", 1))
    result = run(tmp_path, "adam", faults, **{**FAILS, "max_failures": None, "resume": "auto"})
    assert deaths_of(result) == ["server 0", "server 1", "server 1"]
    assert bits_of(result) == undisturbed("adam")
