"""What a virtual cluster consists of: names, addresses and commands as values. Pure.

Every host is a network namespace with one link to a bridge, which lives in a namespace of its own: nothing appears
in the network of this machine, and clusters with equal addresses do not meet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.virtual.owner import PREFIX
from ps.comm import parse_rate

Command = list[str]

_BURST = "32kb"
_PACKET_BYTES = 16384
"""What a host hands to its link in one piece, as to a card that cuts it into packets: half a burst, since tbf cuts longer pieces itself, at
four times the processor's work. It counts the headers of every packet in any case."""
_CONGESTION_CONTROL = "cubic"
"""Of TCP, the usual one, whatever this machine's is. BBR takes the time that acknowledgements queue behind what flows the other way for
a full link, and sends less: an exchange of one worker with one server takes 15% longer. By route, since the kernel lets only its own
namespace choose some of them as default."""
_QUEUE_MS = 100
"""Longest a packet queues at a link's rate before it is dropped."""
MAX_HOSTS = 250


@dataclass(frozen=True, kw_only=True)
class HostSpec:
    """One host to make."""

    name: str
    """Its host name: letters, digits and "-", unique."""
    rate: str | None = None
    """Rate of its link in each direction, for example "100mbit". None: not shaped."""
    cpus: float | None = None
    """Cores its processes may use together, > 0, where the system has CPU quotas. None: all."""
    shm_bytes: int = 256 << 20
    """Size of its own /dev/shm."""
    private: tuple[str, ...] = ()
    """Folders of which it sees an empty one of its own in place of this machine's."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", self.name):
            raise ValueError(f"{self.name!r} is no name of a host: lower-case letters, digits and -, at most 32")
        if self.rate is not None:
            parse_rate(self.rate)
        if self.cpus is not None and self.cpus <= 0:
            raise ValueError(f"cpus of host {self.name} = {self.cpus} is out of range: > 0")


@dataclass(frozen=True)
class ClusterPlan:
    """The cluster with owner tag `tag`."""

    tag: int
    hosts: tuple[HostSpec, ...]

    def __post_init__(self) -> None:
        names = [host.name for host in self.hosts]
        if len(set(names)) != len(names):
            raise ValueError(f"hosts must have different names: {', '.join(names)}")
        if not 1 <= len(names) <= MAX_HOSTS:
            raise ValueError(f"{len(names)} hosts: 1 to {MAX_HOSTS} fit into one virtual network")

    @property
    def switch(self) -> str:
        """Namespace of the bridge."""
        return f"{PREFIX}{self.tag}"

    def namespace(self, host: str) -> str:
        return f"{PREFIX}{self.tag}-{host}"

    def address(self, host: str) -> str:
        """IPv4 address of `host`. Raises KeyError for one that is not in the plan."""
        return f"10.77.0.{self.index(host) + 1}"

    def index(self, host: str) -> int:
        for index, spec in enumerate(self.hosts):
            if spec.name == host:
                return index
        raise KeyError(f"{host} is no host of this cluster: {', '.join(spec.name for spec in self.hosts)}")

    def network(self) -> list[Command]:
        """Makes all namespaces and links, in this order."""
        return [*_new_namespace(self.switch), *_bridge(self.switch), *(command for host in self.hosts for command in self._link(host))]

    def _link(self, host: HostSpec) -> list[Command]:
        namespace, port = self.namespace(host.name), f"port{self.index(host.name)}"
        return [
            *_new_namespace(namespace),
            ["ip", "-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", self.switch],
            ["ip", "-n", namespace, "link", "set", "eth0", "gso_max_size", str(_PACKET_BYTES)],
            ["ip", "-n", self.switch, "link", "set", port, "gso_max_size", str(_PACKET_BYTES)],
            ["ip", "-n", self.switch, "link", "set", port, "master", "bridge", "up"],
            ["ip", "-n", namespace, "address", "add", f"{self.address(host.name)}/24", "dev", "eth0", "noprefixroute"],
            ["ip", "-n", namespace, "link", "set", "eth0", "up"],
            ["ip", "-n", namespace, "route", "add", "10.77.0.0/24", "dev", "eth0", "src", self.address(host.name), "congctl", _CONGESTION_CONTROL],
            *(shape(namespace, "eth0", host.rate) if host.rate else []),
            *(shape(self.switch, port, host.rate) if host.rate else []),
        ]

    def hosts_file(self) -> str:
        """/etc/hosts of every host."""
        return "127.0.0.1 localhost\n" + "".join(f"{self.address(host.name)} {host.name}\n" for host in self.hosts)

    def holder(self, host: HostSpec) -> Command:
        """The process that holds the host's mounts and its name; it prints "ready" and lives until it is killed."""
        script = [
            "set -e",
            f"mount -t tmpfs -o size={host.shm_bytes},mode=1777 tmpfs /dev/shm",
            'printf %s "$2" > /dev/shm/hosts',
            "mount --bind /dev/shm/hosts /etc/hosts",
            "rm /dev/shm/hosts",
            'hostname "$1"',
            "shift 2",
            'for folder; do mkdir -p "$folder"; mount -t tmpfs -o mode=1777 tmpfs "$folder"; done',
            "echo ready",
            "exec sleep infinity",
        ]
        unshare = ["unshare", "--mount", "--uts", "--propagation", "private"]
        arguments = [host.name, self.hosts_file(), *host.private]
        return ["nsenter", f"--net=/run/netns/{self.namespace(host.name)}", *unshare, "sh", "-c", "\n".join(script), "holder", *arguments]


def enter(holder_pid: int, argv: Sequence[str], cwd: str, cgroup_procs: str | None) -> Command:
    """Runs `argv` in the host whose holder is given; the process keeps its pid on the way in."""
    join = 'echo $$ > "$2" && ' if cgroup_procs else ""
    script = f'cd "$1" && {join}shift 2 && exec "$@"'
    return ["nsenter", f"--target={holder_pid}", "--net", "--mount", "--uts", "sh", "-c", script, "enter", cwd, cgroup_procs or "", *argv]


def shape(namespace: str, device: str, rate: str) -> list[Command]:
    """Limits what leaves through `device`."""
    bits_per_s = round(parse_rate(rate) * 8)
    limits = ["rate", f"{bits_per_s}bit", "burst", _BURST, "latency", f"{_QUEUE_MS}ms"]
    return [["tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *limits]]


def _new_namespace(name: str) -> list[Command]:
    return [["ip", "netns", "add", name], ["ip", "-n", name, "link", "set", "lo", "up"]]


def _bridge(namespace: str) -> list[Command]:
    return [["ip", "-n", namespace, "link", "add", "bridge", "type", "bridge"], ["ip", "-n", namespace, "link", "set", "bridge", "up"]]
