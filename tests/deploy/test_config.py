"""The config file: what it accepts, how mistakes are named, and that it survives being written and read."""

import string
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.config import Config, RunConfig, ScalingConfig, TaskConfig, load, to_toml
from deploy.config.source import parse_value
from deploy.config.write import to_key, to_value
from ps.config import CommConfig, OptimizerConfig
from ps.errors import ConfigError
from workers.config import TrainConfig

MINIMAL = '[task]\nname = "digits"\n[train]\nbatch_size = 8\n'


def written(folder: Path, text: str) -> Path:
    file = folder / "job.toml"
    file.write_text(text)
    return file


def message(folder: Path, text: str, *sets: str) -> str:
    """The error of a config, without the path of the file."""
    with pytest.raises(ConfigError) as caught:
        load(written(folder, text), sets)
    return str(caught.value).replace(f"{folder}/", "")


def test_a_minimal_file_gets_all_defaults(tmp_path: Path) -> None:
    config = load(written(tmp_path, MINIMAL))
    assert config == Config(task=TaskConfig(name="digits"), train=TrainConfig(batch_size=8))
    assert config.scaling == ScalingConfig(num_workers=2, num_servers=2)
    assert config.run == RunConfig(name=None, storage_path="runs")


def test_keys_of_the_task_become_its_fields(tmp_path: Path) -> None:
    config = load(written(tmp_path, MINIMAL), ["task.hidden=16"])
    assert config.task == TaskConfig(name="digits", fields={"hidden": 16})


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("batchsize = 1", "job.toml: unknown key train.batchsize: did you mean train.batch_size?"),
        ("lr = 1.0", "job.toml: unknown key train.lr: did you mean optimizer.lr?"),
        ("zzzzz = 1", "job.toml: unknown key train.zzzzz: the keys of [train] are: epochs, "),
        ("[optimiser]", "job.toml: unknown section [optimiser]: did you mean optimizer?"),
        ("[qqqq]", "job.toml: unknown section [qqqq]: the sections are: task, train, "),
        ("[[optimizer]]", "job.toml: optimizer is a section: write [optimizer]"),
        ("[task.nam]\nx = 1", "job.toml: task.nam is no field of Digits"),
        ('epochs = "3"', 'job.toml: train.epochs = "3" is no whole number: write for example train.epochs = 3'),
        ("epochs = 1.5", "job.toml: train.epochs = 1.5 is no whole number"),
        ("epochs = true", "job.toml: train.epochs = true is no whole number"),
        ("epochs = 0", "job.toml: train.epochs = 0 is out of range: >= 1"),
        ("global_batch_size = 8", "job.toml: train: set exactly one of train.batch_size"),
        ("[optimizer]\nlr = -1", "job.toml: optimizer.lr = -1.0 is out of range: > 0"),
        ("[optimizer]\nlr = inf", "job.toml: optimizer.lr = inf is out of range: a finite number"),
        ('[optimizer]\nlr = "0.1"', 'job.toml: optimizer.lr = "0.1" is no number'),
        ("[optimizer]\ngroups = 3", "job.toml: optimizer.groups = 3 is no list: write for example"),
        ("[optimizer]\ngroups = [3]", "job.toml: optimizer.groups.0 = 3 is no table"),
        ("[optimizer]\ngroups = [{ lr = 1.0 }]", "job.toml: optimizer.groups.0.pattern is missing: for example pattern = "),
        ("[[optimizer.groups]]\npattern = 3", "job.toml: optimizer.groups.0.pattern = 3 is no string and no list of strings"),
        ('[[optimizer.groups]]\npattern = "a"\nweightdecay = 0', "job.toml: unknown key optimizer.groups.0.weightdecay: did you mean weight_decay?"),
        ("[optimizer]\nrho = 0.9", 'job.toml: optimizer.rho = 0.9 does not belong to optimizer.name = "sgd": leave it out'),
        ('[optimizer]\nname = "adm"', "job.toml: optimizer.name = \"adm\" is not among 'sgd', 'adam', 'adamw', 'rmsprop' or 'adagrad'"),
        (
            "[security]\nallow_plaintext = 1",
            "job.toml: security.allow_plaintext = 1 is no boolean: write for example security.allow_plaintext = true",
        ),
        ("[run]\nname = 3", "job.toml: run.name = 3 is no string"),
        ("[comm]\nbandwidth = 10", 'job.toml: comm.bandwidth = 10 is no string: write for example comm.bandwidth = "200mbit"'),
        (
            "[comm]\nserver_bandwidth = { 1 = 10 }",
            'job.toml: comm.server_bandwidth.1 = 10 is no string: write for example comm.server_bandwidth.1 = "200mbit"',
        ),
        ("[task.x]\ny = [{ z = nan }]", "job.toml: task.x.y.z = nan is out of range"),
        ("[run]\nname = 2026-11-23", "job.toml: run.name = 2026-11-23 is a date: write it in quotes"),
        ('[run]\nname = "../up"', "job.toml: run.name = '../up' is no name of a folder"),
        ("[scaling]\nnum_servers = 0", "job.toml: scaling.num_servers = 0 is out of range: >= 1"),
        ("[scaling]\nresources_per_worker = { CPU = -1 }", "job.toml: scaling.resources_per_worker.CPU = -1.0 is out of range"),
        ('[scaling]\nresources_per_worker = { CPU = "2" }', 'job.toml: scaling.resources_per_worker.CPU = "2" is no number'),
        ('[comm]\nbandwidth = "fast"', "job.toml: comm.bandwidth: 'fast' is no rate"),
        ('[comm.server_bandwidth]\n5 = "1mbit"', "job.toml: comm.server_bandwidth.5 names no server: 0 <= shard < scaling.num_servers = 2"),
        (
            'loop = "mine.py:train"',
            'job.toml: train.loop = "mine.py:train" with task.name = "digits": an own loop trains without a task, leave train.loop or',
        ),
        (
            '[early_stopping]\nmetric = "accuracy"',
            'job.toml: early_stopping.metric = "accuracy" is no metric of a task: did you mean "validation_accuracy"?',
        ),
        ('[plateau]\nmetric = "loss"', 'job.toml: plateau.metric = "loss" is no metric of a task: did you mean "validation_loss"?'),
        ('[comm.worker_bandwidth]\n5 = "1mbit"', "job.toml: comm.worker_bandwidth.5 names no worker: 0 <= number < scaling.num_workers = 2"),
        ("[scaling]\nslowdown = { 2 = 2.0 }", "job.toml: scaling.slowdown.2 names no rank: 0 <= rank < scaling.num_workers = 2"),
        ("[scaling]\nslowdown = { 1 = 0.5 }", "job.toml: scaling.slowdown.1 = 0.5 is out of range: >= 1"),
        ("[scaling]\nnum_stages = 0", "job.toml: scaling.num_stages = 0 is out of range: >= 1"),
        ("[pipeline]\nmicro_batches = 0", "job.toml: pipeline.micro_batches = 0 is out of range: >= 1"),
        ('[pipeline]\nbalance = "even"', 'job.toml: pipeline.balance is neither "bytes" nor "time" nor a list of whole numbers'),
        ('[pipeline]\nbalance = [1, "x"]', 'job.toml: pipeline.balance is neither "bytes" nor "time" nor a list of whole numbers'),
        ('[comm.server_bandwidth]\nx = "1mbit"', "job.toml: comm.server_bandwidth.x: the last part of the key is no whole number"),
        ("epochs = = 3", "job.toml:5: Invalid value (column 10)"),
    ],
)
def test_a_mistake_is_one_line_with_file_key_value_and_remedy(tmp_path: Path, lines: str, expected: str) -> None:
    text = message(tmp_path, MINIMAL + lines)
    assert text.startswith(expected)
    assert "\n" not in text


