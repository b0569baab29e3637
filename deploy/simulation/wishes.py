"""From what a user wants simulated to hosts, the processes on them, and the config of the run. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deploy.config import Config
from deploy.launch.base import ProcessKey
from deploy.launch.hosts import DRIVER
from deploy.measure.text import counted
from deploy.predict.inputs import parse_straggler
from deploy.virtual.plan import HostSpec
from ps.errors import ConfigError

_SETTINGS = ("bandwidth", "cpus")


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is simulated beyond the config; None: as it is here."""

    bandwidth: str | None = None
    """Rate of every host's link in each direction. None: `comm.bandwidth` of the config; links that are not shaped if that is not set."""
    server_bandwidth: str | None = None
    """The same of the servers' hosts."""
    latency: str | None = None
    """How much longer every frame travels, one way."""
    colocate: bool = False
    """Servers live on the workers' hosts."""
    cpus: float | None = None
    """Cores of every host."""
    stragglers: Sequence[str] = ()
    """For example "rank=2,factor=2"."""
    hosts: Sequence[str] = ()
    """Settings of single hosts: "worker-1:bandwidth=25mbit,cpus=0.5"."""


@dataclass(frozen=True)
class Hosts:
    """What is made, and what runs there."""

    specs: tuple[HostSpec, ...]
    """The driver's first, which has no shaped link and all cores."""
    host_of: Mapping[ProcessKey, str]
    config: Config
    """Of the run: as given, with rates, latency and slow ranks as they are wished."""

    def __str__(self) -> str:
        scaling = self.config.scaling
        split = f" ({counted(scaling.num_workers, 'rank')} x {scaling.num_stages} stages)" if scaling.num_stages > 1 else ""
        processes = f"{counted(scaling.num_members, 'worker')}{split} and {counted(scaling.num_servers, 'server')}"
        return f"{processes} on {counted(len(self.specs) - 1, 'host')}"

    def links(self) -> str:
        """Rates, latency, cores and slow ranks in words."""
        return "; ".join(filter(None, [self._rates(), self._latency(), self._cores(), self._slow()]))

    def _rates(self) -> str:
        return "links " + _grouped({spec.name: spec.rate or "not shaped" for spec in self.specs[1:]})

    def _latency(self) -> str:
        latency = self.config.comm.latency
        return f"{latency} more one way, by frames that wait in pserver's own streams (no netem)" if latency else ""

    def _cores(self) -> str:
        limited = {spec.name: f"{spec.cpus:g} CPUs" if spec.cpus else "all cores" for spec in self.specs[1:]}
        return _grouped(limited) + " (cgroup quota)" if any(spec.cpus for spec in self.specs) else ""

    def _slow(self) -> str:
        return ", ".join(f"rank {rank} computes {factor:g} times as long" for rank, factor in sorted(self.config.scaling.slowdown.items()))


def hosts_of(config: Config, wishes: Wishes, *, shm_bytes: int, private: Sequence[str] = ()) -> Hosts:
    """Hosts worker-0 ... and server-0 ..., or with `colocate` only those of the workers, which servers share in turn; stages are workers.
    Raises ConfigError.

    `shm_bytes`, `private`: of every host, see HostSpec.
    """
    config = _with_links(config, wishes)
    scaling = config.scaling
    keys = [ProcessKey("worker", number) for number in range(scaling.num_members)] + [ProcessKey("server", s) for s in range(scaling.num_servers)]
    host_of = {key: _host_of(key, scaling.num_members, colocate=wishes.colocate) for key in keys}
    single = _single(wishes.hosts, set(host_of.values()))
    specs = {DRIVER: HostSpec(name=DRIVER, shm_bytes=shm_bytes, private=tuple(private))}
    rates: dict[ProcessKey, str | None] = {}
    for key, name in host_of.items():
        if name not in specs:
            rate = single.get(name, {}).get("bandwidth") or _rate_of(config, key)
            cpus = single.get(name, {}).get("cpus", wishes.cpus)
            try:
                specs[name] = HostSpec(name=name, rate=rate, cpus=cpus, shm_bytes=shm_bytes, private=tuple(private))
            except ValueError as error:
                raise ConfigError(str(error)) from error
        rates[key] = specs[name].rate
    comm = replace(
        config.comm,
        worker_bandwidth=_apart(rates, "worker", config.comm.bandwidth),
        server_bandwidth=_apart(rates, "server", config.comm.bandwidth),
        shaping="links",
    )
    return Hosts(tuple(specs.values()), host_of, replace(config, comm=comm))


