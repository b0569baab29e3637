"""Results that outlive a sweep, what they say, and real sweeps that are interrupted and go on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.cli.main import main
from deploy.measure.target import steps_to
from deploy.sweep import run
from deploy.sweep.grid import parse_axes
from deploy.sweep.page import figures
from deploy.sweep.results import Results, Row
from deploy.sweep.run import Sweep, sweep
from deploy.sweep.words import findings, table
from ps.errors import ConfigError, Stopped
from tests.deploy.forked import ForkedTrainer

CONFIG = """
[task]
name = "digits"
hidden = 16
[train]
epochs = 1
batch_size = 128
[optimizer]
lr = 0.2
[scaling]
num_workers = 1
num_servers = 1
[run]
storage_path = "{storage}"
"""


def row(point: dict[str, Any], **fields: Any) -> Row:
    return Row(point=point, run="r", **({"step_s": 0.1, "samples_per_s": 100.0, "bottleneck": "compute"} | fields))


def test_results_outlive_the_sweep_but_for_a_line_that_was_cut_off(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.read() == {}
    results.add(row({"workers": 1}, metrics={"validation_accuracy": 0.5}))
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"point": {"workers": 2}, "ru')
    assert list(results.read().values()) == [row({"workers": 1}, metrics={"validation_accuracy": 0.5})]
    results.add(row({"workers": 2}))
    results.add(row({"workers": 1}, error="again"))
    assert [(one.point["workers"], one.error) for one in results.read().values()] == [(1, "again"), (2, None)]


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("[]\n{}\n")
    with pytest.raises(ConfigError, match="results.jsonl, line 1 is no result of a sweep"):
        Results(tmp_path).read()


def test_a_loss_is_reached_from_above_and_an_accuracy_from_below() -> None:
    history = [{"step": step, "validation_loss": loss, "accuracy": 1 - loss} for step, loss in ((10, 0.9), (20, float("nan")), (30, 0.4), (40, 0.2))]
    assert steps_to(history, "validation_loss", 0.5) == 30
    assert steps_to(history, "accuracy", 0.8) == 40
    assert steps_to(history, "accuracy", 0.9) is None
    assert steps_to(history, "other", 0.9) is None


@pytest.mark.parametrize(
    ("scaled", "word"),
    [
        ({"steps_to_target": 50}, "√k helped: better at 1, worse at 0"),
        ({"steps_to_target": None}, "√k did harm"),
        ({"steps_to_target": 80, "metrics": {"validation_accuracy": 0.95}}, "√k helped"),
        ({"steps_to_target": 80, "metrics": {"validation_accuracy": 0.902}}, "√k made no difference that counts"),
    ],
)
def test_the_batch_rule_is_judged_by_steps_then_by_accuracy(scaled: dict[str, Any], word: str) -> None:
    axes = parse_axes(["batch=512", "lr_scaling=none,sqrt"])
    plain = {"steps_to_target": 80, "metrics": {"validation_accuracy": 0.9}, "gap": 0.1, "rise": 0.2, "validation_loss": 0.3, "train_loss": 0.2}
    rows = [row({"batch": 512, "lr_scaling": rule}, **(plain | more)) for rule, more in (("none", {}), ("sqrt", scaled))]
    said = findings(axes, rows, ("validation_accuracy", 0.9))
    assert said[0].startswith("Fastest: batch=512") and said[1].startswith(word)
    reached = f"after {steps} steps" if (steps := (plain | scaled)["steps_to_target"]) else "not reached"
    assert said[2].startswith(f"batch=512: validation_accuracy 0.9 after 80 steps, with √k {reached}; ")
    assert "gap 0.1, with √k 0.1; rise 0.2, with √k 0.2" in said[2]
    assert "steps to target" in table(axes, rows).columns


def test_seeds_do_not_count_as_batch_sizes() -> None:
    axes = parse_axes(["batch=512", "seed=0,1", "lr_scaling=none,sqrt"])
    rows = [row({"batch": 512, "seed": seed, "lr_scaling": rule}, validation_loss=0.3) for seed in (0, 1) for rule in ("none", "sqrt")]
    assert findings(axes, rows, None)[1].endswith("better at 0, worse at 0, the same at 2 of 2 comparisons")
    assert findings(axes[::2], rows[:2], None)[1].endswith("of 1 batch size")


def test_a_failed_point_is_in_the_table_and_in_the_words() -> None:
    axes = parse_axes(["workers=1,2"])
    rows = [row({"workers": 1}), Row(point={"workers": 2}, run="r", error="a server died")]
    assert table(axes, rows).rows[1][-1] == "failed: a server died"
    assert findings(axes, rows, None)[1] == "1 point failed, the first one workers=2: a server died"


@pytest.mark.parametrize(
    ("simulated", "said"), [("simulated: 2 workers", "virtual ones of this machine"), ("simulated WITHOUT virtual hosts, TOKEN", "TOKEN BUCKETS")]
)
def test_what_is_simulated_is_said(simulated: str, said: str) -> None:
    axes = parse_axes(["bandwidth=1gbit,2gbit"])
    rows = [row({"bandwidth": rate}, simulated=simulated) for rate in ("1gbit", "2gbit")]
    assert said in findings(axes, rows, None)[1]


def test_plots_have_a_line_for_each_combination_of_the_other_axes() -> None:
    axes = parse_axes(["workers=1,2", "push_format=fp32,bf16", "servers=1"])
    rows = [row({"workers": w, "push_format": f, "servers": 1}, samples_per_s=w * 10.0) for w in (1, 2) for f in ("fp32", "bf16")]
    shown = {figure.key: figure for figure in figures(axes, rows)}
    assert set(shown) == {"samples_per_s", "step_ms"}
    lines = {trace["name"]: (trace["x"], trace["y"]) for trace in shown["samples_per_s"].traces}
    assert lines == {f"push_format={f}": (["1", "2"], [10.0, 20.0]) for f in ("fp32", "bf16")}


@pytest.mark.parametrize(("axis", "shown"), [("batch=128,32,64", ["32", "64", "128"]), ("push_format=fp32,bf16", ["fp32", "bf16"])])
def test_numbers_rise_along_a_plot_and_words_keep_the_grids_order(axis: str, shown: list[str]) -> None:
    axes = parse_axes([axis])
    first = figures(axes, [row({axes[0].name: value}, samples_per_s=1.0) for value in axes[0].values])[0]
    assert first.traces[0]["x"] == first.layout["xaxis"]["categoryarray"] == shown


def test_a_point_that_has_diverged_is_left_out_of_the_plots() -> None:
    rows = [row({"lr": lr}, metrics={"validation_accuracy": value}) for lr, value in ((0.1, 0.9), (1.0, 0.8), (10.0, float("nan")))]
    by_key = {figure.key: figure for figure in figures(parse_axes(["lr=0.1,1.0,10.0"]), rows)}
    assert by_key["accuracy"].traces[0]["y"] == [0.9, 0.8]


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(run, "Trainer", ForkedTrainer)
    path = tmp_path / "job.toml"
    path.write_text(CONFIG.format(storage=tmp_path / "runs"))
    return path


def test_an_interrupted_sweep_goes_on_where_it_was_and_says_what_was_learnt(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", str(config_file), "--grid", "batch=64,256", "lr_scaling=none,sqrt", "--target", "validation_accuracy=0.3"]
    fitted: list[str] = []
    fit = ForkedTrainer.fit

    def counted(self: ForkedTrainer) -> Any:
        fitted.append(self._config.run.name or "")
        result = fit(self)
        if len(fitted) == 3:
            object.__setattr__(result, "error", Stopped("Ctrl-C"))
        return result

    monkeypatch.setattr(ForkedTrainer, "fit", counted)
    assert code_of(arguments) == 130
    assert "the sweep was interrupted at batch=256 lr_scaling=none: the same command goes on there" in capsys.readouterr().err
    (page,) = config_file.parent.glob("runs/sweeps/*/sweep.html")
    assert "2 of 4 points so far" in page.read_text()
    assert code_of([*arguments, "--json"]) == 0
    assert fitted[3:] == [fitted[2], "batch-256_lr_scaling-sqrt"]
    rows = json.loads(capsys.readouterr().out)
    assert [tuple(row["point"].values()) for row in rows] == [(64, "none"), (64, "sqrt"), (256, "none"), (256, "sqrt")]
    assert all(row["rise"] is not None and row["gap"] == row["validation_loss"] - row["train_loss"] for row in rows)
    assert rows[0]["metrics"] == rows[1]["metrics"]  # k = 1
    assert rows[2]["metrics"] != rows[3]["metrics"]
    assert code_of(arguments) == 0 and len(fitted) == 5
    printed = capsys.readouterr().out
    assert "4 of 4 points are there already" in printed and "√k " in printed
    assert printed.splitlines()[-1] == str(page)
    assert "so far" not in page.read_text() and "√k " in page.read_text() and "Flatness" in page.read_text()


def test_a_point_that_failed_is_tried_again_and_wrong_points_are_refused_before_the_first_run(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong, message in (
        ("workers=1,0", "workers = 0 is out of range"),
        ("bandwidth=1gbit,1mb", "1mb"),
        ("straggler=rank=5,factor=2", "5"),
    ):
        with pytest.raises(ConfigError, match=message):
            Sweep(config_file=config_file, sets=[], axes=parse_axes([wrong]))
    wanted = Sweep(config_file=config_file, sets=["train.max_steps=2"], axes=parse_axes(["workers=1"]))
    fit = ForkedTrainer.fit

    def failing(self: ForkedTrainer) -> Any:
        result = fit(self)
        object.__setattr__(result, "error", OSError("no space left"))
        return result

    monkeypatch.setattr(ForkedTrainer, "fit", failing)
    assert [row.error for row in sweep(wanted, say=print, show=print)] == ["no space left"]
    monkeypatch.setattr(ForkedTrainer, "fit", fit)
    (row,) = sweep(wanted, say=print, show=print)
    assert row.error is None and row.steps == 2 and row.rise is None


def test_a_smaller_batch_in_the_grid_trains_those_again_that_counted_from_the_smallest_one(config_file: Path) -> None:
    shown: list[Sequence[Row]] = []

    def swept(batches: str) -> tuple[list[Row], list[str]]:
        said: list[str] = []
        axes = parse_axes([f"batch={batches}", "lr_scaling=none,sqrt"])
        return sweep(Sweep(config_file=config_file, sets=["train.max_steps=1"], axes=axes), said.append, show=shown.append), said

    rows, _ = swept("256")
    assert [row.reference_batch_size for row in rows] == [None, 256]
    assert rows[0].metrics == rows[1].metrics  # k = 1
    rows, said = swept("64,256")
    assert said[0].startswith("1 of 4 points are there already") and len(said) == 4
    assert [row.reference_batch_size for row in rows] == [None, 64, None, 64]
    assert shown[-1] == rows, "in the order of the grid"
    assert rows[2].metrics != rows[3].metrics
    assert swept("64,256")[1][0].startswith("4 of 4 points")


@pytest.mark.root
def test_points_with_links_run_on_virtual_hosts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.toml"
    path.write_text(CONFIG.format(storage=tmp_path / "runs"))
    large = ["--set", "task.hidden=200", "--set", "train.max_steps=3"]  # 0.2 MB
    assert code_of(["sweep", str(path), "--grid", "bandwidth=4mbit", *large, "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)
    assert row["simulated"].startswith("simulated: 1 worker and 1 server on 2 hosts")
    assert row["step_s"] > 0.4


def code_of(arguments: list[str]) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code
