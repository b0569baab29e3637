"""From a TOML file and `--set` assignments to a checked `Config`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.config import check
from deploy.config.sections import Config, TaskConfig
from deploy.config.source import overlay, read
from ps.errors import ConfigError


def load(path: str | Path, sets: Sequence[str] = ()) -> Config:
    """The config of a file, changed by `sets` ("section.key=value", later ones win); imports the task to check its fields.

    Raises ConfigError with one line per mistake: where, key, value, limit, remedy.
    """
    tables = read(Path(path))
    set_keys = {overlay(tables, assignment) for assignment in sets}
    mistakes = [*check.unknown_names(tables), *check.bad_values(tables)]
    if mistakes:
        raise _error(path, set_keys, mistakes)
    try:
        config = _build(tables)
        if config.task:
            _check_task(config.task)
        elif config.train.loop is not None:
            _check_loop(config.train.loop)
    except ValueError as error:
        raise _error(path, set_keys, str(error).splitlines()) from error
    return config


def _build(tables: Mapping[str, Mapping[str, Any]]) -> Config:
    sections: dict[str, Any] = {}
    mistakes: list[str] = []
    for name in check.SECTIONS:
        try:
            if name == "task":
                if tables.get("task") or "loop" not in tables.get("train", {}):
                    sections[name] = _task(tables.get("task", {}))
            elif name in tables or name == "train":
                sections[name] = check.section(name, tables.get(name, {}))
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return Config(**sections)


def _task(values: Mapping[str, Any]) -> TaskConfig:
    if "name" not in values:
        raise ValueError('task.name is missing: a shipped task, for example name = "digits", or "package.module:Class"')
    fields = {key: value for key, value in values.items() if key != "name"}
    config: TaskConfig = check.section("task", {"name": values["name"], "fields": fields})
    return config


def _check_task(task: TaskConfig) -> None:
    from workers.task import load_task  # brings torch: seconds, which a mistake above need not cost

    try:
        load_task(task.name, task.fields)
    except ConfigError as error:
        raise ValueError(_one_line(error)) from error
    except Exception as error:  # the user's class may raise anything
        raise ValueError(f'task.name = "{task.name}" cannot be made ({type(error).__name__}: {_one_line(error)}): correct the class') from error


def _check_loop(loop: str) -> None:
    from workers.context import load_loop

    try:
        load_loop(loop)
    except ConfigError as error:
        raise ValueError(_one_line(error)) from error


def _error(path: str | Path, set_keys: set[str], mistakes: Sequence[str]) -> ConfigError:
    def origin(mistake: str) -> str:
        return "--set" if any(word.rstrip(":") in set_keys for word in mistake.split()) else str(path)

    return ConfigError("\n".join(f"{origin(mistake)}: {mistake}" for mistake in mistakes))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
