"""Servers and workers that stop (SIGSTOP) at a named place when the injector asks for it: `python -m tests.chaos.armed worker`."""

import json
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from ps import failpoints
from ps.logs import configure_logging
from ps.server import serve as real_serve
from workers.worker import work as real_work

_LOOK_EVERY_S = 0.005


VARIABLE = "PSERVER_CHAOS_WISHES"
"""Environment variable with the folder of a run's wishes: a file per process with the place and the visit at which it shall stop."""


def wish(folder: Path, name: str, place: str, hits: int) -> None:
    """For the process that lives now or next under this name; it takes the file away."""
    file = folder / name
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps([place, hits]))
    temporary.replace(file)


def serve(settings_json: str) -> int:
    _listen(settings_json, "server", "shard")
    return real_serve(settings_json)


def work(settings_json: str) -> int:
    _listen(settings_json, "worker", "rank")
    return real_work(settings_json)


def _listen(settings_json: str, role: str, index: str) -> None:
    settings: dict[str, Any] = json.loads(settings_json)
    file = Path(os.environ[VARIABLE]) / f"{role}-{settings[index]}"
    _arm(file)
    threading.Thread(target=_go_on_arming, args=(file,), name="wishes", daemon=True).start()


def _go_on_arming(file: Path) -> None:
    while True:
        time.sleep(_LOOK_EVERY_S)
        _arm(file)


def _arm(file: Path) -> None:
    if file.exists():
        place, hits = json.loads(file.read_text())
        file.unlink()
        failpoints.arm(place, hits, partial(os.kill, os.getpid(), signal.SIGSTOP))


if __name__ == "__main__":
    configure_logging()
    sys.exit({"server": serve, "worker": work}[sys.argv[1]](sys.stdin.read()))
