"""Every file of examples/ trains, by the name under which the documents show it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.config import load
from ps.config import Timeouts
from tests.deploy.conftest import Ended
from tests.deploy.forked import ForkedTrainer
from tests.workers.idx_files import write_pictures

EXAMPLES = Path("examples")
SHORT = {
    "digits": ["train.epochs=6"],
    "fashion-mnist": ["train.epochs=8", "train.batch_size=8", "schedule.warmup_steps=4"],
    "own-loop": ["train.epochs=4"],
    "shakespeare": [
        *("task.plays=nowhere", "task.made_up=6000", "task.layers=2", "task.width=24", "task.heads=2", "task.context=16"),
        *("train.epochs=3", "train.validate_every=1000", "pipeline.micro_batches=2", "schedule.warmup_steps=4", "optimizer.lr=0.01"),
    ],
}
"""What makes each of them short; fashion-mnist learns from 96 pictures, and shakespeare from a text that nobody wrote."""
LEARNT: dict[str, Callable[[dict[str, float]], bool]] = {
    "digits": lambda metrics: metrics["validation_accuracy"] > 0.7,
    "fashion-mnist": lambda metrics: metrics["validation_accuracy"] > 0.7,
    "own-loop": lambda metrics: metrics["accuracy"] > 0.7,
    "shakespeare": lambda metrics: metrics["validation_loss"] < 2.5,  # 4.56 knows nothing, 2.83 how often each letter comes
}


@pytest.mark.parametrize("name", SHORT)
def test_an_example_learns(name: str, tmp_path: Path) -> None:
    pictures = [f"task.data_dir={write_pictures(tmp_path / 'pictures')}"] if name == "fashion-mnist" else []
    config = load(EXAMPLES / f"{name}.toml", [*SHORT[name], *pictures, f"run.storage_path={tmp_path}/runs"])
    result = ForkedTrainer.from_config(config, quiet=True, timeouts=Timeouts(heartbeat_s=0.2)).fit()
    assert result.error is None
    assert LEARNT[name](result.metrics)
    if name == "shakespeare":
        command = [sys.executable, "examples/shakespeare/sample.py", str(result.path), "--length", "30", "--prompt", "So"]
        said = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."}).stdout
        assert said.startswith("So") and len(said) == 2 + 30 + 1


def test_every_example_has_its_test() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.toml")} == SHORT.keys()


def test_the_own_task_trains_by_the_readmes_command(tmp_path: Path, pserver: Callable[..., Ended]) -> None:
    command = 'run examples/digits.toml --set task.name="examples/own_task.py:Rings"'
    assert f"pserver {command}".replace("examples/digits.toml --set ", "CONFIG.toml --set '") + "'" in Path("README.md").read_text()
    few = ("--set", "train.epochs=4", "--servers", "1", "--set", f"run.storage_path={tmp_path}")
    ended = pserver(*command.split(), "--launcher", "process", "--json", *few)
    assert ended.code == 0, ended.err
    metrics = json.loads(ended.out)["metrics"]
    assert metrics["validation_loss"] < 0.1
