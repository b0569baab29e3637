"""Virtual clusters: what they are made of, that hosts are apart, and that nothing stays."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.virtual import owner, quota
from deploy.virtual.cluster import VirtualCluster, check_machine
from deploy.virtual.plan import ClusterPlan, HostSpec
from deploy.virtual.remove import NAMESPACES, pids_in, remove_abandoned
from ps.errors import ResourcesMissing
from tests.deploy.conftest import gone
from tests.waiting import until

PYTHON = sys.executable


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "A_b"}, "no name of a host"),
        ({"name": "a", "rate": "fast"}, "no rate"),
        ({"name": "a", "cpus": 0.0}, "cpus of host a = 0.0 is out of range"),
    ],
)
def test_a_host_that_cannot_be_made_is_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HostSpec(**keys)  # type: ignore[arg-type]


def test_hosts_have_different_names() -> None:
    with pytest.raises(ValueError, match="different names: a, a"):
        ClusterPlan(0, (HostSpec(name="a"), HostSpec(name="a")))


def test_every_name_carries_the_owners_tag_and_every_host_an_address_of_its_own() -> None:
    plan = ClusterPlan(7, (HostSpec(name="a"), HostSpec(name="b-1")))
    assert [owner.owner_of(name) for name in (plan.switch, plan.namespace("a"), plan.namespace("b-1"))] == [7, 7, 7]
    assert [owner.owner_of(name) for name in ("pserver", "pserver-x", "pserver-x-1", "my-pserver-7")] == [None] * 4
    assert len({plan.address("a"), plan.address("b-1")}) == 2
    with pytest.raises(KeyError, match="c is no host of this cluster: a, b-1"):
        plan.address("c")


def test_a_rate_shapes_both_directions_of_the_link() -> None:
    plan = ClusterPlan(0, (HostSpec(name="a", rate="50mbit"), HostSpec(name="b")))
    shaped = [(command[2], command[6]) for command in plan.network() if command[0] == "tc" and "50000000bit" in command]
    assert shaped == [("pserver-0-a", "eth0"), ("pserver-0", "port0")]


def test_cpu_quotas_are_written_as_either_version_wants_them(tmp_path: Path) -> None:
    assert quota.find(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").touch()
    one = quota.find(tmp_path)
    assert one is not None and one.writes("n", 0.5)[-1] == (tmp_path / "cpu" / "n" / "cpu.cfs_quota_us", "50000")
    (tmp_path / "cgroup.controllers").write_text("memory cpu\n")
    two = quota.find(tmp_path)
    assert two is not None and two.writes("n", 2)[-1] == (tmp_path / "n" / "cpu.max", "200000 100000")


def test_a_tag_has_one_owner_at_a_time_and_leaves_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    first = owner.claim(0, folder)
    assert first is not None
    assert owner.claim(0, folder) is None
    assert list(owner.known_tags(folder)) == [0]
    first.release()
    second = owner.claim(0, folder)
    assert second is not None
    second.release()
    assert not folder.exists()


def test_a_killed_owner_owns_nothing(tmp_path: Path) -> None:
    program = "import sys, pathlib, deploy.virtual.owner as o; c = o.claim(3, pathlib.Path(sys.argv[1])); print(c.tag, flush=True); input()"
    with subprocess.Popen([PYTHON, "-c", program, str(tmp_path / "locks")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"3\n"
        assert owner.claim(3, tmp_path / "locks") is None
        process.kill()
    after = owner.claim(3, tmp_path / "locks")
    assert after is not None
    after.release()


@pytest.mark.skipif(os.geteuid() == 0, reason="only others are refused")
def test_without_root_the_remedy_is_named() -> None:
    with pytest.raises(ResourcesMissing, match="needs root"):
        check_machine()


# -- as root --------------------------------------------------------------------------------------------------

SEND = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 7000)) as s:
    start = time.monotonic()
    s.sendall(bytes(int(sys.argv[2])))
    s.shutdown(socket.SHUT_WR)
    s.recv(1)
    print(time.monotonic() - start, s.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\\0").decode())
"""
RECEIVE = """
import socket
with socket.create_server(("", 7000)) as listener:
    print("up", flush=True)
    connection, _ = listener.accept()
    with connection:
        while connection.recv(1 << 20):
            pass
        print(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\\0").decode())
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualCluster]:
    hidden = tmp_path_factory.mktemp("hidden")
    (hidden / "file").touch()
    hosts = [
        HostSpec(name="thin", rate="20mbit"),
        HostSpec(name="wide", shm_bytes=8 << 20, private=(str(hidden),)),
        HostSpec(name="slow", cpus=0.2),
    ]
    with VirtualCluster(hosts) as made:
        yield made


def out(cluster: VirtualCluster, host: str, *argv: str) -> str:
    done = cluster.run(host, argv, timeout_s=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


@pytest.mark.root
def test_a_host_has_a_name_a_network_and_memory_of_its_own(cluster: VirtualCluster) -> None:
    assert out(cluster, "wide", "hostname") == "wide"
    assert out(cluster, "thin", PYTHON, "-c", "import socket; print(socket.gethostbyname('wide'))") == cluster.address("wide")
    assert out(cluster, "wide", "stat", "-f", "-c", "%b %S", "/dev/shm") == f"{(8 << 20) // 4096} 4096"
    out(cluster, "wide", "touch", "/dev/shm/mine")
    assert out(cluster, "thin", "ls", "/dev/shm") == ""
    assert not Path("/dev/shm/mine").exists()


@pytest.mark.root
def test_a_private_folder_is_empty_there_and_whole_elsewhere(cluster: VirtualCluster) -> None:
    (folder,) = cluster.plan.hosts[1].private
    assert out(cluster, "wide", "ls", folder) == ""
    assert out(cluster, "thin", "ls", folder) == "file"


@pytest.mark.root
def test_a_command_keeps_folder_pid_and_exit_code(cluster: VirtualCluster, tmp_path: Path) -> None:
    process = cluster.popen("slow", ["sh", "-c", 'echo "$$ $PWD $COLOUR"; exit 3'], cwd=tmp_path, env={"COLOUR": "red"}, stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=20)
    assert output.decode().split() == [str(process.pid), str(tmp_path), "red"]
    assert process.returncode == 3


@pytest.mark.root
@pytest.mark.parametrize(("source", "target"), [("thin", "wide"), ("wide", "thin")])
def test_bytes_take_as_long_as_the_link_says_under_the_usual_congestion_control(cluster: VirtualCluster, source: str, target: str) -> None:
    size_bytes, burst_bytes = 2 << 20, 32 << 10
    receiver = cluster.popen(target, [PYTHON, "-c", RECEIVE], stdout=subprocess.PIPE)
    assert receiver.stdout is not None and receiver.stdout.readline() == b"up\n"
    took_s, control = out(cluster, source, PYTHON, "-c", SEND, cluster.address(target), str(size_bytes)).split()
    assert float(took_s) > (size_bytes - burst_bytes) * 8 / 20e6
    assert (control, receiver.stdout.read()) == ("cubic", b"cubic\n")
    assert receiver.wait(20) == 0


@pytest.mark.root
def test_a_cpu_quota_stretches_time(cluster: VirtualCluster) -> None:
    if quota.find() is None:
        pytest.skip("this system has no CPU quotas")
    program = "import time; t = time.monotonic()\nwhile time.process_time() < 0.2: pass\nprint(time.monotonic() - t)"
    assert float(out(cluster, "slow", PYTHON, "-S", "-c", program)) > 0.5


@pytest.mark.root
def test_a_command_that_takes_too_long_is_killed(cluster: VirtualCluster) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        cluster.run("thin", ["sleep", "600"], timeout_s=0.2)
    assert cluster.pids("thin") == []


@pytest.mark.root
def test_two_clusters_live_side_by_side_and_one_ends_alone(cluster: VirtualCluster) -> None:
    with VirtualCluster([HostSpec(name="thin")]) as other:
        assert other.plan.tag != cluster.plan.tag
        child = other.popen("thin", ["sh", "-c", "setsid sleep 600 & exec sleep 600"])
        tag = other.plan.tag
    assert child.returncode == -signal.SIGKILL
    assert left_of(tag) == []
    assert out(cluster, "thin", "hostname") == "thin"


OWNER = """
import subprocess, sys
from deploy.virtual.cluster import VirtualCluster
from deploy.virtual.plan import HostSpec
with VirtualCluster([HostSpec(name="a", cpus=0.5), HostSpec(name="b", rate="10mbit")]) as cluster:
    child = cluster.popen("a", ["sh", "-c", "setsid sleep 600 & echo $!; exec sleep 600"], stdout=subprocess.PIPE)
    grandchild = int(child.stdout.readline())
    print(cluster.plan.tag, cluster._undertaker.pid, child.pid, grandchild, flush=True)
    sys.stdin.read()
