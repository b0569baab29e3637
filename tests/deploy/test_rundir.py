"""The run directory: names, whole writes, export; and the summary."""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deploy.cli.verbs import in_words
from deploy.files import append_line, write_atomic
from deploy.result import Summary, versions
from deploy.rundir import RunDirectory, generated_name
from ps.credentials import Credentials
from ps.errors import ConfigError


def started(storage: Path, name: str, at: int) -> RunDirectory:
    run = RunDirectory.create(storage, name, "digits")
    run.write_config("")
    os.utime(run.config, (at, at))
    return run


def test_a_new_run_has_its_folders_and_nothing_else(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "deep" / "runs", "first", "digits")
    assert run.path == tmp_path / "deep" / "runs" / "first"
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "logs", "weights"]
    assert run.process_log("worker", 3) == run.path / "logs" / "worker-3.log"


def test_a_generated_name_tells_time_and_task() -> None:
    now = datetime(2026, 11, 23, 20, 44, 5)
    assert generated_name("digits", now) == "20261123-204405-digits"
    assert generated_name("some/where.py:My.Task", now) == "20261123-204405-My-Task"


def test_runs_of_the_same_second_get_different_names(tmp_path: Path) -> None:
    assert len({RunDirectory.create(tmp_path, None, "digits").path for _ in range(3)}) == 3


def test_an_existing_name_is_refused_and_untouched(tmp_path: Path) -> None:
    run = started(tmp_path, "first", at=1)
    with pytest.raises(ConfigError, match=r"first exists: choose another run\.name"):
        RunDirectory.create(tmp_path, "first", "digits")
    assert run.exists()


def test_a_storage_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="choose another"):
        RunDirectory.create(tmp_path / "file" / "runs", None, "digits")


def test_run_means_a_directory_a_name_or_the_newest(tmp_path: Path) -> None:
    old, new = started(tmp_path, "z-old", at=1), started(tmp_path, "a-new", at=2)
    (tmp_path / "no-run").mkdir()
    assert RunDirectory.open(None, tmp_path).path == new.path
    assert RunDirectory.open("z-old", tmp_path).path == old.path
    assert RunDirectory.open(old.path).path == old.path


def test_a_run_that_is_not_there_is_led_to_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run under"):
        RunDirectory.open(None, tmp_path)
    started(tmp_path, "first", at=1)
    with pytest.raises(ConfigError, match=r"frist is no run: did you mean first\?"):
        RunDirectory.open("frist", tmp_path)


def test_a_summary_is_replaced_as_a_whole(tmp_path: Path) -> None:
    run = started(tmp_path, "first", at=1)
    run.write_summary(Summary(name="first", status="failed", error="x").to_dict())
    with pytest.raises(TypeError):
        run.write_summary({"metrics": object()})
    assert json.loads(run.summary.read_text())["status"] == "failed"


def test_a_write_that_fails_leaves_the_old_bytes_and_no_trace(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_atomic(tmp_path / "taken", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_metrics_are_one_line_each(tmp_path: Path) -> None:
    run = started(tmp_path, "first", at=1)
    for epoch in (1, 2):
        run.append_metrics({"epoch": epoch, "train_loss": 0.5})
    assert [json.loads(line)["epoch"] for line in run.metrics.read_text().splitlines()] == [1, 2]


def test_exported_weights_load_into_plain_torch(tmp_path: Path) -> None:
    run, model, other = started(tmp_path, "first", at=1), nn.Linear(3, 2), nn.Linear(3, 2)
    save_file(model.state_dict(), run.weights("last"))
    run.export(tmp_path / "model.safetensors", "last")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(model.weight, other.weight)


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    run = started(tmp_path, "first", at=1)
    with pytest.raises(ConfigError, match="no last weights: it ended before it wrote any"):
        run.export(tmp_path / "model.safetensors", "last")
    save_file({"w": torch.zeros(1)}, run.weights("last"))
    with pytest.raises(ConfigError, match="no best weights: it has the last ones"):
        run.export(tmp_path / "model.safetensors", "best")
    with pytest.raises(ConfigError, match="cannot be written"):
        run.export(tmp_path / "nowhere" / "model.safetensors", "last")


def test_every_key_of_a_summary_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "run-directory.md").read_text()
    assert [field.name for field in fields(Summary) if f"`{field.name}`" not in page] == []


def test_versions_name_the_libraries_without_importing_them() -> None:
    assert {"python", "pserver", "torch", "ray", "grpcio"} <= versions().keys()
    assert versions()["torch"] == torch.__version__


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:20], lambda data: b"", lambda data: data + b"x"])
def test_damaged_weights_are_not_exported(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    run = started(tmp_path, "first", at=1)
    save_file({"w": torch.zeros(5)}, run.weights("last"))
    run.weights("last").write_bytes(damage(run.weights("last").read_bytes()))
    with pytest.raises(ConfigError, match="last.safetensors is damaged"):
        run.export(tmp_path / "model.safetensors", "last")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_control_file_is_read_back_and_what_is_none_is_named(tmp_path: Path) -> None:
    run, mine = started(tmp_path, "first", at=1), Credentials(run_id="r", token="reader:1")
    run.write_control("host:1", mine)
    assert run.read_control() == ("host:1", mine)
    whole = run.control.read_text()
    for text in ("", whole[:-1], "[]", "[" * 100_000, '{"address": 3, "credentials": {}}'):
        run.control.write_text(text)
        with pytest.raises(ConfigError, match="is not what the run's driver has written"):
            run.read_control()
    run.control.chmod(0o644)
    with pytest.raises(ConfigError, match="others on this host can read it"):
        run.read_control()


def test_a_driver_that_has_ended_without_a_summary_is_known_to_be_lost_on_its_host_only(tmp_path: Path, dead_pid: int) -> None:
    run = RunDirectory.create(tmp_path, "run", "digits")
    assert not run.has_lost_its_driver(), "nobody has begun"
    run.lock()
    assert not run.has_lost_its_driver(), "it goes on"
    lock, here = run.path / ".lock", socket.gethostname()
    for text, lost in ((f"{dead_pid} on {here}", True), (f"{dead_pid} on elsewhere", False), ("", False)):
        lock.write_text(text)
        assert run.has_lost_its_driver() == lost
        if lost:
            with pytest.raises(ConfigError, match="run is not going on: its driver was killed; see "):
                run.read_control()
    lock.write_text(f"{dead_pid} on {here}")
    run.write_summary({})
    assert not run.has_lost_its_driver(), "it has ended as it should"
    run.unlock()


def test_a_disk_without_room_is_named_by_file_with_what_to_do(tmp_path: Path) -> None:
    full = tmp_path / "metrics.jsonl"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        append_line(full, {"loss": 1.0})
    assert in_words(caught.value) == f"{full} cannot be written: No space left on device: free space there, or choose another run.storage_path"