def test_a_key_outside_a_section_is_led_home(tmp_path: Path) -> None:
    assert message(tmp_path, "epochs = 3\n" + MINIMAL) == "job.toml: unknown key epochs outside a section: did you mean train.epochs?"


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    text = message(tmp_path, "[train]\nepochs = 'x'\naccumulate = 'y'\n[scaling]\nnum_workers = 0")
    assert [line.split(" ")[1] for line in text.splitlines()] == ["task.name", "train.epochs", "train.accumulate", "scaling.num_workers"]


@pytest.mark.parametrize("path", ["missing.toml", "."])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="config file"):
        load(tmp_path / path)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"job\.toml is no text in UTF-8 \(byte 5\)"):
        load(tmp_path / "job.toml")


def test_a_file_with_a_number_that_python_does_not_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"job\.toml has a number of thousands of digits"):
        load(written(tmp_path, f"[train]\nepochs = {'9' * 5000}"))


def test_without_the_keys_of_its_task_a_file_serves_an_own_loop(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def train(ctx): ...")
    config = load(written(tmp_path, MINIMAL), ["task.name=", f"train.loop={tmp_path}/mine.py:train", "early_stopping.metric=accuracy"])
    assert config.task is None


# --set


def test_set_changes_adds_and_the_last_one_wins(tmp_path: Path) -> None:
    sets = ["train.epochs=3", "train.epochs=4", "optimizer.name=adam", "comm.server_bandwidth.1=10mbit", "scaling.resources_per_worker={CPU = 2}"]
    config = load(written(tmp_path, MINIMAL), sets)
    assert config.train == TrainConfig(batch_size=8, epochs=4)
    assert config.optimizer == OptimizerConfig(name="adam")
    assert config.comm == CommConfig(server_bandwidth={1: "10mbit"})
    assert config.scaling.resources_per_worker == {"CPU": 2.0}


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("train.epoch=3", "--set: unknown key train.epoch: did you mean train.epochs?"),
        ("train.epochs=x", '--set: train.epochs = "x" is no whole number'),
        ("train.epochs=0", "--set: train.epochs = 0 is out of range"),
        ("task.hidden=0", "--set: task.hidden = 0 is out of range"),
        ("task.hiden=1", "--set: task.hiden is no field of Digits: did you mean hidden?"),
        ("epochs=3", "--set epochs=3: write section.key=value"),
        ("train.epochs", "--set train.epochs: write section.key=value"),
        ("train.batch_size.x=3", "--set train.batch_size.x=3: train.batch_size is a value and has no keys"),
    ],
)
def test_a_mistake_in_set_is_told_from_one_in_the_file(tmp_path: Path, assignment: str, expected: str) -> None:
    assert message(tmp_path, MINIMAL, assignment).startswith(expected)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ('"3"', "3"),
        ("adam", "adam"),
        ("200mbit", "200mbit"),
        ("a b # c", "a b # c"),
        ("", ""),
        ("[1, 2]", [1, 2]),
        ("1\nother = 2", "1\nother = 2"),
        pytest.param("9" * 5000, "9" * 5000, id="5,000 digits"),
    ],
)
def test_a_set_value_is_toml_or_else_a_bare_string(text: str, value: object) -> None:
    assert parse_value(text) == value


