"""The links between the hosts of a cluster, measured with our own frames on our own streams: a worker and a server on each."""

from collections.abc import Mapping
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
from workers.link_probe import num_steps


@dataclass(frozen=True)
class Measured:
    """One link, from the host of a worker to that of a server."""

    bytes_per_s: float
    delay_s: float
    """Until an empty frame is echoed."""
    local: bool
    """Both are on one host."""


@dataclass(frozen=True)
class NetFound:
    """Links by worker and server."""

    where: str
    links: Mapping[tuple[int, int], Measured]

    def to_dict(self) -> dict[str, Any]:
        return {"where": self.where, "links": [{"worker": w, "server": s, **asdict(link)} for (w, s), link in sorted(self.links.items())]}

    def text(self) -> str:
        rates = self._table("MB/s from the host of each worker to that of each server (* one host)", _rate)
        delays = self._table("Milliseconds there and back of an empty frame", _delay)
        apart = {pair: link for pair, link in self.links.items() if not link.local}
        words = []
        if apart:
            thinnest = min(apart, key=lambda pair: apart[pair].bytes_per_s)
            longest = max(apart, key=lambda pair: apart[pair].delay_s)
            words = [
                f"thinnest: worker {thinnest[0]} to server {thinnest[1]}, {_rate(apart[thinnest])} MB/s; "
                f"longest: worker {longest[0]} to server {longest[1]}, {_delay(apart[longest])} ms"
            ]
        return "\n".join([self.where, rates.plain(), delays.plain(), *words])

    def _table(self, title: str, text: Any) -> Table:
        ranks, shards = (sorted({pair[i] for pair in self.links}) for i in (0, 1))
        cell = {pair: text(link) + ("*" if link.local else "") for pair, link in self.links.items()}
        rows = [[f"worker {rank}", *(cell.get((rank, shard), "-") for shard in shards)] for rank in ranks]
        return Table(title, ["", *(f"server {shard}" for shard in shards)], rows)


def _rate(link: Measured) -> str:
    return megabytes_per_s(link.bytes_per_s)


def _delay(link: Measured) -> str:
    return f"{link.delay_s * 1e3:.2g}"


def config_for(hosts: int, *, on_ray: bool = False) -> Config:
    """A run with a worker and a server for each host."""
    strategy = "STRICT_SPREAD" if on_ray else "PACK"
    return Config(
        train=TrainConfig(loop="workers.link_probe:measure", batch_size=1, max_steps=num_steps(hosts)),
        scaling=ScalingConfig(num_workers=hosts, num_servers=hosts, placement_strategy=strategy),  # type: ignore[arg-type]
        comm=CommConfig(),
        checkpoint=CheckpointConfig(every_epochs=0),
    )


def bench_net(config: Config, wishes: Wishes | None = None, address: str | None = None) -> NetFound:
    """Runs it: on virtual hosts with a worker and a server each, on the nodes of a Ray cluster, or in processes of this machine."""
    wishes = None if wishes is None else replace(wishes, colocate=True)
    with measured(config, wishes, address, here="on this machine, over loopback") as (run, where):
        rows = run.read_metrics()
    links = _links(rows[-1] if rows else {})
    if not links:
        raise ResourcesMissing("no link could be measured: every stream broke meanwhile; see that the hosts reach each other, and try again")
    return NetFound(where, links)


def _links(row: Mapping[str, Any]) -> dict[tuple[int, int], Measured]:
    found = {}
    for name, value in row.items():
        what, _, pair = name.partition("bytes_per_s_")
        if not what and pair:
            rank, shard = map(int, pair.split("_"))
            found[rank, shard] = Measured(value, row[f"delay_s_{pair}"], bool(row[f"local_{pair}"]))
    return found
