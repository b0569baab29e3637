"""Tables of a TOML file against the dataclasses of the sections: every mistake in one line."""

import datetime
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from deploy.config.sections import Config, TaskConfig
from deploy.config.suggest import hint
from deploy.config.write import to_value
from ps.groups import GroupConfig

SECTIONS: dict[str, type[Any]] = {**get_type_hints(Config), "task": TaskConfig}
"""Class of every section, by name."""

_KEYS = {name: [field.name for field in fields(cls)] for name, cls in SECTIONS.items() if cls is not TaskConfig}
_WANTED = {
    "int_type": ("whole number", "3"),
    "int_from_float": ("whole number", "3"),
    "int_parsing": ("whole number", "3"),
    "float_type": ("number", "0.5"),
    "bool_type": ("boolean", "true"),
    "string_type": ("string", '"text"'),
    "dict_type": ("table", "{ key = 1 }"),
    "dataclass_type": ("table", "{ key = 1 }"),
    "tuple_type": ("list", "[1, 2]"),
}
"""What a pydantic error of a type asks for, and an example."""
_TEXTS = {
    "task.name": "digits",
    "train.loop": "mine.py:train",
    "train.init": "weights.safetensors",
    "early_stopping.metric": "validation_loss",
    "plateau.metric": "validation_loss",
    "comm.bandwidth": "200mbit",
    "comm.server_bandwidth": "200mbit",
    "comm.worker_bandwidth": "200mbit",
    "comm.latency": "2ms",
    "comm.interface": "eth1",
    "comm.port_range": "20000-20100",
    "run.name": "first",
    "run.storage_path": "runs",
    "run.callbacks": "tensorboard",
}
"""Examples of keys that are strings; of those in a table by the table's key."""

_ALTERNATIVES = ("str", "tuple[str, ...]")
"""What pydantic appends to the key of a value that may have one of two types."""
_NO_KEYS = ("[key]", *_ALTERNATIVES)
_BALANCES = ("literal['bytes','time']", "tuple[int, ...]")
"""The same of `pipeline.balance`."""
_GROUP_KEYS = [field.name for field in fields(GroupConfig)]


def unknown_names(tables: Mapping[str, Any]) -> Iterator[str]:
    """One line per section or key that does not exist."""
    for name, values in tables.items():
        if name not in SECTIONS:
            yield _unknown_section(name, values)
        elif not isinstance(values, dict):
            yield f"{name} is a section: write [{name}] and its keys below it"
        elif name != "task":
            yield from (_unknown_key(name, key) for key in values if key not in _KEYS[name])


def bad_values(value: Any, key: str = "") -> Iterator[str]:
    """One line per value that no section can hold: dates and numbers that are not finite."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from bad_values(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in value:
            yield from bad_values(inner, key)
    elif isinstance(value, datetime.date | datetime.time):
        yield f"{key} = {value} is a date: write it in quotes"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{key} = {value} is out of range: a finite number"


def section(name: str, values: Mapping[str, Any]) -> Any:
    """The section's dataclass; ValueError with one line per mistake."""
    try:
        return TypeAdapter(SECTIONS[name]).validate_json(json.dumps(values), strict=True)  # JSON: tables and their keys are no objects yet
    except ValidationError as error:
        lines = dict.fromkeys(_line(name, mistake) for mistake in error.errors())
        raise ValueError("\n".join(lines)) from error


def _unknown_section(name: str, values: Any) -> str:
    if isinstance(values, dict):
        return f"unknown section [{name}]: {hint(name, SECTIONS, kind='the sections are')}"
    owners = [owner for owner, keys in _KEYS.items() if name in keys]
    return f"unknown key {name} outside a section: " + (f"did you mean {owners[0]}.{name}?" if owners else "move it into its section")


def _unknown_key(name: str, key: str) -> str:
    owners = [owner for owner, keys in _KEYS.items() if key in keys]
    remedy = f"did you mean {owners[0]}.{key}?" if owners else hint(key, _KEYS[name], prefix=f"{name}.", kind=f"the keys of [{name}] are")
    return f"unknown key {name}.{key}: {remedy}"


def _line(name: str, mistake: ErrorDetails) -> str:
    if mistake["type"] == "value_error":
        return mistake["msg"].removeprefix("Value error, ")
    if any(part in _BALANCES for part in mistake["loc"]):
        key = f"{name}.{mistake['loc'][0]}"
        return f'{key} is neither "bytes" nor "time" nor a list of whole numbers, the first blocks of later stages: write for example {key} = [2, 5]'
    key = ".".join([name, *(str(part) for part in mistake["loc"] if part not in _NO_KEYS)])
    if mistake["type"] == "unexpected_keyword_argument":
        return f"unknown key {key}: {hint(str(mistake['loc'][-1]), _GROUP_KEYS, kind='the keys of a group are')}"
    if mistake["type"] == "missing":
        return f'{key} is missing: for example {mistake["loc"][-1]} = "*.bias"'
    if mistake["loc"][-1] in _ALTERNATIVES:
        return f'{key} = {to_value(mistake["input"])} is no string and no list of strings: write for example {key} = "text"'
    value = to_value(mistake["input"])
    if mistake["type"] == "literal_error":
        return f"{key} = {value} is not among {mistake['ctx']['expected']}"
    kind, example = _WANTED[mistake["type"]]
    if mistake["type"] == "string_type":
        example = to_value(_TEXTS.get(key, _TEXTS.get(key.rpartition(".")[0], "text")))
    if mistake["loc"][-1] == "[key]":
        return f"{key}: the last part of the key is no {kind}: for example {example}"
    return f"{key} = {value} is no {kind}: write for example {key} = {example}"