# the task


def test_a_task_that_fails_is_one_line_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('first\\nsecond')")
    text = message(tmp_path, f'[task]\nname = "{tmp_path}/broken.py:Mine"\n[train]\nbatch_size = 1')
    assert "cannot be imported" in text and "RuntimeError: first second" in text


def test_an_unknown_task_is_led_to_the_nearest(tmp_path: Path) -> None:
    assert "did you mean digits?" in message(tmp_path, MINIMAL, "task.name=digit")


# writing


def test_a_written_config_reads_back_equal(tmp_path: Path) -> None:
    sets = [
        *("train.max_steps=7", "optimizer.name=adam", "optimizer.eps=1e-12", "optimizer.lr=0.25", "optimizer.max_grad_norm=1", "run.name=a.b"),
        *("task.hidden=16", "optimizer.groups=[{pattern = ['*.bias'], weight_decay = 0}]"),
        *("comm.server_bandwidth={0 = '1mbit'}", "scaling.resources_per_worker={'a b' = 0.5}", "scaling.placement_strategy=SPREAD"),
    ]
    config = load(written(tmp_path, MINIMAL), sets)
    assert load(written(tmp_path, to_toml(config))) == config


def test_a_written_config_shows_every_key_that_has_a_value(tmp_path: Path) -> None:
    tables = tomllib.loads(to_toml(load(written(tmp_path, MINIMAL))))
    assert tables["scaling"]["num_workers"] == 2
    assert tables["optimizer"]["nonfinite"] == "error"
    assert "lr" not in tables["optimizer"]


values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(string.printable, min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(st.text(min_size=1), values)
def test_every_value_survives_toml(key: str, value: Any) -> None:
    assert tomllib.loads(f"{to_key(key)} = {to_value(value)}") == {key: value}


@pytest.mark.parametrize(
    ("fields", "gpus"),
    [
        ({}, 0.0),
        ({"use_gpu": True}, 1.0),
        ({"use_gpu": True, "resources_per_worker": {"GPU": 0.5}}, 0.5),
        ({"resources_per_worker": {"GPU": 2}}, 2.0),
    ],
)
def test_gpus_of_a_worker_are_what_ray_is_asked_for(fields: dict[str, Any], gpus: float) -> None:
    assert ScalingConfig(**fields).gpus_per_worker == gpus
