"""Where values come from: a TOML file and `--set section.key=value`."""

import re
import tomllib
from pathlib import Path
from typing import Any

from ps.errors import ConfigError


def read(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: give the path of a config file, for example examples/digits.toml") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8 (byte {error.start}): save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_located(path, str(error))) from error
    except ValueError as error:  # Python reads no longer ones
        raise ConfigError(f"{path} has a number of thousands of digits: correct it") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply: the deepest key is section.key.name") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give the path of a config file") from error


def overlay(tables: dict[str, Any], assignment: str) -> str:
    """Carries out one `--set` on `tables`, in place; without a value the key is taken out. Returns the dotted key."""
    key, separator, text = assignment.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or len(parts) < 2 or not all(parts):
        raise ConfigError(f"--set {assignment}: write section.key=value, for example --set train.epochs=3")
    table = tables
    for depth, part in enumerate(parts[:-1], start=1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {assignment}: {'.'.join(parts[:depth])} is a value and has no keys")
    if text.strip():
        table[parts[-1]] = parse_value(text.strip())
    else:
        table.pop(parts[-1], None)
    return ".".join(parts)


def parse_value(text: str) -> Any:
    """The TOML value that `text` is, else `text` itself: quotes may be left out."""
    try:
        tables = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # TOML's error is one, and that of a number with too many digits
        return text
    return tables["value"] if len(tables) == 1 else text


def _located(path: Path, message: str) -> str:
    found = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message)
    if found:
        return f"{path}:{found[2]}: {found[1]} (column {found[3]}): correct the TOML there"
    return f"{path}: {message}: correct the TOML there"
