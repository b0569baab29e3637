"""Where the processes of contenders are: names of virtual hosts, and the way in."""

import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.virtual.plan import enter

Places = Mapping[str, tuple[int, str]]
"""Virtual hosts by name: pid of the holder, address."""


def command_in(places: Places, host: str, module: str, *arguments: str) -> list[str]:
    """`python -m MODULE` in a host."""
    return enter(places[host][0], [sys.executable, "-m", module, *arguments], str(Path.cwd()), None)


def host_of(role: str, index: int) -> str:
    """Name of the host of a process."""
    return f"{role}-{index}"
