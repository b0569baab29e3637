"""The shell around a worker or a server process inside a Ray cluster."""

import contextlib
import json
import os
import socket
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import psutil
import ray
from ray.util.metrics import Counter, Gauge

from ps.logs import configure_logging
from ps.metrics import Meter, Metric


@dataclass(frozen=True)
class Place:
    """Where an actor lives; `start_s` tells its process from a later one with the same pid."""

    node_id: str
    host: str
    pid: int
    start_s: float
    actor_id: str
    sees_run: bool
    """Whether the run directory is there too."""


class ProcessActor:
    """One process of the run; `run` keeps its main thread until the process' work ends."""

    def __init__(self, python_path: list[str], probe_path: str, probe: str) -> None:
        """`python_path`: where the driver finds modules; what is missing here is added behind our own. A file `probe_path`
        with the text `probe` is the driver's: a folder that is merely called the same has none."""
        sys.path.extend(path for path in python_path if path not in sys.path)
        self._sees_run = _reads(Path(probe_path), probe)

    def place(self) -> Place:
        context = ray.get_runtime_context()
        return Place(
            node_id=context.get_node_id(),
            host=socket.gethostname(),
            pid=os.getpid(),
            start_s=psutil.Process().create_time(),
            actor_id=context.get_actor_id() or "",
            sees_run=self._sees_run,
        )

    def run(self, _place: Place, target: str, settings_json: str, log_path: str, must_see_run: bool) -> int:
        """Calls `target` ("module:function") with the settings and returns its exit code; without the run directory, if it must
        be there, does not begin. Ray begins it once the driver has the `_place` that it is given: a process that is stopped
        later is one whose pid is known."""
        if self._sees_run:  # else Ray's own logs keep the output
            _write_output_to(Path(log_path))
        elif must_see_run:
            return 1
        configure_logging()
        module, _, function = target.partition(":")
        try:
            code: int = getattr(import_module(module), function)(_with_host(settings_json), *_meters(settings_json))
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return code


class RayMeter(Meter):
    """Metrics on their way to Ray's agent on this node, which Prometheus reads; Ray puts `ray_` before their names."""

    def __init__(self) -> None:
        self._families: dict[str, Counter | Gauge] = {}

    def tell(self, metric: Metric, value: float, *labels: str) -> None:
        family = self._families.get(metric.name)
        if family is None:
            make = Counter if metric.kind == "counter" else Gauge
            family = self._families[metric.name] = make(metric.name, metric.help, metric.labels)
        tags = dict(zip(metric.labels, labels, strict=True))
        if isinstance(family, Gauge):
            family.set(value, tags)
        elif value > 0:
            family.inc(value, tags)


def _meters(settings_json: str) -> list[Meter]:
    """One, if the run has metrics."""
    metrics = json.loads(settings_json).get("metrics", {})
    return [] if metrics.get("port") is None else [RayMeter()]


def process_at(pid: int, start_s: float) -> psutil.Process | None:
    """The process that has begun at `start_s`; None if the pid is another's by now. Raises NoSuchProcess."""
    process = psutil.Process(pid)
    return process if process.create_time() == start_s else None


def kill_process(pid: int, start_s: float) -> None:
    """Kills a process of this host."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = process_at(pid, start_s)
        if process:
            process.kill()


def _reads(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False


def _write_output_to(path: Path) -> None:
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def _with_host(settings_json: str) -> str:
    settings = json.loads(settings_json)
    if settings.get("host") != "":
        return settings_json
    return json.dumps({**settings, "host": ray.util.get_node_ip_address()})  # type: ignore[no-untyped-call]
