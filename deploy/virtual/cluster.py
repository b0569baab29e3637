"""A virtual cluster on this machine: makes hosts, runs commands in them, and leaves nothing behind."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from deploy.virtual import quota
from deploy.virtual.owner import Claim, claim
from deploy.virtual.plan import ClusterPlan, Command, HostSpec, enter
from deploy.virtual.remove import pids_in, remove, remove_abandoned
from ps.errors import ResourcesMissing

log = logging.getLogger(__name__)

_TOOLS = ("ip", "tc", "unshare", "nsenter", "mount", "hostname")
Output = IO[bytes] | int | None


class VirtualCluster:
    """Hosts with addresses, links, /dev/shm and CPU quotas of their own, from `with` to its end. Not thread-safe.

    The end of the owner, by `kill -9` too, ends every process in the hosts. Needs root.
    """

    def __init__(self, hosts: Sequence[HostSpec]) -> None:
        self._specs = ClusterPlan(0, tuple(hosts)).hosts
        self._claim: Claim | None = None
        self._undertaker: subprocess.Popen[bytes] | None = None
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._started: list[subprocess.Popen[bytes]] = []
        self._quotas = quota.find()

    def __enter__(self) -> Self:
        check_machine()
        remove_abandoned()
        self._claim = _first_free()
        self.plan = ClusterPlan(self._claim.tag, self._specs)
        try:
            self._undertaker = _undertaker(self._claim.tag)
            for command in self.plan.network():
                _execute(command)
            self._limit_cpus()
            self._hold()
        except BaseException:  # Ctrl-C too leaves no hosts behind
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def address(self, host: str) -> str:
        return self.plan.address(host)

    def holder_pid(self, host: str) -> int:
        """The process through which `deploy.virtual.plan.enter` gets into `host`."""
        return self._holders[host].pid

    def command(self, host: str, argv: Sequence[str], cwd: str | Path | None = None) -> Command:
        """`argv` as a command that runs in `host`, in `cwd` (None: the current folder)."""
        return enter(self.holder_pid(host), argv, str(cwd or Path.cwd()), self.cgroup_procs(host))

    def cgroup_procs(self, host: str) -> str | None:
        """The file to which a process writes its pid to be held to the CPU quota of `host`; None if there is none."""
        limited = self.plan.hosts[self.plan.index(host)].cpus is not None
        return str(self._quotas.procs(self.plan.namespace(host))) if self._quotas and limited else None

    def popen(
        self,
        host: str,
        argv: Sequence[str],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: Output = subprocess.DEVNULL,
        stdout: Output = None,
        stderr: Output = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Starts a process in `host`; its pid is the command's own. `env`: added to this process' environment."""
        env = {**os.environ, **(env or {})}
        command = self.command(host, argv, cwd)
        process = subprocess.Popen(command, env=env, stdin=stdin, stdout=stdout, stderr=stderr, process_group=0, pass_fds=pass_fds)
        self._started.append(process)
        return process

    def run(
        self, host: str, argv: Sequence[str], *, timeout_s: float, cwd: str | Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a command in `host` to its end, with its output captured. Raises TimeoutExpired, having killed it."""
        process = self.popen(host, argv, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except BaseException:  # whatever ends the wait, Ctrl-C too, ends the process
            process.kill()
            process.wait()
            raise
        return subprocess.CompletedProcess(list(argv), process.returncode, output, errors)

    def pids(self, host: str) -> list[int]:
        """All processes in `host`, but for the one that holds it."""
        return [pid for pid in pids_in(self.plan.namespace(host)) if pid != self.holder_pid(host)]

    def close(self) -> None:
        """Idempotent."""
        if self._claim is None:
            return
        try:
            remove(self._claim.tag)
            for process in [*self._started, *self._holders.values()]:
                process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream:
                        stream.close()
        finally:
            self._claim.release()  # before the undertaker wakes, who looks for what has no owner
            self._claim = None
            if self._undertaker and self._undertaker.stdin:
                self._undertaker.stdin.close()
                self._undertaker.wait()

    def _limit_cpus(self) -> None:
        limited = [host for host in self._specs if host.cpus is not None]
        if limited and self._quotas is None:
            log.warning("this system has no CPU quotas (no cgroup controller `cpu`): virtual hosts share all cores")
        for host in limited:
            if self._quotas and host.cpus is not None:
                namespace = self.plan.namespace(host.name)
                self._quotas.folder(namespace).mkdir()
                for path, text in self._quotas.writes(namespace, host.cpus):
                    path.write_text(text)

    def _hold(self) -> None:
        for host in self._specs:
            self._holders[host.name] = subprocess.Popen(
                self.plan.holder(host), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        for name, process in self._holders.items():
            assert process.stdout and process.stderr
            if process.stdout.readline() != b"ready\n":
                raise ResourcesMissing(f"cannot make virtual host {name}: {_text(process.stderr.read())}")


def check_machine() -> None:
    """Raises ResourcesMissing where no virtual cluster can be made."""
    if os.geteuid() != 0:
        raise ResourcesMissing("a virtual cluster needs root (network and mount namespaces): run as root, or shape with comm.bandwidth instead")
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise ResourcesMissing(
            f"a virtual cluster needs {', '.join(missing)}: install iproute2, util-linux and hostname (Debian, Ubuntu: apt-get install)"
        )
    if subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], capture_output=True, check=False).returncode:
        raise ResourcesMissing("a virtual cluster needs leave to make namespaces: start the container with --privileged")


def _first_free() -> Claim:
    tag = 0
    while (found := claim(tag)) is None:
        tag += 1
    return found


def _undertaker(tag: int) -> subprocess.Popen[bytes]:
    """A process that removes the cluster when this one ends without having done so."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.virtual.remove", str(tag)],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )


def _execute(command: Command) -> None:
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise ResourcesMissing(f"`{' '.join(command)}` failed: {_text(done.stderr)}")


def _text(output: bytes) -> str:
    return " ".join(output.decode(errors="replace").split()) or "no output"
