"""Callbacks are told a run's metrics; neither a slow one nor one that fails holds up the run."""

import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deploy import callbacks as callbacks_module
from deploy.callbacks import Callbacks, comm_metrics, load_callbacks, tensorboard
from deploy.config import Config, RunConfig, TaskConfig
from deploy.measure.window import SPANS, Window
from ps.config import Timeouts
from ps.errors import ConfigError
from tests.deploy.forked import ForkedTrainer
from tests.deploy.ledgers import step_of
from workers.config import TrainConfig

WRITER = """
def make(run):
    def write(metrics, step):
        with (run / "told").open("a") as file:
            file.write(f"{step} {sorted(metrics)}\\n")
    return write
def broken(run):
    def write(metrics, step):
        raise RuntimeError("no such project")
    return write
"""


def told(callback: Callable[[dict[str, float], int], None], *calls: tuple[dict[str, float], int]) -> None:
    callbacks = Callbacks([("one", callback)])
    for metrics, step in calls:
        callbacks.tell(metrics, step)
    callbacks.close()


def test_a_run_tells_its_epochs_and_its_mean_step_though_another_callback_fails(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(WRITER)
    names = (f"{tmp_path}/mine.py:broken", f"{tmp_path}/mine.py:make")
    config = Config(
        task=TaskConfig(name="digits"),
        train=TrainConfig(batch_size=128, epochs=2),
        run=RunConfig(storage_path=str(tmp_path), callbacks=names),
    )
    result = ForkedTrainer.from_config(config, quiet=True, timeouts=Timeouts(heartbeat_s=0.2)).fit()
    assert result.error is None
    lines = (result.path / "told").read_text().splitlines()
    epochs = [line for line in lines if "train_loss" in line]
    assert [int(line.split()[0]) for line in epochs] == [row["step"] for row in result.history]
    assert "'validation_accuracy'" in epochs[0]
    assert any("'comm/exposed_share'" in line and "'comm/receive_s'" in line for line in lines)
    log = (result.path / "logs" / "driver.log").read_text()
    assert log.count("mine.py:broken fails and is told nothing more") == 1 and "RuntimeError: no such project" in log


def test_calls_come_in_order_each_with_metrics_of_its_own() -> None:
    found: list[tuple[dict[str, float], int]] = []

    def keep(metrics: dict[str, float], step: int) -> None:
        found.append((dict(metrics), step))
        metrics.clear()

    same = {"loss": 1.0}
    told(keep, (same, 1), ({}, 2), (same, 3))
    assert found == [({"loss": 1.0}, 1), ({"loss": 1.0}, 3)]


def test_a_slow_callback_holds_up_nobody(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(callbacks_module, "MAX_WAITING", 2)
    go_on, begun, found = threading.Event(), threading.Event(), []

    def slow(metrics: dict[str, float], step: int) -> None:
        begun.set()
        go_on.wait()
        found.append(step)

    callbacks = Callbacks([("slow", slow)])
    with caplog.at_level(logging.WARNING):
        callbacks.tell({"loss": 1.0}, 0)
        assert begun.wait(10)
        for step in range(1, 6):
            callbacks.tell({"loss": 1.0}, step)
        callbacks.close(timeout_s=0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "callbacks are 2 calls behind: metrics are left out",
        "callbacks have not ended within 0.01 s: their last metrics may be missing",
    ]
    go_on.set()
    callbacks._thread.join(10)
    assert found == [0, 1, 2]


def test_the_mean_step_of_a_window_has_all_spans() -> None:
    window = Window()
    assert comm_metrics(window) == {}
    window.add(0, step_of(0).rows)
    metrics = comm_metrics(window)
    assert metrics["comm/step_s"] == pytest.approx(0.1)
    assert metrics["comm/samples_per_s"] == pytest.approx(640.0)
    assert sum(metrics[f"comm/{span}"] for span in SPANS) == pytest.approx(0.1)


def test_tensorboard_reads_what_it_is_told(tmp_path: Path) -> None:
    told(tensorboard(tmp_path), ({"train_loss": 2.0, "comm/step_s": 0.1}, 5), ({"train_loss": 1.0}, 10))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(5, 2.0), (10, 1.0)]
    assert events.Tags()["scalars"] == ["train_loss", "comm/step_s"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("tensorbord", "run.callbacks = 'tensorbord' names nothing", id="no name"),
        pytest.param("math:pi", "run.callbacks = 'math:pi' is float: name a function", id="no function"),
        pytest.param("math:sinus", "no sinus in math", id="not there"),
    ],
)
def test_a_name_of_nothing_is_refused_before_there_is_a_run_directory(name: str, message: str, tmp_path: Path) -> None:
    config = Config(task=TaskConfig(name="digits"), train=TrainConfig(batch_size=8), run=RunConfig(storage_path=str(tmp_path), callbacks=(name,)))
    with pytest.raises(ConfigError, match=message):
        ForkedTrainer.from_config(config, quiet=True).fit()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_that_is_not_installed_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install pserver\[tensorboard\]"):
        load_callbacks(["tensorboard"])


@pytest.mark.parametrize("library", ["wandb", "mlflow"])
def test_the_examples_of_other_tools_pass_everything_on(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[dict[str, Any], int]] = []
    module = ModuleType(library)
    stand_in: dict[str, Any] = {
        "wandb": {"init": lambda project, name: SimpleNamespace(log=lambda row: found.append((row, row.pop("step"))))},
        "mlflow": {
            "start_run": lambda run_name: SimpleNamespace(info=SimpleNamespace(run_id=run_name)),
            "log_metrics": lambda metrics, step, run_id: found.append((metrics, step)),
        },
    }
    vars(module).update(stand_in[library])
    monkeypatch.setitem(sys.modules, library, module)
    (make,) = load_callbacks([f"examples/callbacks/{library}_callback.py:make"])
    told(make(tmp_path), ({"loss": 1.0}, 7))
    assert found == [({"loss": 1.0}, 7)]


def test_callbacks_come_back_from_the_config_that_a_run_leaves(tmp_path: Path) -> None:
    from deploy.config import load, to_toml

    config = Config(task=TaskConfig(name="digits"), train=TrainConfig(batch_size=8), run=RunConfig(callbacks=("tensorboard",)))
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config))
    assert load(file, []).run == replace(config.run)
