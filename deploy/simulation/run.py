"""A run on virtual hosts, from their making to their end; where none can be made, on links that pserver's own streams stand in for."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import psutil

from deploy.config import Config
from deploy.interrupts import interruptible
from deploy.launch.base import module_path
from deploy.launch.hosts import DRIVER, Place
from deploy.simulation.inside import Inside, Outcome, SimulatedTrainer, Told
from deploy.simulation.wishes import Hosts, Wishes, hosts_of, streams_of
from deploy.virtual import quota
from deploy.virtual.cluster import VirtualCluster, check_machine
from deploy.virtual.ray_nodes import RAY_FOLDER, RayNodes
from ps.config import from_json, to_json
from ps.errors import PserverError, ResourcesMissing, Stopped

Launcher = Literal["process", "ray"]
_UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "--net")


def enter_user_namespace() -> None:
    """Where this process may make no namespaces as who it is, begins the same command anew as the root of a user namespace, if it may do that."""
    if os.geteuid() == 0 or shutil.which("unshare") is None:
        return
    if subprocess.run([*_UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True, check=False).returncode:
        return
    again = [sys.executable, "-c", "from deploy.cli.main import main; main()", *sys.argv[1:]]
    os.execvp(_UNSHARE[0], [*_UNSHARE, "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh", *again])


def simulate(config: Config, wishes: Wishes, *, launcher: Launcher = "process", quiet: bool = False) -> Outcome:
    """Trains on the cluster that is wished, which is gone when this returns. An error of the run is in the outcome, Stopped after
    Ctrl-C or SIGTERM. Raises ConfigError and ResourcesMissing for what cannot be made."""
    try:
        check_machine()
    except ResourcesMissing as reason:
        return _in_streams(config, wishes, str(reason), launcher, quiet=quiet)
    private = (RAY_FOLDER,) if launcher == "ray" else ()
    hosts = hosts_of(config, wishes, shm_bytes=psutil.virtual_memory().total // 2, private=private)
    if any(spec.cpus for spec in hosts.specs):
        _check_quotas()
    with interruptible(), VirtualCluster(hosts.specs) as cluster:
        return _on(cluster, hosts, launcher, quiet=quiet)


def _in_streams(config: Config, wishes: Wishes, reason: str, launcher: Launcher, *, quiet: bool) -> Outcome:
    if launcher == "ray":
        raise ResourcesMissing(f"--launcher ray needs virtual hosts, a raylet on each: {reason}")
    config = streams_of(config, wishes)
    words = hosts_of(config, Wishes(), shm_bytes=0).links()
    label = f"simulated WITHOUT virtual hosts, TOKEN BUCKETS in pserver's own streams in place of links: {words}; {reason}"
    trainer = SimulatedTrainer.from_config(config, launcher="process", quiet=quiet)
    trainer.simulated = label
    result = trainer.fit()
    return Outcome(str(result.path), label, result.error)


def _on(cluster: VirtualCluster, hosts: Hosts, launcher: Launcher, *, quiet: bool) -> Outcome:
    if launcher == "process":
        return _child(cluster, _inside(cluster, hosts, launcher, quiet=quiet), {})
    names = [spec.name for spec in hosts.specs]
    there = {name: list(hosts.host_of.values()).count(name) for name in names}
    with RayNodes(cluster, names, cpus=there, timeout_s=60.0 + 10.0 * len(names)) as nodes:
        return _child(cluster, _inside(cluster, hosts, launcher, quiet=quiet, address=nodes.address), nodes.env)


def _inside(cluster: VirtualCluster, hosts: Hosts, launcher: Launcher, *, quiet: bool, address: str | None = None) -> Inside:
    kind = "a raylet on each" if launcher == "ray" else "plain processes"
    where = "network namespaces of a user namespace" if _in_user_namespace() else "network namespaces"
    return Inside(
        config=hosts.config,
        places={spec.name: _place(cluster, spec.name) for spec in hosts.specs},
        host_of=[(key, name) for key, name in hosts.host_of.items()],
        simulated=f"simulated: {hosts} ({where}, {kind}); {hosts.links()}",
        launcher=launcher,
        address=address,
        quiet=quiet,
    )


def _place(cluster: VirtualCluster, host: str) -> Place:
    return Place(cluster.holder_pid(host), cluster.address(host), cluster.cgroup_procs(host))


def _child(cluster: VirtualCluster, inside: Inside, env: dict[str, str]) -> Outcome:
    """The driver of the run is a process on a host of its own; Ctrl-C and SIGTERM are passed on to it."""
    with tempfile.TemporaryFile() as told:  # without a name: nothing is left of it, whoever is killed
        process = cluster.popen(
            DRIVER,
            [sys.executable, "-m", "deploy.simulation.inside", str(told.fileno())],
            env={**env, "PYTHONPATH": os.pathsep.join(module_path())},
            stdin=subprocess.PIPE,
            pass_fds=[told.fileno()],
        )
        assert process.stdin
        process.stdin.write(to_json(inside).encode())
        process.stdin.close()
        was_interrupted = False
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                was_interrupted = True
                process.terminate()
        told.seek(0)
        return _told(told.read(), inside, code, was_interrupted=was_interrupted)


def _told(text: bytes, inside: Inside, code: int, *, was_interrupted: bool) -> Outcome:
    if text:
        return from_json(Told, text).outcome(inside.simulated)
    if was_interrupted:
        return Outcome(None, inside.simulated, Stopped("interrupted before the run had begun"))
    if code < 0:
        return Outcome(None, inside.simulated, Stopped("the simulated run's driver was killed"))
    return Outcome(None, inside.simulated, PserverError(f"the simulated run's driver exited with code {code} before it had told anything"))


def _check_quotas() -> None:
    quotas = quota.find()
    if quotas is None or not os.access(quotas.root, os.W_OK):
        raise ResourcesMissing(
            "CPUs of a host need a cgroup controller `cpu` that this process may write: run as root of a system that has one mounted, "
            "or leave --cpus-per-host and cpus=... out"
        )


def _in_user_namespace() -> bool:
    return Path("/proc/self/uid_map").read_text().split()[:3] != ["0", "0", "4294967295"]
