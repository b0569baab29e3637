"""Writes that are whole or not at all, and values as JSON can hold them."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """One line of JSON at the end of a file, in one write: a kill loses the line or keeps it whole."""
    with _naming(path), path.open("ab", buffering=0) as file:
        left = line_of(row)
        while left:  # a disk that fills up takes a part, then none
            left = left[file.write(left) or 0 :]


def line_of(row: Mapping[str, Any]) -> bytes:
    """The row as a line of JSON."""
    return (json.dumps(finite(row), separators=(",", ":"), allow_nan=False) + "\n").encode()


def finite(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinities, which JSON has no form for, as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def write_atomic(path: Path, data: bytes) -> None:
    """The file has the old bytes or the new ones, also after a power cut. One writer per file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _naming(path), temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Writes of a full disk fail without a word of which file it was."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def fsync_folder(path: Path) -> None:
    """What was renamed in it is so after a power cut too."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
