"""Actors of a Ray cluster."""

import atexit
import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from deploy.interrupts import uninterrupted
from deploy.launch.base import Ending, LogPath, ProcessKey, Role, last_words, module_path
from deploy.launch.code import as_on_nodes
from deploy.launch.fit import HOST_SHARE, check_fit, host_resource, placement
from deploy.launch.ray_cluster import RayCluster
from deploy.launch.ray_errors import death, lost_node
from deploy.launch.ray_nodes import alive_nodes, as_text, on_node
from deploy.launch.storage import SharedStorage
from ps.errors import ResourcesMissing
from ps.frame import Bytes
from ps.segments import read_segment
from workers.ray_actor import Place, ProcessActor, kill_process, process_at

log = logging.getLogger(__name__)

TARGETS: Mapping[Role, str] = {"server": "ps.server:serve", "worker": "workers.worker:work"}
READ_S = 20.0
"""Until the memory of a dead process on another host has come."""
KILL_WAIT_S = 2.0
"""Until an actor killed through Ray is gone; a stopped process never obeys Ray and is then killed by pid."""


class RayLauncher:
    """One actor per process of the Ray at `address` (`RayCluster`), in placement groups: workers as the strategy says, servers apart.
    Not thread-safe."""

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
        hosts: Mapping[ProcessKey, str] | None = None,
        code: Path | None = None,
        shared_storage: bool = True,
        say: Callable[[str], None] | None = None,
        timeout_s: float = 10.0,
        targets: Mapping[Role, str] = TARGETS,
    ) -> None:
        """`hosts`: nodes that have a resource of their name (`host_resource`), for each process. `code`: folder of the user's code, which travels to
        the nodes of a given cluster. `shared_storage`: whether all nodes must
        see the folder of the logs. `say`: shows a line to the user.
        `timeout_s`: until others must have freed what fits into the cluster but is in use."""
        self._cluster = RayCluster(address, code, timeout_s)
        self._log_path = log_path
        self._storage = SharedStorage(log_path(ProcessKey("worker", 0)).absolute().parents[2], shared=shared_storage)
        self._say = say
        per_worker = {"CPU": 1.0, **({"GPU": 1.0} if use_gpu else {}), **(resources_per_worker or {})}
        self._bundles = {ProcessKey("worker", rank): dict(per_worker) for rank in range(num_workers)}
        self._bundles |= {ProcessKey("server", shard): {"CPU": 1.0} for shard in range(num_servers)}
        for key, host in (hosts or {}).items():
            self._bundles[key][host_resource(host)] = HOST_SHARE
        self._strategy = placement_strategy
        self._timeout_s = timeout_s
        self._targets = targets
        self._groups: list[PlacementGroup] = []
        self._bundle_of: dict[ProcessKey, tuple[PlacementGroup, int]] = {}
        self._actors: dict[ProcessKey, Any] = {}
        self._places: dict[ProcessKey, Any] = {}  # refs of Place
        self._runs: dict[ProcessKey, Any] = {}  # refs of exit codes
        self._ended: dict[ProcessKey, Ending] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop(0.0)

    def check(self) -> None:
        bundles = list(self._bundles.values())
        num_cpus = math.ceil(sum(bundle.get("CPU", 0) for bundle in bundles))  # logical: the operating system shares the cores
        self._cluster.connect(num_cpus, not_code=self._storage.folder)
        for keys, strategy in placement(list(self._bundles), self._strategy):
            check_fit([self._bundles[key] for key in keys], alive_nodes(), strategy)
        check_fit(bundles, alive_nodes(), "STRICT_PACK" if self._strategy == "STRICT_PACK" else "PACK")
        if not self._groups:
            self._make_groups()
        deadline = time.monotonic() + self._timeout_s
        if not all(group.wait(max(0.0, deadline - time.monotonic())) for group in self._groups):
            free = as_text(ray.available_resources())  # type: ignore[no-untyped-call]
            raise ResourcesMissing(
                f"the Ray cluster is busy: its nodes have room for {len(bundles)} actors, but others use it "
                f"(free: {free}): wait for them to end, or lower scaling.num_workers or scaling.num_servers"
            )

    def control_host(self) -> str:
        return "127.0.0.1" if self._cluster.is_alone else str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]

    def bind_host(self, key: ProcessKey) -> str:
        return "127.0.0.1" if self._cluster.is_alone else ""

    def _make_groups(self) -> None:
        for keys, strategy in placement(list(self._bundles), self._strategy):
            group = placement_group([self._bundles[key] for key in keys], strategy=strategy)
            self._groups.append(group)
            self._bundle_of |= {key: (group, index) for index, key in enumerate(keys)}

    def start(self, key: ProcessKey, settings_json: str) -> None:
        assert self._groups, "check() comes first"
        bundle = self._bundles[key]
        group, index = self._bundle_of[key]
        actor = ray.remote(ProcessActor).options(
            num_cpus=bundle.get("CPU", 0),
            num_gpus=bundle.get("GPU", 0),
            resources={name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU")},
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, index),
        )
        self._ended.pop(key, None)
        path = self._log_path(key).absolute()
        self._actors[key] = actor.remote(module_path(), str(self._storage.write_probe(path.parent)), self._storage.probe)
        self._places[key] = self._actors[key].place.remote()
        settings = as_on_nodes(settings_json, self._cluster.code_root)
        self._runs[key] = self._actors[key].run.remote(self._places[key], self._targets[key.role], settings, str(path), self._storage.shared)

    def ended(self) -> dict[ProcessKey, Ending]:
        """Raises HeadLost when the head of the cluster is lost. Until that is sure, Ray is asked nothing."""
        if not self._cluster.answers():
            return dict(self._ended)
        running = {ref: key for key, ref in self._runs.items() if key not in self._ended}
        if running:
            done, _ = ray.wait(list(running), num_returns=len(running), timeout=0)
            for ref in done:
                if not self._storage.refuses(self._place(running[ref])):
                    self._ended[running[ref]] = self._ending(running[ref])
        self._check_storage()
        return dict(self._ended)

    def kill(self, key: ProcessKey) -> None:
        if key in self._actors and key not in self._ended and self._cluster.answers():
            place = self._place(key)
            ray.kill(self._actors[key])
            if place and (process := self._process(key)):
                _kill([process])
            elif place:  # a stopped process does not obey Ray
                on_node(place.node_id, kill_process, place.pid, place.start_s)

    def cpu_s(self, key: ProcessKey) -> float | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = self._process(key)
            return sum(process.cpu_times()[:2]) if process else None
        return None

    def memory_of(self, key: ProcessKey, name: str) -> Bytes | None:
        place = self._place(key)
        if place is None:
            return None
        if place.node_id == ray.get_runtime_context().get_node_id():
            return read_segment(name)
        try:
            memory = ray.get(on_node(place.node_id, read_segment, name), timeout=READ_S)
        except RayError as error:
            log.warning("%s: %s", place.host, error)
            return None
        return None if memory is None else np.array(memory)  # Ray's own copy cannot be written

    def stop(self, grace_s: float) -> None:
        self._storage.close()
        if not ray.is_initialized():
            return
        if not self._cluster.leave_head():
            self._leave()
            return
        try:
            if self._runs:
                ray.wait(list(self._runs.values()), num_returns=len(self._runs), timeout=grace_s)
                self.ended()
        finally:  # a second Ctrl-C ends the wait, not the killing
            with uninterrupted():
                self._kill_actors()
                for group in self._groups:
                    remove_placement_group(group)
                self._groups.clear()
                self._cluster.close()

    def _leave(self) -> None:
        """Without the head, calls to Ray would hang: what is here is killed; other nodes end what they have when they miss the head."""
        atexit.unregister(ray.shutdown)
        _kill([process for key in self._actors if (process := self._process(key))])
        self._forget()

    def _ending(self, key: ProcessKey) -> Ending:
        words = last_words(self._log_path(key))
        try:
            code = ray.get(self._runs[key])
        except RayActorError as error:
            reason = death(str(error), init_failed=error.actor_init_failed)
            if error.actor_init_failed:
                return Ending(1, reason, words)
            return Ending(None, reason + self._where(key), words, lost_host=lost_node(str(error)))
        except RayTaskError as error:
            return Ending(1, f"raised {type(error.cause).__name__}: {error.cause}", words)
        return Ending(code, "ended normally" if code == 0 else f"exited with code {code}", words)

    def _where(self, key: ProcessKey) -> str:
        """Continues a sentence about a process of a cluster with several nodes."""
        place = self._place(key)
        if place is None or self._cluster.is_alone:
            return ""
        return f" on {place.host}" + ("" if place.sees_run else f" (`ray logs actor --id {place.actor_id}` has its log)")

    def _check_storage(self) -> None:
        if set(self._places) == set(self._bundles) and (text := self._storage.check([self._place(key) for key in self._places])) and self._say:
            self._say(text)

    def _kill_actors(self) -> None:
        here = [process for key in self._actors if (process := self._process(key))]
        for key, actor in self._actors.items():
            ray.kill(actor)
            self._ended.setdefault(key, Ending(None, "was killed by the launcher", last_words(self._log_path(key))))
        _, alive = psutil.wait_procs(here, KILL_WAIT_S)
        _kill(alive)
        self._forget()

    def _forget(self) -> None:
        self._actors.clear()
        self._places.clear()
        self._runs.clear()

    def _process(self, key: ProcessKey) -> psutil.Process | None:
        """The process of an actor on this host; None if it is elsewhere, gone, or not yet there."""
        place = self._place(key)
        if place and place.node_id == ray.get_runtime_context().get_node_id():
            with contextlib.suppress(psutil.NoSuchProcess):
                return process_at(place.pid, place.start_s)
        return None

    def _place(self, key: ProcessKey) -> Place | None:
        """None while it is not known, or if the actor has never started."""
        ready, _ = ray.wait([self._places[key]], timeout=0)
        with contextlib.suppress(RayActorError, RayTaskError):
            if ready:
                place: Place = ray.get(ready[0])
                return place
        return None


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, KILL_WAIT_S)
