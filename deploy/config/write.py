"""A config as TOML text; the standard library only reads TOML."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from pydantic import TypeAdapter

from deploy.config.sections import Config, TaskConfig


def to_toml(config: Config) -> str:
    """The resolved config, defaults included; None is a comment, which reads back as None."""
    sections = {field.name: getattr(config, field.name) for field in fields(config)}
    return "\n".join(_table(name, _values(section)) for name, section in sections.items() if section is not None)


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved config as JSON holds it, section by section; None where nothing is set."""
    values: dict[str, Any] = TypeAdapter(Config).dump_python(config, mode="json")
    return values


def to_value(value: object) -> str:
    """One TOML value on one line. Raises TypeError for what has no form here."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(map(to_value, value))}]"
        case dict():
            pairs = ", ".join(f"{to_key(str(key))} = {to_value(inner)}" for key, inner in value.items() if inner is not None)
            return f"{{ {pairs} }}" if pairs else "{}"
    if is_dataclass(value) and not isinstance(value, type):
        return to_value(asdict(value))
    raise TypeError(f"{value!r} has no form in TOML")


def to_key(name: str) -> str:
    """A key, quoted if it must be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else to_value(name)


def _values(section: Any) -> dict[str, Any]:
    if isinstance(section, TaskConfig):
        return {"name": section.name, **section.fields}
    return {field.name: getattr(section, field.name) for field in fields(section)}


def _table(name: str, values: Mapping[str, object]) -> str:
    lines = [f"# {to_key(key)} is not set" if value is None else f"{to_key(key)} = {to_value(value)}" for key, value in values.items()]
    return "\n".join([f"[{name}]", *lines, ""])
