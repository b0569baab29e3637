"""Folders for temporary files."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.scratch import Scratch, remove_dead_folders, scratch_folder

HOLDER = """
import sys
from deploy.scratch import Scratch
scratch = Scratch()
(scratch.path / "run").mkdir()
(scratch.path / "run" / "log").touch()
(scratch.path / "log").touch()
if sys.argv[1:]:
    scratch.keep()
print(scratch.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setenv("TMPDIR", str(tmp_path))
        patched.setattr(tempfile, "tempdir", str(tmp_path))
        yield


def test_what_a_killed_process_left_is_removed_by_the_next_that_wants_a_folder() -> None:
    left = folder_of_killed()
    assert (left / "run" / "log").is_file()
    with scratch_folder() as folder:
        assert folder.is_dir() and not left.exists()
    assert not folder.exists()


def test_a_living_process_keeps_its_folder() -> None:
    scratch = Scratch()
    (scratch.path / "run").mkdir()
    remove_dead_folders()
    assert (scratch.path / "run").is_dir()
    scratch.close()
    assert not scratch.path.exists()


def test_what_was_kept_stays() -> None:
    left = folder_of_killed("keep")
    remove_dead_folders()
    assert (left / "run" / "log").is_file()
    scratch = Scratch()
    scratch.keep()
    scratch.close()
    assert scratch.path.is_dir()


def test_a_folder_elsewhere_is_not_followed_to(tmp_path: Path) -> None:
    left = folder_of_killed()
    elsewhere = left.rename(tmp_path / "elsewhere")
    left.symlink_to(elsewhere)
    remove_dead_folders()
    assert (elsewhere / "run" / "log").is_file()


def test_another_users_folder_is_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    left, user = folder_of_killed(), os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    remove_dead_folders()
    assert (left / "run" / "log").is_file()


def folder_of_killed(*arguments: str) -> Path:
    with subprocess.Popen([sys.executable, "-c", HOLDER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        folder = Path(holder.stdout.readline().strip())
        holder.kill()
    return folder
