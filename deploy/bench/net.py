"""The links between the hosts of a cluster, measured with our own frames on our own streams: by where its workers and servers are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from deploy.bench.places import measured
from deploy.config import Config, ScalingConfig
from deploy.measure.table import Table
from deploy.measure.text import megabytes_per_s
from deploy.simulation.wishes import Wishes
from ps.config import CheckpointConfig, CommConfig
from ps.errors import ResourcesMissing
from workers.config import TrainConfig
from workers.link_probe import most_steps, places_of


@dataclass(frozen=True)
class Measured:
    """One link, from the host of a worker to that of a server."""

    worker: int
    server: int
    bytes_per_s: float
    delay_s: float
    """Until an empty frame is echoed."""


@dataclass(frozen=True)
class NetFound:
    """Links by the hosts of a worker and of a server."""

    where: str
    hosts: Mapping[str, Sequence[str]]
    """Processes by host."""
    links: Mapping[tuple[str, str], Measured]

    def to_dict(self) -> dict[str, Any]:
        links = [{"from": here, "to": there, "local": here == there, **asdict(link)} for (here, there), link in self.links.items()]
        return {"where": self.where, "hosts": {host: list(names) for host, names in self.hosts.items()}, "links": links}

    def text(self) -> str:
        rates = self._table("MB/s from each host that has a worker to each that has a server (* within one)", _rate)
        delays = self._table("Milliseconds there and back of an empty frame", _delay)
        apart = {pair: link for pair, link in self.links.items() if pair[0] != pair[1]}
        words = []
        if apart:
            thinnest = min(apart, key=lambda pair: apart[pair].bytes_per_s)
            longest = max(apart, key=lambda pair: apart[pair].delay_s)
            words = [
                f"thinnest: {' to '.join(thinnest)}, {_rate(apart[thinnest])} MB/s; longest: {' to '.join(longest)}, {_delay(apart[longest])} ms"
            ]
        without = [host for host in self.hosts if host not in {there for _, there in self.links}]
        if len(without) > 1:
            words.append(f"not measured: links among {', '.join(without)}, where no server is")
        return "\n".join([self.where, rates.plain(), delays.plain(), *words])

    def _table(self, title: str, text: Callable[[Measured], str]) -> Table:
        heres, theres = ([host for host in self.hosts if host in {pair[i] for pair in self.links}] for i in (0, 1))
        cell = {(here, there): text(link) + ("*" if here == there else "") for (here, there), link in self.links.items()}
        return Table(title, ["", *theres], [[here, *(cell.get((here, there), "-") for there in theres)] for here in heres])


def _rate(link: Measured) -> str:
    return megabytes_per_s(link.bytes_per_s)


def _delay(link: Measured) -> str:
    return f"{link.delay_s * 1e3:.2g}"


def config_for(hosts: int, *, on_ray: bool = False) -> Config:
    """A run with a worker and a server for each host."""
    strategy = "STRICT_SPREAD" if on_ray else "PACK"
    return Config(
        train=TrainConfig(loop="workers.link_probe:measure", batch_size=1, max_steps=most_steps(hosts)),
        scaling=ScalingConfig(num_workers=hosts, num_servers=hosts, placement_strategy=strategy),  # type: ignore[arg-type]
        comm=CommConfig(),
        checkpoint=CheckpointConfig(every_epochs=0),
    )


def bench_net(config: Config, wishes: Wishes | None = None, address: str | None = None) -> NetFound:
    """Runs it: on virtual hosts with a worker and a server each, on the nodes of a Ray cluster, or in processes of this machine."""
    wishes = None if wishes is None else replace(wishes, colocate=True)
    with measured(config, wishes, address, here="on this machine, over loopback") as (run, where):
        rows, summary = run.read_metrics(), run.read_summary() or {}
    found = found_by(rows[-1] if rows else {}, summary.get("hosts", {}), config.scaling.num_workers, where)
    if not found.links:
        raise ResourcesMissing("no link could be measured: every stream broke meanwhile; see that the hosts reach each other, and try again")
    return found


def found_by(row: Mapping[str, Any], names: Mapping[str, str], num: int, where: str) -> NetFound:
    """From what `num` workers have reported of as many servers, and the host names of processes."""
    local = [[bool(row.get(f"local_{rank}_{shard}")) for shard in range(num)] for rank in range(num)]
    places = places_of(local)
    members: dict[int, list[str]] = {}
    for role, hosts in (("worker", places.ranks), ("server", places.shards)):
        for index, host in enumerate(hosts):
            members.setdefault(host, []).append(f"{role} {index}")
    host_names = _names(members, names)
    links = {
        (host_names[places.ranks[rank]], host_names[places.shards[shard]]): Measured(
            rank, shard, row[f"bytes_per_s_{rank}_{shard}"], row[f"delay_s_{rank}_{shard}"]
        )
        for rank in range(num)
        for shard in range(num)
        if f"bytes_per_s_{rank}_{shard}" in row
    }
    return NetFound(where, {host_names[host]: processes for host, processes in members.items()}, links)


def _names(members: Mapping[int, Sequence[str]], names: Mapping[str, str]) -> dict[int, str]:
    """Their own, where they tell hosts apart; else that of their first process."""
    own = {host: {names.get(process, process) for process in processes} for host, processes in members.items()}
    is_told = len(set().union(*own.values())) == len(members) and all(len(called) == 1 for called in own.values())
    return {host: own[host].pop() if is_told else members[host][0] for host in members}
