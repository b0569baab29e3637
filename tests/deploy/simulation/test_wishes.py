"""What is wished becomes hosts, processes on them and a config: pure."""

from dataclasses import replace
from typing import Any

import pytest

from deploy.config import Config, ScalingConfig, TaskConfig
from deploy.launch.base import ProcessKey
from deploy.simulation.wishes import Hosts, Wishes, hosts_of, streams_of
from ps.config import CommConfig
from ps.errors import ConfigError
from workers.config import TrainConfig

CONFIG = Config(task=TaskConfig(name="digits"), train=TrainConfig(batch_size=32), scaling=ScalingConfig(num_workers=3, num_servers=2))


def made(config: Config = CONFIG, **wishes: Any) -> Hosts:
    return hosts_of(config, Wishes(**wishes), shm_bytes=1 << 20)


def test_every_process_has_a_host_of_its_own_and_the_drivers_is_not_shaped() -> None:
    hosts = made(bandwidth="1gbit", server_bandwidth="100mbit")
    assert {spec.name: spec.rate for spec in hosts.specs} == {
        "driver": None,
        **{f"worker-{rank}": "1gbit" for rank in range(3)},
        **{f"server-{shard}": "100mbit" for shard in range(2)},
    }
    comm = hosts.config.comm
    assert (comm.bandwidth, comm.server_bandwidth, comm.worker_bandwidth) == ("1gbit", {0: "100mbit", 1: "100mbit"}, {})
    assert comm.shaping == "links" and comm.may_share and comm.bucket_bytes_per_s() is None
    assert f"{hosts}; {hosts.links()}" == "3 workers and 2 servers on 5 hosts; links 1gbit, server-0, server-1 100mbit"


def test_colocated_servers_share_the_workers_hosts_in_turn_and_their_links() -> None:
    config = replace(CONFIG, scaling=ScalingConfig(num_workers=2, num_servers=3))
    hosts = made(config, bandwidth="1gbit", colocate=True, hosts=["worker-0:bandwidth=25mbit,cpus=0.5"])
    assert [hosts.host_of[ProcessKey("server", shard)] for shard in range(3)] == ["worker-0", "worker-1", "worker-0"]
    assert [(spec.name, spec.rate, spec.cpus) for spec in hosts.specs[1:]] == [("worker-0", "25mbit", 0.5), ("worker-1", "1gbit", None)]
    assert hosts.config.comm.worker_bandwidth == {0: "25mbit"} and hosts.config.comm.server_bandwidth == {0: "25mbit", 2: "25mbit"}
    assert hosts.links() == "links 25mbit, worker-1 1gbit; 0.5 CPUs, worker-1 all cores (cgroup quota)"


def test_stages_are_workers_with_hosts_and_links_of_their_own() -> None:
    config = replace(CONFIG, scaling=ScalingConfig(num_workers=2, num_stages=2, num_servers=1))
    hosts = made(config, bandwidth="1gbit", hosts=["worker-3:bandwidth=25mbit"])
    assert list(hosts.host_of.values()) == ["worker-0", "worker-1", "worker-2", "worker-3", "server-0"]
    assert hosts.config.comm.worker_bandwidth == {3: "25mbit"}
    assert str(hosts) == "4 workers (2 ranks x 2 stages) and 1 server on 5 hosts"
    shared = made(replace(config, scaling=replace(config.scaling, num_servers=5)), colocate=True)
    assert [shared.host_of[ProcessKey("server", shard)] for shard in (0, 3, 4)] == ["worker-0", "worker-3", "worker-0"]


def test_latency_and_slow_ranks_are_the_configs() -> None:
    hosts = made(latency="2ms", stragglers=["rank=2,factor=1.5"])
    assert hosts.config.comm.latency_s == 0.002 and hosts.config.scaling.slowdown == {2: 1.5}
    assert "2ms more one way, by frames that wait in pserver's own streams (no netem)" in hosts.links()
    assert "rank 2 computes 1.5 times as long" in hosts.links()


def test_what_the_config_says_of_links_holds_where_nothing_else_is_wished() -> None:
    config = replace(CONFIG, comm=CommConfig(bandwidth="10mbit", server_bandwidth={1: "5mbit"}))
    assert [spec.rate for spec in made(config).specs] == [None, "10mbit", "10mbit", "10mbit", "10mbit", "5mbit"]


def test_without_hosts_streams_keep_to_the_rates_and_nothing_bypasses_them() -> None:
    comm = streams_of(CONFIG, Wishes(bandwidth="1gbit", latency="2ms", hosts=["worker-1:bandwidth=25mbit"])).comm
    assert comm.bucket_bytes_per_s(worker=1) == 25e6 / 8 and comm.bucket_bytes_per_s(0) == 1e9 / 8
    assert not comm.may_share


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"bandwidth": "fast"}, "comm.bandwidth: 'fast' is no rate"),
        ({"latency": "2"}, "comm.latency: '2' is no time: write a number and us, ms or s"),
        ({"stragglers": ["rank=3,factor=2"]}, "scaling.slowdown.3 names no rank"),
        ({"stragglers": ["3"]}, "'3' is no straggler: for example rank=2,factor=1.5"),
        ({"hosts": ["server-2:cpus=1"]}, "'server-2' is no host of this simulation: server-0, server-1, worker-0"),
        ({"hosts": ["server-1"]}, "'' is no setting of a host: for example worker-1:bandwidth=25mbit,cpus=0.5"),
        ({"hosts": ["server-1:cpus=two"]}, "'cpus=two' is no setting of a host"),
        ({"hosts": ["server-1:cpus=0"]}, "cpus of host server-1 = 0.0 is out of range"),
        ({"hosts": ["server-1:bandwidth=x"]}, "'x' is no rate"),
        ({"colocate": True, "server_bandwidth": "1gbit"}, "servers have no links of their own there"),
    ],
)
def test_what_cannot_be_simulated_is_refused_in_one_line(wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        made(**wishes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("wishes", [{"colocate": True}, {"cpus": 0.5}, {"hosts": ["worker-0:cpus=1"]}])
def test_what_needs_hosts_is_refused_without_them(wishes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="need virtual hosts: run as root, or leave them out"):
        streams_of(CONFIG, Wishes(**wishes))
