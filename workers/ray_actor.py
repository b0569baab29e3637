"""The shell around a worker or a server process inside a Ray cluster."""

import json
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import psutil
import ray

from ps.logs import configure_logging


@dataclass(frozen=True)
class Place:
    """Where an actor lives; `start_s` tells its process from a later one with the same pid."""

    node_id: str
    pid: int
    start_s: float


class ProcessActor:
    """One process of the run; `run` keeps its main thread until the process' work ends."""

    def __init__(self, python_path: list[str]) -> None:
        """`python_path`: where the driver finds modules; what is missing here is added behind our own."""
        sys.path.extend(path for path in python_path if path not in sys.path)

    def place(self) -> Place:
        return Place(ray.get_runtime_context().get_node_id(), os.getpid(), psutil.Process().create_time())

    def run(self, target: str, settings_json: str, log_path: str) -> int:
        """Calls `target` ("module:function") with the settings and returns its exit code."""
        _write_output_to(Path(log_path))
        configure_logging()
        module, _, function = target.partition(":")
        try:
            code: int = getattr(import_module(module), function)(_with_host(settings_json))
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return code


def _write_output_to(path: Path) -> None:
    """Sends output to the run's log; on a host without the run directory Ray's own logs keep it."""
    if path.parent.is_dir():
        with path.open("ab") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)


def _with_host(settings_json: str) -> str:
    settings = json.loads(settings_json)
    if settings.get("host") != "":
        return settings_json
    return json.dumps({**settings, "host": ray.util.get_node_ip_address()})  # type: ignore[no-untyped-call]
