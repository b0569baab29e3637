"""A host, or the head of Ray, that goes with all its processes: the run ends and says what is lost, and `--resume` gives the bits of
an undisturbed one."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.config import load
from deploy.rundir import RunDirectory
from deploy.virtual.cluster import VirtualCluster
from deploy.virtual.plan import HostSpec
from deploy.virtual.ray_nodes import RAY_FOLDER, RayNodes
from tests.deploy.forked import ForkedTrainer
from tests.deploy.killing import bits_of
from tests.deploy.test_launch_ray_nodes import Done, ended, error_of, run_of
from tests.waiting import until

CONFIG = """
[task]
name = "tests.deploy.held:Held"
[train]
batch_size = 4
epochs = 4
[optimizer]
name = "adam"
[checkpoint]
every_steps = 2
[scaling]
num_workers = 2
num_servers = 1
"""
HOSTS = ["head", "one"]


@dataclass
class Lost:
    """A run of `pserver run` on virtual hosts, whose processes are on host "one", until it has ended by what a test did to it."""

    done: Done
    seconds: float
    """From what was done to the run's end."""
    left: list[str]
    """Commands that still run on the driver's host but for Ray's own, and memory of runs there."""


def disturbed(base: Path, driver_on: str, harm: Callable[[VirtualCluster, RunDirectory], None], *options: str) -> Lost:
    """Held in its middle, harmed, and let go."""
    config, gate, rundir = base / "config.toml", base / "gate", RunDirectory(base / "lost")
    config.write_text(CONFIG)
    gate.touch()
    with ray_on_hosts() as (cluster, nodes):
        sets = [part for option in [*settings(base), *options, 'comm.interface="10.77.0.0/16"'] for part in ("--set", option)]
        run = cluster.popen(driver_on, run_of(config, *sets, "--name", "lost"), env=nodes, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until(lambda: rundir.checkpoints.versions() != [], timeout_s=60)
        harm(cluster, rundir)
        started = time.monotonic()
        done = ended(run)
        seconds = time.monotonic() - started
        left = [line for line in map(command_of, cluster.pids(driver_on)) if "ray::ProcessActor" in line]
        memory = cluster.run(driver_on, ["ls", "/dev/shm"], timeout_s=10).stdout.decode().split()
    gate.unlink()
    return Lost(done, seconds, left + [name for name in memory if name.startswith("pserver-")])


@contextmanager
def ray_on_hosts() -> Iterator[tuple[VirtualCluster, dict[str, str]]]:
    """With the environment of whoever talks to Ray."""
    hosts = [HostSpec(name=name, private=(RAY_FOLDER,)) for name in HOSTS]
    with VirtualCluster(hosts) as cluster, RayNodes(cluster, HOSTS, cpus={"one": 4}, timeout_s=120.0) as nodes:
        yield cluster, {"PYTHONPATH": str(Path(__file__).parents[2]), **nodes.env}


def settings(base: Path) -> list[str]:
    return [f'run.storage_path="{base}"', f'task.gate="{base}/gate"']


def command_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def lose(host: str) -> Callable[[VirtualCluster, RunDirectory], None]:
    def harm(cluster: VirtualCluster, _: RunDirectory) -> None:
        for pid in cluster.pids(host):
            os.kill(pid, signal.SIGKILL)

    return harm


def kill_worker(cluster: VirtualCluster, rundir: RunDirectory) -> None:
    (pid, *_) = [pid for pid in cluster.pids("one") if maps_log(pid, rundir.process_log("worker", 1))]
    os.kill(pid, signal.SIGKILL)


def maps_log(pid: int, log: Path) -> bool:
    """Whether the process writes its output there."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/fd/1").readlink() == log
    return False


def bits(base: Path, name: str, *options: str) -> dict[str, Any]:
    """Of a run of local processes, from the last checkpoint that there is under this name."""
    made = load(base / "config.toml", [*settings(base), *options, f'run.name="{name}"', 'run.resume="auto"'])
    return bits_of(ForkedTrainer.from_config(made, quiet=True).fit())


@pytest.mark.root
@pytest.mark.hosts
@pytest.mark.timeout(200)  # a cluster of Ray, and a run that notices that a host is gone, on a busy machine
def test_a_servers_host_that_is_lost_ends_the_run_which_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    lost = disturbed(tmp_path, "head", lose("one"))
    assert lost.done.returncode == 1
    assert re.search(r"server 0 was lost with its Ray node.*its part of the parameters was in that host's memory", error_of(lost.done))
    assert bits(tmp_path, "lost") == bits(tmp_path, "alone")
    assert "resumed from step " in (tmp_path / "lost" / "logs" / "driver.log").read_text()


@pytest.mark.root
@pytest.mark.hosts
@pytest.mark.timeout(300)  # two clusters of Ray
def test_a_ray_head_that_is_lost_ends_the_run_which_goes_on_in_another_cluster_to_the_same_bits(tmp_path: Path) -> None:
    lost = disturbed(tmp_path, "one", lose("head"))
    assert lost.done.returncode == 1
    assert re.search(r"the Ray head at 10.77.0.1:6379 has not answered for 20 s.*start a cluster again.*--resume", error_of(lost.done))
    assert lost.seconds < 45  # Ray itself ends programs after a minute
    assert lost.left == []
    with ray_on_hosts() as (cluster, env):
        sets = [part for option in [*settings(tmp_path), 'comm.interface="10.77.0.0/16"'] for part in ("--set", option)]
        again = run_of(tmp_path / "config.toml", *sets, "--name", "lost", "--resume")
        done = ended(cluster.popen("head", again, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    assert done.returncode == 0, done.stderr
    resumed, alone = RunDirectory(tmp_path / "lost").read_summary(), bits(tmp_path, "alone")
    assert resumed and resumed["resumed_from"] > 0
    assert (resumed["params_sha256"], resumed["steps"]) == (alone["params"], alone["steps"])


@pytest.mark.root
@pytest.mark.hosts
@pytest.mark.timeout(200)
def test_what_ranks_on_another_host_had_yet_to_send_is_in_the_last_state_saved(tmp_path: Path) -> None:
    int8 = ['comm.push_format="int8"', "failure.max_failures=0"]
    lost = disturbed(tmp_path, "head", kill_worker, *int8)
    assert lost.done.returncode == 1
    assert "worker 1 was killed or has crashed" in error_of(lost.done)
    assert re.search(r"the state of step \d+ is saved", lost.done.stdout)
    assert bits(tmp_path, "lost", *int8) == bits(tmp_path, "alone", *int8)
