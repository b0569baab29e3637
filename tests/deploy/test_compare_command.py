"""`pserver compare` by command, and on Ray."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.compare import MIN_STEPS, compare
from deploy.config import Config, ScalingConfig, TaskConfig
from deploy.launch.choice import make_launcher
from tests.deploy.conftest import Ended
from workers.config import TrainConfig


def test_ray_compares_too(ray_cluster: str) -> None:
    config = Config(task=TaskConfig(name="digits"), train=TrainConfig(batch_size=8), scaling=ScalingConfig(num_workers=2, num_servers=1))
    found = compare(config, lambda *made: make_launcher("ray", *made[:2], "digits", address=None, say=made[2].line), num_steps=MIN_STEPS)
    assert found.losses_agree


def test_json_is_all_on_stdout_and_no_directory_is_left(tmp_path: Path, pserver: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "job.toml").write_text('[task]\nname = "digits"\n[train]\nbatch_size = 8\n')
    ended = pserver("compare", "job.toml", "--launcher", "process", "--steps", str(MIN_STEPS), "--workers", "1", "--servers", "1", "--json")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    assert found["losses_agree"] and found["ratio"] == found["ours"]["step_s"] / found["ddp"]["step_s"]
    assert not list(tmp_path.glob("pserver*")) and not (tmp_path / "runs").exists()
