"""`pserver plan`: what this machine tells of a config, and how long training takes to what a run has reached."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.bench import places
from deploy.cli.main import main
from deploy.config import load
from deploy.measure.ledger_file import LedgerStep
from deploy.measure.recorded import read_run
from deploy.predict import blocks, here
from deploy.predict.costs import Costs
from deploy.predict.duration import duration
from deploy.predict.inputs import Wishes
from deploy.predict.simulate import Prediction
from deploy.predict.sources import asked, to_target
from ps.errors import ConfigError
from tests.deploy.forked import ForkedTrainer
from tests.deploy.ledgers import history_of, step_of, write_run
from tests.deploy.predict.told import json_and_text

SIGNAL, NOISE = 2.0, 256.0
"""|G|² and the trace of the covariance: the noise scale is 128 samples, twice the batch of the run's two workers."""


def noisy(step: int) -> LedgerStep:
    """A step whose norms are exactly what is expected of such gradients."""
    made = step_of(step)
    rank, mean = (SIGNAL + NOISE / samples for samples in (32, 64))
    return replace(made, servers=[replace(row, rank_squares=2 * rank / 2, mean_square=mean / 2) for row in made.servers])


def step_with(samples: float) -> Prediction:
    return Prediction(step_s=0.5, compute_s=0.1, num_samples=samples, busy={}, worker_bytes=0.0, num_events=0)


@pytest.mark.parametrize(("batch", "steps"), [(64.0, 8.0), (128.0, 8 * 2 / 3), (1e9, 8 / 3), (32.0, 8 * 5 / 3)])
def test_steps_to_a_target_follow_from_the_noise_scale_and_the_batch(tmp_path: Path, batch: float, steps: float) -> None:
    run = write_run(tmp_path, "noisy", [noisy(step) for step in range(12)], history=history_of(2.0, 0.9, 0.5))
    found = duration(read_run(run), step_with(batch), "validation_loss", 1.0)
    assert (found.run_steps, found.run_batch, found.noise_scale) == (8, 64, pytest.approx(128))
    assert found.steps == pytest.approx(steps) and found.seconds == pytest.approx(0.5 * steps)
    assert f"{steps:.0f} steps of" in found.text() and found.to_dict()["batch"] == batch


def test_without_a_noise_scale_only_as_many_samples_are_known(tmp_path: Path) -> None:
    run = write_run(tmp_path, "plain", [step_of(step) for step in range(12)], history=history_of(2.0, 0.9, 0.5))
    same = duration(read_run(run), step_with(64.0), "validation_loss", 1.0)
    assert (same.steps, same.seconds, same.noise_scale) == (8, 4.0, None)
    with pytest.raises(ConfigError, match="--target for 128 samples in a step where plain had 64: its ledger has no noise scale"):
        duration(read_run(run), step_with(128.0), "validation_loss", 1.0)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("validation_loss=0.1", "plain has not reached it, validation_loss is from 0.5 to 2 in it"),
        ("accuracy=0.1", "accuracy is not among train_loss, validation_accuracy, validation_loss"),
        ("validation_loss", "write METRIC=VALUE"),
    ],
)
def test_a_target_that_was_not_reached_is_named(tmp_path: Path, target: str, message: str) -> None:
    run = write_run(tmp_path, "plain", [step_of(step) for step in range(12)], history=history_of(2.0, 0.9, 0.5))
    with pytest.raises(ConfigError, match=message):
        to_target(str(run.path), step_with(64.0), target)
    with pytest.raises(ConfigError, match="only a run tells"):
        to_target("own.toml", step_with(64.0), "validation_loss=1")


def test_the_command_says_how_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, "noisy", [noisy(step) for step in range(12)], history=history_of(2.0, 0.9, 0.5))
    told, text = json_and_text(capsys, "plan", str(run.path), "--workers", "4", "--target", "validation_loss=1")
    assert told["target"]["seconds"] == pytest.approx(told["target"]["steps"] * told["step_s"]) and told["target"]["batch"] == 128
    assert "validation_loss 1: 5 steps of 128 samples (the run: 8 steps of 64 samples, noise scale 1.3e+02)" in text


def test_a_short_run_tells_costs_and_batches_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(places, "Trainer", ForkedTrainer)
    monkeypatch.setattr(blocks, "ENOUGH_S", 0.0)
    monkeypatch.setattr(here, "STEPS", 8)
    monkeypatch.setattr(here, "AROUND", (0.5, 1))
    path = tmp_path / "small.toml"
    path.write_text('[task]\nname = "digits"\nhidden = 16\n[train]\nbatch_size = 16\n[scaling]\nnum_workers = 3\nnum_servers = 1\n')
    short = here._short(load(path), shared=False)
    assert (short.scaling.num_workers, short.train.batch_size, short.comm.shared_memory) == (2, 16, False)
    told = asked(str(path), Wishes(bandwidth="100mbit"), calibrate=True)
    usual, found = Costs(), told.scenario.costs
    assert told.scenario.num_workers == 3 and found.copy_byte_s != usual.copy_byte_s and found.push_frame_s != usual.push_frame_s
    assert list(told.speeds) == [8, 16] and min(told.speeds.values()) > 0
    assert list(told.to_dict()["samples_per_s_by_batch"]) == ["8", "16"]
    assert told.lines()[0].startswith("samples/s of one worker alone on this machine, by micro-batch: ")
    run = write_run(tmp_path, "plain", [step_of(step) for step in range(12)])
    with pytest.raises(ConfigError, match="--calibrate auto beside a run"):
        asked(str(run.path), Wishes(), calibrate=True)
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--model-bytes", "1MB", "--compute-ms", "1", "--calibrate", "auto"])
    assert ended.value.code == 2 and "--calibrate is for a config" in capsys.readouterr().err
