"""The command: exit codes, what goes to stdout, one line per error, and that help is quick."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deploy.cli.main import exit_code, main
from deploy.config import load
from deploy.rundir import RunDirectory
from ps.errors import ConfigError, NonFinite, PserverError, Stopped

JOB = '[task]\nname = "digits"\n[train]\nbatch_size = 8\n'
HEAVY = ("torch", "ray", "numpy")


def ended(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def job(tmp_path: Path) -> str:
    file = tmp_path / "job.toml"
    file.write_text(JOB)
    return str(file)


@pytest.mark.parametrize(
    ("error", "code"),
    [(PserverError("x"), 1), (NonFinite("x"), 1), (OSError("x"), 1), (RuntimeError("x"), 1), (ConfigError("x"), 2), (Stopped("x"), 130)],
)
def test_every_error_has_its_exit_code(error: Exception, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run"],
        ["run", "job.toml", "--launcher", "slurm"],
        ["run", "job.toml", "--workers", "two"],
        ["run", "job.toml", "--sett", "a.b=1"],
        ["export"],
        ["export", "model.bin"],
        ["export", "a", "b", "model.safetensors"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(*arguments) == 2
    assert capsys.readouterr().out == ""


def test_a_wrong_config_ends_with_2_and_one_line(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("run", job, "--set", "train.epoch=3") == 2
    captured = capsys.readouterr()
    assert captured.err == "error: --set: unknown key train.epoch: did you mean train.epochs?\n"
    assert captured.out == ""


def test_traceback_shows_the_stack_above_the_line(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("run", job, "--set", "train.epochs=x", "--traceback") == 2
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback (most recent call last):" in lines
    assert lines[-1].startswith("error: --set: train.epochs")


def test_an_address_without_ray_is_refused(job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("run", job, "--launcher", "process", "--address", "auto", "--set", f"run.storage_path={tmp_path}", "--json") == 2
    assert capsys.readouterr().err == 'error: --address auto is of a Ray cluster, but the launcher is "process": leave one of the two out\n'


def test_print_config_prints_a_config_that_loads_and_short_flags_win(job: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--workers", "3", "--servers", "1", "--name", "42", "--resume", "--allow-drift"]
    assert ended("run", job, "--set", "scaling.num_workers=9", *flags, "--print-config") == 0
    resolved = tmp_path / "resolved.toml"
    resolved.write_text(capsys.readouterr().out)
    config = load(resolved)
    assert (config.scaling.num_workers, config.scaling.num_servers, config.run.name) == (3, 1, "42")
    assert (config.run.resume, config.run.allow_drift) == ("auto", True)


def test_what_a_task_prints_on_import_stays_off_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loud.py").write_text("print('loud')\nfrom workers.tasks.digits import Digits as Mine\n")
    (tmp_path / "job.toml").write_text(JOB.replace("digits", f"{tmp_path}/loud.py:Mine"))
    assert ended("run", str(tmp_path / "job.toml"), "--print-config") == 0
    captured = capsys.readouterr()
    assert "loud\n" in captured.err
    assert captured.out.startswith("[task]")


def test_an_interrupt_ends_with_130(tmp_path: Path) -> None:
    (tmp_path / "stopped.py").write_text("raise KeyboardInterrupt")
    (tmp_path / "job.toml").write_text(JOB.replace("digits", f"{tmp_path}/stopped.py:Mine"))
    assert ended("run", str(tmp_path / "job.toml")) == 130


def test_export_copies_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert ended("export", "model.safetensors") == 2
    assert "there is no run under runs" in capsys.readouterr().err
    run = RunDirectory.create("runs", "first", "digits")
    run.write_config("")
    save_file({"w": torch.ones(2)}, run.weights("last"))
    save_file({"w": torch.zeros(2)}, run.weights("best"))
    assert ended("export", "model.safetensors") == 0
    assert torch.equal(load_file("model.safetensors")["w"], torch.ones(2))
    assert ended("export", "first", "model.safetensors", "--best") == 0
    assert torch.equal(load_file("model.safetensors")["w"], torch.zeros(2))


def test_export_passes_over_a_newer_run_that_has_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for at, name in enumerate(("first", "failed")):
        run = RunDirectory.create("runs", name, "digits")
        run.write_config("")
        os.utime(run.config, (at, at))
    assert ended("export", "model.safetensors") == 2
    assert "runs/failed has no last weights: it ended before it wrote any" in capsys.readouterr().err
    save_file({"w": torch.ones(2)}, RunDirectory.open("first").weights("last"))
    assert ended("export", "model.safetensors") == 0
    assert capsys.readouterr().out == "model.safetensors: the last weights of runs/first\n"
    assert ended("export", "model.safetensors", "--best") == 2
    assert ended("export", "failed", "model.safetensors") == 2


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    program = f"""
import sys
from deploy.cli.main import main
try:
    main({arguments!r})
except SystemExit as ended:
    print([name for name in {HEAVY!r} if name in sys.modules], ended.code)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True).stdout
    assert output.splitlines()[-1] == "[] 0"
