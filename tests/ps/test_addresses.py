"""Where processes listen, and what they run with."""

import socket

import psutil
import pytest

from ps.addresses import listen_host, parse_ports
from ps.config import CommConfig, SecurityConfig, ServerSettings
from ps.control import Control, Failure, Machine
from ps.errors import ConfigError, ModelMismatch
from ps.security import RunGuard
from ps.server import Server
from ps.transport.rpc import bind_within, new_server
from tests.ports import free_ports

LOOPBACK = next(name for name, own in psutil.net_if_addrs().items() if any(a.address == "127.0.0.1" for a in own))


@pytest.mark.parametrize("interface", [LOOPBACK, "127.0.0.1", "127.0.0.0/8", "127.0.0.1/30"])
def test_an_interface_an_address_or_a_network_names_where_to_listen(interface: str) -> None:
    assert listen_host("10.0.0.1", interface) == "127.0.0.1"


def test_without_interface_the_host_stays() -> None:
    assert listen_host("10.0.0.1", None) == "10.0.0.1"


@pytest.mark.parametrize("interface", ["nosuch0", "203.0.113.7", "203.0.113.0/24"])
def test_what_this_host_does_not_have_is_named_with_what_it_has(interface: str) -> None:
    with pytest.raises(ConfigError, match=rf'comm.interface = "{interface}" is not there on host {socket.gethostname()}.*{LOOPBACK} 127.0.0.1'):
        listen_host("127.0.0.1", interface)


@pytest.mark.parametrize("keys", [{"interface": ""}, {"interface": "10.0.0.300"}, {"interface": "10.0.0.0/40"}])
def test_what_can_be_no_interface_is_refused(keys: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"comm.interface = .*10.1.0.0/16"):
        CommConfig(**keys)


@pytest.mark.parametrize("text", ["20000", "20100-20000", "80-90", "20000-70000", "a-b", ""])
def test_what_is_no_range_of_ports_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'comm.port_range: .*"20000-20100"'):
        CommConfig(port_range=text)


def test_a_range_holds_both_ends() -> None:
    assert list(parse_ports("20000-20002")) == [20000, 20001, 20002]


def test_the_first_free_port_of_the_range_is_taken_and_a_full_one_named() -> None:
    ports = free_ports(2)
    servers = [new_server("test", RunGuard("run", "token"), num_roles=1) for _ in range(3)]
    try:
        assert [bind_within(server, "127.0.0.1", ports, None) for server in servers[:2]] == list(ports)
        with pytest.raises(ConfigError, match=rf"no port of comm.port_range = {ports[0]}-{ports[-1]} is free on 127.0.0.1: widen it"):
            bind_within(servers[2], "127.0.0.1", ports, None)
    finally:
        for server in servers:
            server.stop(0).wait()


def test_a_server_listens_on_the_interface_and_in_the_range() -> None:
    ports = free_ports(4)
    comm = CommConfig(interface=LOOPBACK, port_range=f"{ports[0]}-{ports[-1]}")
    server = Server(ServerSettings(run_id="r", secret="t", shard=0, num_servers=1, num_workers=1, host="10.255.0.1", comm=comm))
    try:
        assert server.data_address == f"127.0.0.1:{ports[0]}" and server.control_address == f"127.0.0.1:{ports[1]}"
    finally:
        server.stop(0)


def test_an_interface_off_loopback_still_needs_leave_for_plaintext() -> None:
    outside = [a.address for own in psutil.net_if_addrs().values() for a in own if a.family == socket.AF_INET and not a.address.startswith("127.")]
    if not outside:
        pytest.skip("this host has the loopback interface only")
    settings = ServerSettings(
        run_id="r", secret="t", shard=0, num_servers=1, num_workers=1, comm=CommConfig(interface=outside[0]), security=SecurityConfig()
    )
    with pytest.raises(ConfigError, match="allow_plaintext"):
        Server(settings)


def machine(host: str, **versions: str) -> Machine:
    return Machine(host, {"pserver": "0.1.0", "torch": "2.13.0", "python": "3.11", **versions})


def test_other_versions_are_refused_with_both_hosts_named() -> None:
    control = Control(num_workers=2, num_servers=1)
    control.register("server", 0, machine=machine("node-a"))
    control.register("worker", 0, machine=machine("node-b"))
    with pytest.raises(ModelMismatch, match=r"^rank 1 on node-c has torch 2\.8\.0, server 0 on node-a has 2\.13\.0: install the same torch"):
        control.register("worker", 1, machine=machine("node-c", torch="2.8.0"))
    assert control.failure is not None
    assert (control.failure.worker, control.failure.error_type) == (1, "ModelMismatch")
    assert ("worker", 1) not in control.incarnations


def test_a_server_with_another_version_fails_the_run_too() -> None:
    control = Control(num_workers=1, num_servers=2)
    control.register("server", 0, machine=machine("node-a"))
    with pytest.raises(ModelMismatch, match="server 1 on node-b has python 3.12"):
        control.register("server", 1, machine=machine("node-b", python="3.12"))
    assert control.failure is not None and control.failure.worker is None


@pytest.mark.parametrize(("hosts", "text"), [(("a", "b"), "rank 1 on b: no data"), (("a", "a"), "no data")])
def test_a_failure_names_the_host_where_there_are_several(hosts: tuple[str, str], text: str) -> None:
    control = Control(num_workers=2, num_servers=1)
    for rank, host in enumerate(hosts):
        control.register("worker", rank, machine=machine(host))
    control.fail(Failure(1, "WorkerFailed", "no data", "trace"))
    assert control.failure is not None and control.failure.error == text
