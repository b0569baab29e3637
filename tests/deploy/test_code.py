"""How code gets to nodes that do not have it."""

from pathlib import Path

import pytest

from deploy.launch.code import MAX_FILE_BYTES, code_folder, relative_name, stage
from ps.errors import ConfigError


def test_code_of_a_file_is_its_folder_and_of_a_module_the_folder_it_is_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").touch()
    (tmp_path / "own_module.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert code_folder(f"{tmp_path}/own_module.py:Task") == tmp_path
    assert code_folder("own_package.inner:Task") == tmp_path
    assert code_folder("own_module:Task") == tmp_path


@pytest.mark.parametrize("name", ["digits", "workers.tasks.digits:Digits", "json:Task", "numpy.linalg:Task", "no_such_module:Task"])
def test_what_is_installed_does_not_travel(name: str) -> None:
    assert code_folder(name) is None


def test_code_travels_without_data_runs_and_what_is_hidden(tmp_path: Path) -> None:
    folder, target = tmp_path / "code", tmp_path / "target"
    for name in (
        "task.py",
        "inner/part.py",
        "vocabulary.json",
        "runs/r/summary.json",
        ".git/config",
        "venv/pyvenv.cfg",
        "ps/__init__.py",
        "inner/ps/x.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "data.bin").write_bytes(bytes(MAX_FILE_BYTES + 1))
    stage(folder, target, skip=folder / "runs")
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()) == [
        "inner/part.py",
        "inner/ps/x.py",
        "task.py",
        "vocabulary.json",
    ]


def test_a_folder_that_is_too_full_to_be_code_is_named(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    for number in range(51):
        with (tmp_path / "code" / f"{number}.py").open("wb") as file:
            file.truncate(MAX_FILE_BYTES)
    with pytest.raises(ConfigError, match=r"code, the folder of the task, holds more than .* 50 MiB .*folder of their own"):
        stage(tmp_path / "code", tmp_path / "target", skip=tmp_path / "runs")


@pytest.mark.parametrize(
    ("name", "there"), [("/c/a.py:T", "a.py:T"), ("/c/in/a.py:T", "in/a.py:T"), ("/d/a.py:T", "/d/a.py:T"), ("a.b:T", "a.b:T"), ("digits", "digits")]
)
def test_a_task_file_is_found_in_the_copy_of_its_folder(name: str, there: str) -> None:
    assert relative_name(name, Path("/c")) == there
