"""Decisions in whole runs: early stopping, the plateau and validation in mid-epoch, from metrics to the last weights."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from deploy.books import means
from deploy.config import Config, TaskConfig
from deploy.console import Console
from ps.config import OptimizerConfig
from ps.control import Epoch
from ps.decisions import Decider, EarlyStoppingConfig, PlateauConfig
from ps.errors import ConfigError, EarlyPush
from ps.plan import Plan
from tests.deploy.leftovers import nothing_left
from tests.deploy.own_loops import HERE, fit
from tests.ps.bench import Bench, settings, specs_of
from workers.config import TrainConfig
from workers.context import for_any_process
from workers.data import TensorData
from workers.sampler import BatchPlan
from workers.task import Task


@dataclass(frozen=True)
class Overfits(Task):
    """Pulls a weight from 0 to 1; the validation data would have it at 0.5, so its loss falls and rises again."""

    bounces: bool = False
    """Trains to 0.5 as well: the loss falls, and then stands still."""

    def model(self) -> nn.Module:
        model = nn.Linear(4, 1, bias=False)
        nn.init.zeros_(model.weight)
        return model

    def train_data(self) -> TensorData:
        x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
        noise = torch.randn(20, generator=torch.Generator().manual_seed(2)) if self.bounces else 0.0
        return TensorData(x, x.sum(1) * (0.5 if self.bounces else 1.0) + noise)

    def validation_data(self) -> TensorData:
        x = torch.randn(9, 4, generator=torch.Generator().manual_seed(3))
        return TensorData(x, x.sum(1) * 0.5)

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return functional.mse_loss(model(x).squeeze(1), y)

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, float]:
        x, y = batch
        return {"score": -float((model(x).squeeze(1) - y).abs().sum())}


SLOW = OptimizerConfig(name="sgd", lr=0.02)
TRAIN = {"global_batch_size": 4, "epochs": 30, "seed": 1}


def outcome(result: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    assert result.error is None, result.error
    summary: dict[str, Any] = json.loads((result.path / "summary.json").read_text())
    return summary, [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("early", "sign"),
    [
        (EarlyStoppingConfig(patience=2), 1.0),
        (EarlyStoppingConfig(metric="validation_score", mode="max", patience=3, min_delta=0.05), -1.0),
    ],
)
def test_a_run_that_stops_early_ends_with_the_best_epochs_weights(early: EarlyStoppingConfig, sign: float, tmp_path: Path) -> None:
    with nothing_left():
        result = fit(tmp_path, Overfits(), train=TRAIN, optimizer=SLOW, early_stopping=early)
    summary, rows = outcome(result)
    best, since = _best_by_hand(rows, early, sign)
    assert since == early.patience and 1 < len(rows) < 30
    assert (summary["stopped_early"], summary["restored_version"], summary["best"]["version"]) == (True, best["step"], best["step"])
    assert (summary["steps"], summary["epochs"]) == (rows[-1]["step"], rows[-1]["epoch"])
    last, kept = (load_file(result.path / "weights" / f"{which}.safetensors") for which in ("last", "best"))
    assert all(torch.equal(last[name], kept[name]) for name in kept)
    again, _ = outcome(fit(tmp_path, Overfits(), train={**TRAIN, "max_steps": best["step"]}, optimizer=SLOW, num_servers=1))
    assert again["params_sha256"] == summary["params_sha256"], "the best epoch's own bits"
    assert (again["stopped_early"], again["restored_version"]) == (False, None)
    assert "stopping early; the best is version" in (result.path / "logs" / "driver.log").read_text()


def _best_by_hand(rows: list[dict[str, Any]], early: EarlyStoppingConfig, sign: float) -> tuple[dict[str, Any], int]:
    """The best row, and how many came after it."""
    name = early.metric or "validation_loss"
    best = rows[0]
    for row in rows:
        if sign * (best[name] - row[name]) > early.min_delta:
            best = row
    return best, len(rows) - 1 - rows.index(best)


def test_the_plateau_lowers_the_rate_as_torch_does_from_the_step_it_holds_for(tmp_path: Path) -> None:
    train = {"global_batch_size": 6, "epochs": 8, "seed": 2, "dtype": "float64", "validate_every": 3, "validate_unit": "step"}
    plateau = PlateauConfig(patience=1, factor=0.5, threshold=1e-3)
    optimizer = OptimizerConfig(name="sgd", lr=0.25, momentum=0.5)
    result = fit(tmp_path, Overfits(bounces=True), train=train, optimizer=optimizer, plateau=plateau)
    _, rows = outcome(result)
    wanted, losses, rates = _plain(TrainConfig(**train), reduces=True)
    constant, _, _ = _plain(TrainConfig(**train), reduces=False)
    found = load_file(result.path / "weights" / "last.safetensors")["weight"]
    validated = [row for row in rows if "validation_loss" in row]
    assert [row["step"] for row in validated] == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 32]
    assert max(abs(row["validation_loss"] - loss) for row, loss in zip(validated, losses, strict=True)) <= 1e-10
    assert float((found - wanted).abs().max()) <= 1e-10
    assert rates[-1] <= 0.25 / 4 and float((constant - wanted).abs().max()) > 1e-6, "the rate has fallen twice, and that matters"
    assert [row["step"] for row in rows if row not in validated] == [4, 8, 16, 20, 28], "ends of epochs without validation"


def _plain(config: TrainConfig, *, reduces: bool) -> tuple[torch.Tensor, list[float], list[float]]:
    """The weight, the validation losses and the rates of a loop of plain torch."""
    task = Overfits(bounces=True)
    model, data = task.model().double(), task.train_data()
    batches = BatchPlan.from_config(config, 1, len(data))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, threshold=1e-3, eps=0.0)
    losses, rates = [], []
    steps = batches.steps_per_epoch() * config.epochs
    for step in range(steps):
        optimizer.zero_grad()
        task.loss(model, tuple(t.double() for t in data.batch(batches.global_indices(step)))).backward()
        optimizer.step()
        if (step + 1) % config.validate_every == 0 or step + 1 == steps:
            with torch.no_grad():
                losses.append(float(task.loss(model, tuple(t.double() for t in task.validation_data().tensors))))
            if reduces:
                scheduler.step(losses[-1])
        rates.append(optimizer.param_groups[0]["lr"])
    return model.weight.detach(), losses, rates


def test_validation_every_second_epoch_and_at_the_end(tmp_path: Path) -> None:
    train = {**TRAIN, "epochs": 3, "validate_every": 2}
    summary, rows = outcome(fit(tmp_path, Overfits(), train=train, optimizer=SLOW))
    assert [(row["epoch"], "validation_loss" in row) for row in rows] == [(1, False), (2, True), (3, True)]
    assert summary["best"]["version"] in (10, 15)


def test_the_training_loss_in_mid_epoch_is_the_mean_of_the_epoch_so_far(tmp_path: Path) -> None:
    still = OptimizerConfig(name="sgd", lr=1e-30)  # the weights stay where they are
    train = {**TRAIN, "epochs": 2, "validate_every": 2, "validate_unit": "step"}
    _, rows = outcome(fit(tmp_path, Overfits(), train=train, optimizer=still))
    losses = []
    data, batches = Overfits().train_data(), BatchPlan(20, 2, 4, 1, 1)
    for step in range(10):
        losses.append(float(data.batch(batches.global_indices(step))[1].square().mean()))
    for row in rows:
        start = (row["step"] - 1) // 5 * 5
        assert row["train_loss"] == pytest.approx(sum(losses[start : row["step"]]) / (row["step"] - start), rel=1e-5)
    assert [row["step"] for row in rows] == [2, 4, 5, 6, 8, 10]


def test_an_own_loop_stops_early_by_its_own_metric(tmp_path: Path) -> None:
    early = EarlyStoppingConfig(metric="hill", mode="max", patience=2)
    summary, rows = outcome(fit(tmp_path, f"{HERE}:hill", train={"batch_size": 1, "max_steps": 50}, early_stopping=early))
    assert [row["hill"] for row in rows] == [-9.0, -4.0, -1.0, 0.0, -1.0, -4.0]
    assert (summary["steps"], summary["restored_version"], summary["stopped_early"]) == (6, 4, True)
    assert "train_loss" not in rows[0]


# -- in the small --------------------------------------------------------------------------------------------------


def test_an_own_loop_in_which_nothing_counts_is_told_so(tmp_path: Path) -> None:
    result = fit(tmp_path, f"{HERE}:idle", train={"batch_size": 1, "max_steps": 4})
    assert isinstance(result.error, ConfigError)
    assert str(result.error).startswith("opt.step was called with weight=0 on every worker in 4 steps: nothing is learned")


def test_no_shard_takes_a_push_of_a_step_before_the_decision_for_it() -> None:
    plan = Plan(steps_per_epoch=2, total_steps=4)
    made = Bench(specs_of(3), settings(1, control_address="127.0.0.1:1"), plan=plan)
    made.init(made.flat(1.0))
    made.push_all(0, 0, made.flat(1.0))
    made.push_all(0, 1, made.flat(1.0))
    with pytest.raises(EarlyPush, match="before the driver's decision for it"):
        made.push_all(0, 2, made.flat(1.0))
    assert made.store.version == 2
    with pytest.raises(EarlyPush, match="a decision for version 4 reached shard 0 at version 2"):
        made.shard.decide(4, 1.0)
    made.shard.decide(2, 0.5)
    made.push_all(0, 2, made.flat(1.0))
    assert made.store.version == 3


def test_a_decided_rate_holds_from_its_step_on_and_a_repeated_decision_changes_nothing() -> None:
    made = Bench(specs_of(3), settings(1, control_address="127.0.0.1:1", optimizer=OptimizerConfig(lr=0.5)), plan=Plan(1, 4))
    made.init(made.flat(1.0))
    values = []
    for step, factor in enumerate((1.0, 0.5, 0.25)):
        if step:
            made.shard.decide(step, factor)
            made.shard.decide(step, 99.0)
        made.push_all(0, step, made.flat(1.0))
        values.append(float(made.values()[0][0]))
    assert values == [0.5, 0.25, 0.125]


def test_a_line_of_the_console_in_mid_epoch_says_its_step() -> None:
    text = io.StringIO()
    with Console(False, False, file=text) as console:
        console.start(20, 4)
        console.epoch(2, {"validation_loss": 0.5}, mid_epoch_step=7)
        console.epoch(2, {"validation_loss": 0.25})
    assert text.getvalue().splitlines() == ["epoch 2/4, step 7 | validation_loss 0.5", "epoch 2/4 | validation_loss 0.25"]


def test_a_loss_of_nothing_is_a_loss_and_an_own_loop_has_none() -> None:
    training = {"loss": 0.0, "weight": 4.0, "samples": 4.0, "steps": 1.0}
    assert means(Epoch(1, training, {})) == {"train_loss": 0.0}
    assert means(Epoch(1, training, {"user.a.b": 3.0, "weight.a.b": 2.0}), own_loop=True) == {"a.b": 1.5}


def test_an_own_loop_that_does_not_choose_a_metric_has_no_best() -> None:
    assert not Decider(EarlyStoppingConfig(), PlateauConfig()).decide(1, {"accuracy": 1.0}, validated=True).is_best
    with pytest.raises(ConfigError, match="early_stopping.patience needs early_stopping.metric, one of: accuracy"):
        Decider(EarlyStoppingConfig(patience=1), PlateauConfig()).decide(1, {"accuracy": 1.0}, validated=True)


def test_workers_may_have_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train = for_any_process(TrainConfig(batch_size=1, loop="code/mine.py:train", init="start.safetensors"))
    assert (train.loop, train.init) == (f"{tmp_path}/code/mine.py:train", f"{tmp_path}/start.safetensors")
    assert for_any_process(TrainConfig(batch_size=1, loop="mine:train")).loop == "mine:train"


@pytest.mark.parametrize(
    "key", [{"dtype": "float64"}, {"data_workers": 2}, {"validate_every": 3}, {"validate_unit": "step"}, {"autocast": "bfloat16"}]
)
def test_keys_that_only_tasks_read_are_refused_with_an_own_loop(key: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"train.{next(iter(key))} is for tasks"):
        TrainConfig(batch_size=1, loop="mine:train", **key)


def test_a_loop_and_a_task_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="an own loop trains without a task"):
        Config(task=TaskConfig(name="digits"), train=TrainConfig(batch_size=1, loop="mine:train"))
