"""What the ledger says of bytes on links, beside the counters of the interfaces of virtual hosts."""

import json
import sys
from pathlib import Path

import pytest

from deploy.measure.ledger_file import read_ledger
from deploy.virtual.cluster import VirtualCluster
from deploy.virtual.plan import HostSpec

RUN = """
import json, sys
from benchmarks.hosts import run_in_hosts
from deploy.config import Config, RunConfig, ScalingConfig, TaskConfig
from ps.config import CheckpointConfig, SecurityConfig
from workers.config import TrainConfig

run_in_hosts(
    Config(
        task=TaskConfig(name="workers.tasks.synthetic_mlp:SyntheticMLP", fields=json.loads(sys.argv[2])),
        train=TrainConfig(epochs=1, batch_size=8, max_steps=30, validate_every=99),
        scaling=ScalingConfig(num_workers=1, num_servers=2),
        run=RunConfig(storage_path=sys.argv[1], name="wire"),
        checkpoint=CheckpointConfig(every_epochs=0),
        security=SecurityConfig(allow_plaintext=True),
    ),
    json.loads(sys.argv[3]),
)
"""
HOSTS = ("driver", "worker-0", "server-0", "server-1")


@pytest.mark.root
@pytest.mark.timeout(120)
def test_bytes_on_links_are_those_of_the_interfaces(tmp_path: Path) -> None:
    """Of the worker's, both ways; the rest of each server's interface is what its weights cost that the driver reads at the end."""
    fields = {"inputs": 512, "width": 512, "samples": 512}
    with VirtualCluster([HostSpec(name=name, rate=None if name == "driver" else "500mbit") for name in HOSTS]) as cluster:
        places = {name: (cluster.holder_pid(name), cluster.address(name)) for name in HOSTS}
        done = cluster.run("driver", [sys.executable, "-c", RUN, str(tmp_path), json.dumps(fields), json.dumps(places)], timeout_s=100)
        assert done.returncode == 0, done.stderr.decode()
        text = cluster.run("worker-0", ["ip", "-json", "-stats", "link", "show", "eth0"], timeout_s=5).stdout
    (link,) = json.loads(text)
    sent, received = (link["stats64"][way]["bytes"] for way in ("tx", "rx"))
    traffic = [one for step in read_ledger(tmp_path / "wire" / "comm.jsonl") for row in step.workers for one in row.shards]
    assert sum(one.push_bytes for one in traffic) > 20_000_000
    assert sum(one.push_wire_bytes for one in traffic) == pytest.approx(sent, rel=0.01)
    assert sum(one.pull_wire_bytes for one in traffic) == pytest.approx(received, rel=0.01)
