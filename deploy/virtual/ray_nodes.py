"""A Ray cluster on virtual hosts: one raylet per host, the head first, every call to Ray with a token."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from tempfile import mkstemp
from types import TracebackType
from typing import IO, Self

from deploy.launch.fit import host_resource
from deploy.virtual.cluster import VirtualCluster
from ps.errors import ResourcesMissing

PORT = 6379
RAY_FOLDER = "/tmp/ray"
"""Ray's sockets and logs: must be among `HostSpec.private`, or the nodes take each other's."""
_OBJECT_STORE_BYTES = 80 << 20


@dataclass(frozen=True)
class _Start:
    host: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]


@dataclass
class RayNodes:
    """Ray on `hosts` of a cluster, the first one its head, from `with` to its end."""

    cluster: VirtualCluster
    hosts: Sequence[str]
    cpus: Mapping[str, int] = field(default_factory=dict)
    """Logical CPUs by host; others have 2, the head 0."""
    timeout_s: float = 60.0
    """Until all nodes have joined."""
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    """Wanted by Ray for every call."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        try:
            deadline = time.monotonic() + self.timeout_s
            self._wait([self._start(self.hosts[0], ["--head", f"--port={PORT}", "--include-dashboard=false"], 0)], deadline)
            self._wait([self._start(host, [f"--address={self.address}"], 2) for host in self.hosts[1:]], deadline)
        except BaseException:  # Ctrl-C too leaves no file open
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @property
    def address(self) -> str:
        """What `pserver run --address` wants."""
        return f"{self.cluster.address(self.hosts[0])}:{PORT}"

    @property
    def env(self) -> dict[str, str]:
        """Environment of whoever talks to this Ray."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": self.address}

    def _start(self, host: str, options: Sequence[str], cpus: int) -> _Start:
        file, path = mkstemp(prefix="pserver-ray-")
        os.unlink(path)
        log = self._stack.enter_context(os.fdopen(file, "r+b"))
        argv = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", *options),
            f"--node-ip-address={self.cluster.address(host)}",
            f"--num-cpus={self.cpus.get(host, cpus)}",
            f"--resources={json.dumps({host_resource(host): 1})}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}",
            "--disable-usage-stats",
        ]
        env = {**self.env, "RAY_ADDRESS": ""}
        return _Start(host, self.cluster.popen(host, argv, cwd="/", env=env, stdout=log, stderr=subprocess.STDOUT), log)

    def _wait(self, starts: Sequence[_Start], deadline: float) -> None:
        """`ray start` ends when its node stands; the node itself lives on in the host."""
        for start in starts:
            with contextlib.suppress(subprocess.TimeoutExpired):
                start.process.wait(max(0.0, deadline - time.monotonic()))
            if start.process.returncode != 0:
                start.log.seek(0)
                words = " ".join(start.log.read().decode(errors="replace").split())[-400:]
                raise ResourcesMissing(f"Ray does not start on virtual host {start.host} within {self.timeout_s:g} s: {words or 'no output'}")