def streams_of(config: Config, wishes: Wishes) -> Config:
    """The config for a machine without virtual hosts: every process keeps its streams to the rate itself. Raises ConfigError for what that
    cannot simulate."""
    if wishes.colocate or wishes.cpus is not None or any("cpus=" in text for text in wishes.hosts):
        raise ConfigError("--colocate and CPUs of a host need virtual hosts: run as root, or leave them out")
    config = hosts_of(config, wishes, shm_bytes=0).config
    return replace(config, comm=replace(config.comm, shaping="streams", shared_memory=False))


def _with_links(config: Config, wishes: Wishes) -> Config:
    """The config with everything that is wished for all hosts, and slow ranks."""
    scaling, comm = config.scaling, config.comm
    if wishes.colocate and (wishes.server_bandwidth or comm.server_bandwidth):
        raise ConfigError("--server-bandwidth with --colocate: servers have no links of their own there; say --host worker-1:bandwidth=25mbit")
    servers = dict.fromkeys(range(scaling.num_servers), wishes.server_bandwidth) if wishes.server_bandwidth else {}
    try:
        comm = replace(
            comm,
            bandwidth=wishes.bandwidth or comm.bandwidth,
            server_bandwidth={**comm.server_bandwidth, **servers},
            latency=wishes.latency or comm.latency,
        )
        slowdown = {**scaling.slowdown, **dict(map(parse_straggler, wishes.stragglers))}
        return replace(config, comm=comm, scaling=replace(scaling, slowdown=slowdown))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _host_of(key: ProcessKey, num_members: int, *, colocate: bool) -> str:
    return f"worker-{key.index % num_members}" if colocate else f"{key.role}-{key.index}"


def _rate_of(config: Config, key: ProcessKey) -> str | None:
    comm = config.comm
    single = comm.server_bandwidth if key.role == "server" else comm.worker_bandwidth
    return single.get(key.index, comm.bandwidth)


def _apart(rates: Mapping[ProcessKey, str | None], role: str, common: str | None) -> dict[int, str]:
    """Rates of the processes of a role that are not the common one, by their index."""
    return {key.index: rate for key, rate in rates.items() if key.role == role and rate is not None and rate != common}


def _single(texts: Sequence[str], names: set[str]) -> dict[str, dict[str, Any]]:
    """Settings by host. Raises ConfigError."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, _, settings = text.partition(":")
        if name not in names:
            raise ConfigError(f"--host {text}: {name!r} is no host of this simulation: {', '.join(sorted(names))}")
        for setting in settings.split(","):
            key, _, value = setting.partition("=")
            if key not in _SETTINGS or not value or (key == "cpus" and not re.fullmatch(r"\d+(\.\d+)?", value)):
                raise ConfigError(f"--host {text}: {setting!r} is no setting of a host: for example worker-1:bandwidth=25mbit,cpus=0.5")
            found.setdefault(name, {})[key] = float(value) if key == "cpus" else value
    return found


def _grouped(values: Mapping[str, str]) -> str:
    """One value if all have it, else the most frequent one and the others by host."""
    by_value: dict[str, list[str]] = {}
    for name, value in values.items():
        by_value.setdefault(value, []).append(name)
    ordered = sorted(by_value.items(), key=lambda item: -len(item[1]))
    common, *others = ordered
    return ", ".join([common[0], *(f"{', '.join(names)} {value}" for value, names in others)])
