"""The user's code by name: "package.module:attribute" or "path/file.py:attribute"."""

import difflib
import importlib
import importlib.util
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from ps.errors import ConfigError

_FILE_MODULE = "user_file_"
"""Prefix of the names of modules loaded from a file."""


def import_attribute(name: str, key: str) -> object:
    """What `name` names; the working directory counts for modules, its folder for a file.

    Raises ConfigError that names the config key or flag `key`.
    """
    module_name, _, path = name.rpartition(":")
    if not (module_name and path):
        raise ConfigError(f"{key} = {name!r} names nothing: write package.module:NAME or path/file.py:NAME")
    try:
        module = _load_file(Path(module_name)) if module_name.endswith(".py") else _load_module(module_name)
    except SystemExit as error:
        remedy = 'what a script does belongs below `if __name__ == "__main__":`'
        raise ConfigError(f"{key} = {name!r} cannot be imported, since it ends the program (sys.exit({error.code!r})): {remedy}") from error
    except Exception as error:  # whatever the user's module raises while it is imported
        relative = ": name it as part of its package, package.module:NAME" if "relative import" in str(error) else ""
        raise ConfigError(f"{key} = {name!r} cannot be imported: {type(error).__name__}: {error}{relative}") from error
    found: object = module
    for part in path.split("."):
        if not hasattr(found, part):
            own = [n for n, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
            raise ConfigError(f"{key} = {name!r}: no {part} in {module_name}: {nearest(part, own)}")
        found = getattr(found, part)
    return found


def import_path(value: type | Callable[..., Any]) -> str:
    """Name under which any process finds a class or function; files with their absolute path."""
    if value.__module__.startswith(_FILE_MODULE):
        return f"{sys.modules[value.__module__].__file__}:{value.__qualname__}"
    return f"{value.__module__}:{value.__qualname__}"


def absolute_name(name: str) -> str:
    """`name` with the path of a file absolute, which any process on this host finds."""
    module, _, attribute = name.rpartition(":")
    return f"{Path(module).expanduser().resolve()}:{attribute}" if module.endswith(".py") else name


def nearest(word: str, valid: Iterable[str]) -> str:
    """A phrase: "did you mean NAME?", or what there is."""
    names = list(valid)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there is {', '.join(names) or 'none'}"


def _load_module(name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: an installed package is not hidden by a folder that happens to be here
    return importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        there = [other.name for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise FileNotFoundError(f"there is no file {path}: {nearest(path.name, sorted(there))}")
    name = f"{_FILE_MODULE}{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # first: as for a script
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:  # as in Python's own import: what has not run to its end is no module
        del sys.modules[name]
        raise
    return module