"""


def owner_process() -> tuple[subprocess.Popen[bytes], list[int]]:
    process = subprocess.Popen([PYTHON, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, [int(word) for word in process.stdout.readline().split()]


def left_of(tag: int) -> list[str]:
    """Names of what a cluster leaves in the system."""
    quotas = quota.find()
    folders = [NAMESPACES, owner.FOLDER, *([quotas.root] if quotas else [])]
    names = [path.name for folder in folders if folder.is_dir() for path in folder.iterdir()]
    return [name for name in names if owner.owner_of(name) == tag or name == f"{tag}.lock"]


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()


@pytest.mark.root
def test_a_killed_owner_leaves_nothing() -> None:
    process, (tag, _undertaker, child, grandchild) = owner_process()
    assert len(list(pids_in(f"pserver-{tag}-a"))) == 3
    kill(process)
    assert gone(child) and gone(grandchild)
    until(lambda: not left_of(tag), 10)


@pytest.mark.root
def test_what_nobody_could_remove_goes_at_the_next_start() -> None:
    process, (tag, undertaker, child, grandchild) = owner_process()
    os.kill(undertaker, signal.SIGKILL)
    kill(process)
    assert left_of(tag)
    assert tag in remove_abandoned()
    assert gone(child) and gone(grandchild)
    assert left_of(tag) == []


@pytest.mark.root
def test_a_living_owners_cluster_is_left_alone(cluster: VirtualCluster) -> None:
    assert cluster.plan.tag not in remove_abandoned()
    assert out(cluster, "thin", "hostname") == "thin"


@pytest.mark.root
def test_a_cluster_that_cannot_be_made_leaves_nothing() -> None:
    made = VirtualCluster([HostSpec(name="a"), HostSpec(name="b", private=("/proc/nosuch",))])
    with pytest.raises(ResourcesMissing, match="cannot make virtual host b: "), made:
        pass
    assert left_of(made.plan.tag) == []
