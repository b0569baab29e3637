"""The command: exit codes, what goes to stdout, one line per error, and that help is quick."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from deploy.cli.main import main
from deploy.cli.verbs import exit_code
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


@pytest.mark.parametrize("verb", ["run", "compare", "simulate", "sweep", "plan"])
def test_an_interrupt_while_the_users_module_is_imported_ends_with_one_line_and_130(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stopped.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    (tmp_path / "job.toml").write_text(JOB.replace("digits", f"{tmp_path}/stopped.py:Mine"))
    assert ended(verb, "job.toml", *(["--grid", "seed=0,1"] if verb == "sweep" else [])) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize(
    "verb", ["report", "diff RUN", "top", "trace", "export FILE.safetensors", "plan RUN", "doctor --run", "bench net", "bench comm --model resnet50"]
)
def test_every_verb_ends_so(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    for name in ("open", "open_with", "create"):
        monkeypatch.setattr(RunDirectory, name, interrupted)
    (tmp_path / "RUN").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ended(*verb.split()) == 130
    assert capsys.readouterr().err.splitlines() == ["error: interrupted"]


def test_an_interrupt_while_words_are_read_or_the_verbs_imported_or_that_a_library_has_made_an_error_of_ends_so_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def swallowed(*_: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            interrupted()
        raise ImportError("half of a module")

    with monkeypatch.context() as patch:
        patch.setattr("typer.core.TyperGroup.parse_args", interrupted)
        assert ended("top") == 130
        assert capsys.readouterr().err == "error: interrupted\n"
    for call in (interrupted, swallowed):
        monkeypatch.setitem(sys.modules, "deploy.cli.verbs", SimpleNamespace(call=call))  # type: ignore[arg-type]
        assert ended("top") == 130
        assert capsys.readouterr().err == "error: interrupted\n"


def test_sigterm_ends_a_verb_like_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunDirectory, "open", lambda name: os.kill(os.getpid(), signal.SIGTERM))
    assert ended("report") == 130


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
