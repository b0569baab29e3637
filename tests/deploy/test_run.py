"""Whole runs: the same bits however they are run, and what a stranger does with the command."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deploy.config import RunConfig, ScalingConfig
from deploy.result import Result
from ps.config import OptimizerConfig
from tests.deploy.conftest import Ended
from tests.deploy.forked import train
from tests.deploy.test_secrets import WatchedTrainer, found_in
from workers.config import TrainConfig
from workers.tasks.digits import Digits

SIZES: dict[str, Any] = {"epochs": 2, "batch_size": 64, "seed": 3}
MOMENTUM = OptimizerConfig(name="sgd", lr=0.1, momentum=0.9)
PSERVER = [sys.executable, "-c", "from deploy.cli.main import main; main()"]
JOB = """
[task]
name = "digits"
hidden = 96
[train]
epochs = 2
batch_size = 64
seed = 3
[optimizer]
name = "sgd"
lr = 0.1
momentum = 0.9
[scaling]
num_servers = 1
"""


def sha_of(result: Result) -> str:
    assert result.error is None
    return str(json.loads((result.path / "summary.json").read_text())["params_sha256"])


def run_of(storage: Path, **options: Any) -> Result:
    return train(storage, "digits", {"hidden": 96}, **{**SIZES, "optimizer": MOMENTUM, **options})


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Two workers, two servers."""
    return run_of(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="session")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """The same run by the command, with plain processes and one server, in a folder of its own; `args` holds that folder."""
    folder = tmp_path_factory.mktemp("commanded")
    (folder / "job.toml").write_text(JOB)
    ended = subprocess.run(
        [*PSERVER, "run", "job.toml", "--launcher", "process", "--json"], cwd=folder, env=environment(), capture_output=True, text=True, timeout=100
    )
    ended.args = folder
    return ended


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.getcwd()}


@pytest.mark.parametrize("options", [{"num_servers": 4}, {"num_servers": 1, "frame_bytes": 4096, "window_frames": 1}], ids=str)
def test_neither_the_number_of_servers_nor_the_length_of_frames_changes_a_bit(options: dict[str, int], reference: Result, tmp_path: Path) -> None:
    assert sha_of(run_of(tmp_path, **options)) == sha_of(reference)


def test_another_seed_has_other_bits(reference: Result, tmp_path: Path) -> None:
    assert sha_of(run_of(tmp_path, seed=4)) != sha_of(reference)


def test_ray_has_the_same_bits_with_ranks_split_over_stages_too_and_shows_no_secret(reference: Result, tmp_path: Path, ray_session: Path) -> None:
    """Secrets travel as arguments of a method; nothing of them is in its processes and logs."""
    made = WatchedTrainer(
        Digits(hidden=96),
        train_config=TrainConfig(**SIZES),
        optimizer=MOMENTUM,
        scaling_config=ScalingConfig(num_workers=2, num_stages=2, num_servers=1),
        run_config=RunConfig(storage_path=str(tmp_path)),
        launcher="ray",
        quiet=True,
    )
    made.beside = ray_session / "logs"
    result = made.fit()
    assert sha_of(result) == sha_of(reference)
    secrets = made.launcher.secrets
    assert len(secrets) == 6 and made.launcher.leaks == [] and len(made.launcher.looked_at) > 10
    assert list(found_in(tmp_path, secrets)) == list(found_in(ray_session, secrets)) == []
    assert any((ray_session / "logs").glob("worker-*")), "logs are looked at"


def test_plain_processes_have_the_same_bits_and_json_is_all_on_stdout(reference: Result, commanded: subprocess.CompletedProcess[str]) -> None:
    assert (commanded.returncode, commanded.stderr) == (0, "")
    summary = json.loads(commanded.stdout)
    assert summary["params_sha256"] == sha_of(reference)
    assert summary["status"] == "finished"
    assert (Path(commanded.args) / "runs" / summary["name"] / "summary.json").read_text() == commanded.stdout


def test_exported_weights_work_in_plain_torch(
    commanded: subprocess.CompletedProcess[str], pserver: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(commanded.args)
    monkeypatch.chdir(folder)
    ended = pserver("export", "model.safetensors")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("model.safetensors: the last weights of runs/")
    task = Digits(hidden=96)
    model = task.model()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        data = task.validation_data()
        right = task.metrics(model, data.tensors)["accuracy"]
    assert right / len(data) == pytest.approx(json.loads(commanded.stdout)["metrics"]["validation_accuracy"])
    assert right / len(data) > 0.5
