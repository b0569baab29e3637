"""What a format is to the fuzzer."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ps.config import ServerSettings
from ps.errors import PserverError

SECRET = "s" * 64
SETTINGS = ServerSettings(run_id=f"fuzz-{os.getpid()}", secret=SECRET, shard=0, num_servers=1, num_workers=1)


@dataclass(frozen=True)
class Format:
    """One format. `read` gets bytes and a folder of its own; it may raise errors of ours, and `refusals`, which its callers name to the user."""

    name: str
    right: Callable[[], bytes]
    """What must be read without an error."""
    read: Callable[[bytes, Path], object]
    refusals: tuple[type[Exception], ...] = ()


def try_bytes(made: Format, data: bytes, folder: Path) -> None:
    """Anything but an error of ours, or one that the reader's caller turns into a line, is raised."""
    with suppress(PserverError, *made.refusals):
        made.read(data, folder)
