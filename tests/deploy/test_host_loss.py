"""A host that goes with all its processes: the run ends and says what is lost, and `--resume` gives the bits of an undisturbed one."""

import os
import re
import signal
import subprocess
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
from tests.deploy.test_launch_ray_nodes import ended, error_of, pserver
from tests.deploy.waiting import until

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


@pytest.mark.root
@pytest.mark.hosts
@pytest.mark.timeout(200)  # a cluster of Ray, and a run that notices that a host is gone, on a busy machine
def test_a_servers_host_that_is_lost_ends_the_run_which_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config, gate, lost = tmp_path / "config.toml", tmp_path / "gate", RunDirectory(tmp_path / "lost")
    config.write_text(CONFIG)
    options = [f'run.storage_path="{tmp_path}"', f'task.gate="{gate}"']
    gate.touch()
    hosts = [HostSpec(name=name, private=(RAY_FOLDER,)) for name in HOSTS]
    with VirtualCluster(hosts) as cluster, RayNodes(cluster, HOSTS, cpus={"one": 4}, timeout_s=120.0) as nodes:
        env = {"PYTHONPATH": str(Path(__file__).parents[2]), **nodes.env}
        sets = [part for option in [*options, 'comm.interface="10.77.0.0/16"'] for part in ("--set", option)]
        run = cluster.popen("head", pserver(config, *sets, "--name", "lost"), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        until(lambda: lost.checkpoint_versions() != [], timeout_s=60)
        for pid in cluster.pids("one"):
            os.kill(pid, signal.SIGKILL)
        done = ended(run)
    gate.unlink()
    assert done.returncode == 1
    assert re.search(r"server 0 was lost with its Ray node.*its part of the parameters was in that host's memory", error_of(done))

    def bits(name: str) -> dict[str, Any]:
        """Of a run of local processes, from the last checkpoint that there is under this name."""
        settings = load(config, [*options, f'run.name="{name}"', 'run.resume="auto"'])
        return bits_of(ForkedTrainer.from_config(settings, quiet=True).fit())

    assert bits("lost") == bits("alone")
    assert "resumed from step " in (lost.path / "logs" / "driver.log").read_text()
