"""The user's code on its way to the nodes of a cluster: which folder, and what of it."""

import importlib.util
import json
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ps.errors import ConfigError
from workers.tasks import SHIPPED

MAX_FILE_BYTES = 1 << 20
"""Larger files are data, and stay."""
MAX_BYTES = 50 << 20
MAX_FILES = 5000
_OURS = ("ps", "workers", "protos", "deploy")
"""Every node has these installed; what is called so in the user's folder would hide them."""


def code_folder(name: str) -> Path | None:
    """The folder that holds the code of "path/file.py:NAME" or "package.module:NAME"; None if it is installed with its package."""
    module, _, _ = SHIPPED.get(name, name).rpartition(":")
    if module.endswith(".py"):
        return Path(module).expanduser().resolve().parent
    top = module.partition(".")[0]
    if not top or top in _OURS:
        return None
    found = importlib.util.find_spec(top)
    if found is None or not found.origin:
        return None
    file = Path(found.origin).resolve()
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}
    if any(file.is_relative_to(folder) for folder in installed):
        return None
    return file.parent.parent if found.submodule_search_locations else file.parent


def stage(folder: Path, target: Path, *, skip: Path) -> None:
    """Copies what travels of `folder` into `target`: every file of at most 1 MB that is not hidden, nor below `skip`, nor in a
    virtual environment. Raises ConfigError if that is too much to be code."""
    size_bytes = 0
    for number, file in enumerate(_files(folder, skip.resolve()), start=1):
        size_bytes += file.stat().st_size
        if number > MAX_FILES or size_bytes > MAX_BYTES:
            raise ConfigError(
                f"{folder}, the folder of the task, holds more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB that would travel to the nodes: "
                "move the task and what it imports to a folder of their own"
            )
        copy = target / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)


def relative_name(name: str, folder: Path) -> str:
    """The name of a task or loop whose file is in `folder`, as it is called in a copy of that folder; other names as they are."""
    module, _, attribute = name.rpartition(":")
    path = Path(module).expanduser().resolve()
    if module.endswith(".py") and path.is_relative_to(folder.resolve()):
        return f"{path.relative_to(folder.resolve())}:{attribute}"
    return name


def as_on_nodes(settings_json: str, folder: Path | None) -> str:
    """The settings of a worker with the names under which its node finds the user's code, if it has a copy of `folder`."""
    settings = json.loads(settings_json)
    if folder is None or "train" not in settings:
        return settings_json
    for table, key in ((settings, "task"), (settings["train"], "loop")):
        if table.get(key):
            table[key] = relative_name(table[key], folder)
    return json.dumps(settings)


def _files(folder: Path, skip: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        here = Path(where)
        folders[:] = sorted(name for name in folders if _travels(here / name, folder, skip))
        for name in sorted(files):
            file = here / name
            if not name.startswith(".") and file.is_file() and file.stat().st_size <= MAX_FILE_BYTES:
                yield file


def _travels(path: Path, folder: Path, skip: Path) -> bool:
    if path.name.startswith(".") or path.name == "__pycache__" or path == skip or (path / "pyvenv.cfg").exists():
        return False
    return not (path.parent == folder and path.name in _OURS and (path / "__init__.py").exists())
