"""Checks that settings of several sections share; every message says value, limit and remedy."""

from collections.abc import Callable, Mapping
from typing import Any

REQUIRED = object()
"""In a table of keys: the key has no default and must be set."""


def require(ok: bool, name: str, value: object, limit: str) -> None:
    """Raises ValueError that says value and limit."""
    if not ok:
        raise ValueError(f"{name} = {value!r} is out of range: {limit}")


def require_each(config: object, section: str, names: tuple[str, ...], holds: Callable[[Any], bool], limit: str) -> None:
    """Raises ValueError for the first of the keys that is set and breaks the limit."""
    for name in names:
        value = getattr(config, name)
        require(value is None or holds(value), f"{section}.{name}", value, limit)


def check_keys(config: object, section: str, name: str, table: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError for a key that is set although it belongs to other names of `table` only, and for a required one that is not set.

    `table` has the keys of every name with their defaults.
    """
    for key in {key: None for keys in table.values() for key in keys}:
        value = getattr(config, key)
        if key not in table[name] and value is not None:
            owners = " or ".join(f'"{other}"' for other, keys in table.items() if key in keys)
            raise ValueError(f'{section}.{key} = {value!r} does not belong to {section}.name = "{name}": leave it out, or set name = {owners}')
        if value is None and table[name].get(key) is REQUIRED:
            raise ValueError(f'{section}.{key} is missing: {section}.name = "{name}" needs it')
