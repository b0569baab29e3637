"""Actors of a Ray cluster: a given one, or a local one that lives as long as the launcher."""

import contextlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import psutil
import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from deploy.launch.base import Ending, LogPath, ProcessKey, Role, last_words, module_path
from deploy.launch.fit import Resources, check_fit
from ps.errors import ConfigError, ResourcesMissing, Unreachable
from workers.ray_actor import Place, ProcessActor

TARGETS: Mapping[Role, str] = {"server": "ps.server:serve", "worker": "workers.worker:work"}
KILL_WAIT_S = 2.0
"""Until an actor killed through Ray is gone; a stopped process never obeys Ray and is then killed by pid."""


class RayLauncher:
    """One actor per process, all in one placement group. Not thread-safe.

    Uses a Ray that the program has initialised already, else the cluster at `address` (or RAY_ADDRESS),
    else starts a local one and shuts it down in `stop`.
    """

    def __init__(
        self,
        log_path: LogPath,
        *,
        num_workers: int,
        num_servers: int,
        address: str | None = None,
        use_gpu: bool = False,
        resources_per_worker: Mapping[str, float] | None = None,
        placement_strategy: str = "PACK",
        timeout_s: float = 10.0,
        targets: Mapping[Role, str] = TARGETS,
    ) -> None:
        """`timeout_s`: until others must have freed what fits into the cluster but is in use."""
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        if self._address.startswith("ray://"):
            raise ConfigError(
                f"{self._address}: the driver must run inside the cluster: use `ray job submit -- pserver run CONFIG.toml`, "
                "or give the address of a cluster node without ray://"
            )
        self._log_path = log_path
        per_worker = {"CPU": 1.0, **({"GPU": 1.0} if use_gpu else {}), **(resources_per_worker or {})}
        self._bundles = {ProcessKey("worker", rank): dict(per_worker) for rank in range(num_workers)}
        self._bundles |= {ProcessKey("server", shard): {"CPU": 1.0} for shard in range(num_servers)}
        self._strategy = placement_strategy
        self._timeout_s = timeout_s
        self._targets = targets
        self._owns_ray = False
        self._group: PlacementGroup | None = None
        self._actors: dict[ProcessKey, Any] = {}
        self._places: dict[ProcessKey, Any] = {}  # refs of Place
        self._runs: dict[ProcessKey, Any] = {}  # refs of exit codes
        self._ended: dict[ProcessKey, Ending] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop(0.0)

    def check(self) -> None:
        self._connect()
        bundles = list(self._bundles.values())
        check_fit(bundles, _nodes(), self._strategy)
        if self._group is None:
            self._group = placement_group(bundles, strategy=self._strategy)
        if not self._group.wait(self._timeout_s):
            free = _text(ray.available_resources())  # type: ignore[no-untyped-call]
            raise ResourcesMissing(
                f"the Ray cluster is busy: its nodes have room for {len(bundles)} actors, but others use it "
                f"(free: {free}): wait for them to end, or lower scaling.num_workers or scaling.num_servers"
            )

    def control_host(self) -> str:
        return "127.0.0.1" if len(_nodes()) == 1 else str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]

    def bind_host(self, key: ProcessKey) -> str:
        return "127.0.0.1" if len(_nodes()) == 1 else ""

    def start(self, key: ProcessKey, settings_json: str) -> None:
        assert self._group is not None, "check() comes first"
        bundle = self._bundles[key]
        actor = ray.remote(ProcessActor).options(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            resources={name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU")},
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, list(self._bundles).index(key)),
        )
        path = self._log_path(key).absolute()
        self._actors[key] = actor.remote(module_path())
        self._places[key] = self._actors[key].place.remote()
        self._runs[key] = self._actors[key].run.remote(self._targets[key.role], settings_json, str(path))

    def ended(self) -> dict[ProcessKey, Ending]:
        running = {ref: key for key, ref in self._runs.items() if key not in self._ended}
        if running:
            done, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
            for ref in done:
                self._ended[running[ref]] = self._ending(running[ref])
        return dict(self._ended)

    def stop(self, grace_s: float) -> None:
        if not ray.is_initialized():
            return
        try:
            if self._runs:
                ray.wait(list(self._runs.values()), num_returns=len(self._runs), timeout=grace_s)
                self.ended()
        finally:  # a second Ctrl-C ends the wait, not the killing
            self._kill_actors()
            if self._group is not None:
                remove_placement_group(self._group)
                self._group = None
            if self._owns_ray:
                ray.shutdown()
                self._owns_ray = False

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        local = self._address == "local"
        if not local and self._address != "auto":
            require_listener(self._address, self._timeout_s)
        num_cpus = sum(bundle.get("CPU", 0) for bundle in self._bundles.values())
        with _quiet_init():
            try:
                ray.init(
                    self._address,
                    num_cpus=math.ceil(num_cpus) if local else None,  # logical: the operating system shares the cores
                    include_dashboard=False if local else None,
                    log_to_driver=False,
                    configure_logging=False,
                )
            except ConnectionError as error:
                raise _no_cluster(self._address) from error
        self._owns_ray = True

    def _ending(self, key: ProcessKey) -> Ending:
        words = last_words(self._log_path(key))
        try:
            code = ray.get(self._runs[key])
        except RayActorError as error:
            return Ending(None, _cause(error), words)
        except RayTaskError as error:
            return Ending(1, f"raised {type(error.cause).__name__}: {error.cause}", words)
        return Ending(code, "ended normally" if code == 0 else f"exited with code {code}", words)

    def _kill_actors(self) -> None:
        here = [process for key in self._actors if (process := self._process(key))]
        for key, actor in self._actors.items():
            ray.kill(actor)
            self._ended.setdefault(key, Ending(None, "was killed by the launcher", last_words(self._log_path(key))))
        _, alive = psutil.wait_procs(here, KILL_WAIT_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, KILL_WAIT_S)
        self._actors.clear()
        self._places.clear()
        self._runs.clear()

    def _process(self, key: ProcessKey) -> psutil.Process | None:
        """The process of an actor on this host; None if it is elsewhere, gone, or not yet there."""
        ready, _ = ray.wait([self._places[key]], timeout=0)
        with contextlib.suppress(RayActorError, RayTaskError, psutil.NoSuchProcess):
            if ready:
                place: Place = ray.get(ready[0])
                process = psutil.Process(place.pid)
                if place.node_id == ray.get_runtime_context().get_node_id() and process.create_time() == place.start_s:
                    return process
        return None


def require_listener(address: str, timeout_s: float) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"{address!r} is no address of a Ray cluster: write HOST:PORT, for example 10.0.0.1:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address) from error


def _no_cluster(address: str) -> Unreachable:
    return Unreachable(f"no Ray cluster answers at {address}: start one there (`ray start --head`), or leave out the address for a local one")


def _nodes() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _text(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items()) if name in ("CPU", "GPU")) or "nothing"


def _cause(error: RayActorError) -> str:
    """Ray cannot tell the signal that ended a process, only that its connection broke."""
    message = str(error)
    if error.actor_init_failed:
        return f"could not start: {message.strip().splitlines()[-1]}"
    if "node running low on memory" in message:
        return "was killed by Ray because its host ran out of memory"
    if "node has died" in message or "node was terminated" in message:
        return "was lost with its Ray node"
    return "was killed or has crashed"


@contextlib.contextmanager
def _quiet_init() -> Iterator[None]:
    """Keeps Ray's advice off the console, and the program's own handling of SIGTERM."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        logger.setLevel(level)
        if in_main:
            signal.signal(signal.SIGTERM, handler)
