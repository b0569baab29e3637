"""What a scenario's step takes, what limits it, and what would help: `pserver plan`. Pure."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deploy.measure.text import counted, seconds, size
from deploy.predict import floors
from deploy.predict.classes import ROUGH
from deploy.predict.pipeline import stages_floor_s
from deploy.predict.scenario import Scenario, layers_of
from deploy.predict.simulate import Prediction, simulate
from ps.codecs import wire_bytes
from ps.config import PullFormat, PushFormat
from ps.layout import Rule

BUCKET_BYTES = 25 << 20
"""Gradients that DDP reduces together."""
WORKERS_LINKS, SERVERS_LINKS, ALL_LINKS = "time on workers' links", "time on servers' links", "time on links of all hosts"
THIN = 0.9
"""Below how many times the next one a link is named by itself."""
FLAT, AGGREGATED = "without aggregators", "with an aggregator in each"
FORMATS: tuple[tuple[PushFormat, PullFormat], ...] = (("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "fp16"), ("int8", "bf16"), ("topk", "bf16"))
"""What is planned beside the formats asked for."""
LATE: tuple[PushFormat, ...] = ("int8", "topk")
"""Formats of pushes that leave a part of the gradient to later steps, so that training may take more of them."""
WORTH = 0.02
"""Part of the step below which nothing is worth a change."""


@dataclass(frozen=True)
class Plan:
    """Answers; times in seconds."""

    scenario: Scenario
    step: Prediction
    floor_s: float
    """No parameter server on these links can be quicker; 0 where no link has a rate."""
    ring_s: float
    """The step under ring all-reduce in buckets, on the workers' links."""
    halved: Mapping[str, float]
    """The step if a resource cost half as much, or without a rank's delay, by its name; the bottleneck first."""
    by_servers: Mapping[int, float]
    """The step by number of servers, in the scenario's formats."""
    by_format: Mapping[str, float]
    """The step by formats, "push/pull", with the best number of servers."""
    by_racks: Mapping[str, float] = field(default_factory=dict)
    """The step with and without an aggregator in every rack; empty without racks."""

    @property
    def bottleneck(self) -> str:
        name, step_s = next(iter(self.halved.items()))
        return name if step_s < (1 - WORTH) * self.step.step_s else "nothing alone"

    @property
    def best_servers(self) -> int:
        """The fewest that are as good as any, but for what is not felt."""
        return min(servers for servers, step_s in self.by_servers.items() if step_s <= (1 + WORTH) * min(self.by_servers.values()))

    @property
    def best_format(self) -> str:
        """Of those that push all of a gradient at once, the first as quick as any, but for what is not felt: a shorter step of the others may be
        paid for with more steps."""
        whole = {name: step_s for name, step_s in self.by_format.items() if not _is_late(name)}
        return next(name for name, step_s in whole.items() if step_s <= (1 + WORTH) * min(whole.values()))

    @property
    def quickest_format(self) -> str:
        return min(self.by_format, key=lambda name: self.by_format[name])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "workers": self.scenario.num_workers,
            "servers": self.scenario.num_servers,
            "model_bytes": self.scenario.model_bytes,
            "stages": self.scenario.num_stages,
            "bubble_s": self.step.bubble_s,
            "step_s": self.step.step_s,
            "compute_s": self.step.compute_s,
            "exposed_s": self.step.exposed_s,
            "samples_per_s": self.step.samples_per_s,
            "efficiency": self.step.efficiency,
            "floor_s": self.floor_s,
            "ring_step_s": self.ring_s,
            "bottleneck": self.bottleneck,
            "step_s_if_halved": dict(self.halved),
            "step_s_by_servers": {str(servers): step_s for servers, step_s in self.by_servers.items()},
            "best_servers": self.best_servers,
            "step_s_by_format": dict(self.by_format),
            "best_format": self.best_format,
            "quickest_format": self.quickest_format,
            **({"step_s_by_racks": dict(self.by_racks)} if self.by_racks else {}),
            "busy": dict(self.step.busy),
        }

    def text(self) -> str:
        """For people."""
        of, step = self.scenario, self.step
        wire = f", {of.pacing.frames} on their way"
        split = f"{counted(of.num_workers, 'rank')} x {of.num_stages} stages"
        bubble = f", of which {seconds(step.bubble_s)} pipeline bubble" if of.pipeline else ""
        lines = [
            f"{split if of.pipeline else counted(of.num_workers, 'worker')}, {counted(of.num_servers, 'server')}, {size(of.model_bytes)}{wire}",
            f"step {seconds(step.step_s)}: compute {seconds(step.compute_s)}, exposed {seconds(step.exposed_s)}{bubble}",
            f"{step.samples_per_s:.4g} samples/s, efficiency {step.efficiency:.0%}",
            f"floor of the exchange on these links {seconds(self.floor_s)}; ring all-reduce would take {seconds(self.ring_s)} per step",
            f"bottleneck: {self.bottleneck}",
            *(f"  {'without' if name.endswith('delay') else 'half of'} {name}: {seconds(step_s)}" for name, step_s in self.halved.items()),
            "servers: " + ", ".join(f"{servers} {seconds(step_s)}" for servers, step_s in self.by_servers.items()) + f"; best {self.best_servers}",
            f"formats (push/pull) with {counted(self.best_servers, 'server')}: "
            + ", ".join(f"{name} {seconds(step_s)}{'*' if _is_late(name) else ''}" for name, step_s in self.by_format.items())
            + f"; best {self.best_format}",
            "  16 bits round gradients and parameters; * leaves a part of the gradient to later steps: a shorter step, perhaps more of them",
        ]
        if self.by_racks:
            lines.append(self._racks())
        return "\n".join(lines)

    def _racks(self) -> str:
        assert self.scenario.racks
        flat_s, summed_s = self.by_racks[FLAT], self.by_racks[AGGREGATED]
        pays = f"it pays, {1 - summed_s / flat_s:.0%}" if summed_s < (1 - WORTH) * flat_s else "it does not pay"
        racks = f"{counted(self.scenario.num_racks, 'rack')} of {counted(self.scenario.racks.size, 'worker')}"
        return f"{racks}: {FLAT} {seconds(flat_s)}, {AGGREGATED} {seconds(summed_s)}: {pays}"


def plan(scenario: Scenario) -> Plan:
    """Simulates the scenario, what halving each resource would give, and other numbers of servers and formats."""
    step = simulate(scenario)
    step_s = changed_steps(scenario, step)
    halved = if_halved(scenario, step_s)
    alone = [halved[links] for links in (WORKERS_LINKS, SERVERS_LINKS) if links in halved]
    if len(alone) == 2:
        both_s = step_s(_wide(scenario))
        if step.step_s - both_s > 2 * (step.step_s - min(alone)):  # equal links on both ends, of which one alone helps little
            halved = _sorted({**halved, ALL_LINKS: both_s})
    by_servers = {
        servers: step.step_s if servers == scenario.num_servers else step_s(replace(scenario, num_servers=servers))
        for servers in server_counts(scenario)
    }
    found = Plan(scenario, step, floor_s(scenario), ring_step_s(scenario), halved, by_servers, {})
    at_best = replace(scenario, num_servers=found.best_servers)
    asked = (scenario.comm.push_format, scenario.comm.pull_format)
    by_format = {"/".join(asked): by_servers[found.best_servers]}
    sums_in_racks = scenario.racks is not None and scenario.racks.aggregator_bytes_per_s is not None
    for push, pull in FORMATS:
        if (push, pull) != asked and not (push == "topk" and sums_in_racks):
            comm = replace(at_best.comm, push_format=push, pull_format=pull)
            by_format[f"{push}/{pull}"] = step_s(replace(at_best, comm=comm))
    return replace(found, by_format=by_format, by_racks=_by_racks(scenario, step.step_s, step_s))


def _is_late(name: str) -> bool:
    """Of formats "push/pull"."""
    return name.partition("/")[0] in LATE


def changed_steps(scenario: Scenario, step: Prediction) -> Callable[[Scenario], float]:
    """What the step of another scenario takes: so many times `step`, which was simulated with every member or many classes, as a few classes say."""
    factor = step.step_s / _rough_s(scenario)
    return lambda other: factor * _rough_s(other)


def _rough_s(scenario: Scenario) -> float:
    return simulate(scenario, ROUGH).step_s


def if_halved(scenario: Scenario, step_s: Callable[[Scenario], float]) -> dict[str, float]:
    """The step if a resource cost half as much, or without a rank's delay, by its name; the bottleneck first. `step_s`: of a scenario."""
    return _sorted({name: step_s(other) for name, other in _halved(scenario).items()})


def _sorted(steps: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(steps.items(), key=lambda item: item[1]))


def _by_racks(scenario: Scenario, here_s: float, step_s: Callable[[Scenario], float]) -> dict[str, float]:
    racks = scenario.racks
    if racks is None:
        return {}
    if racks.aggregator_bytes_per_s is not None:
        return {FLAT: step_s(replace(scenario, racks=replace(racks, aggregator_bytes_per_s=None))), AGGREGATED: here_s}
    link = min(map(scenario.worker_link, range(scenario.num_workers)))
    if scenario.comm.push_format == "topk" or not math.isfinite(link):
        return {}
    return {FLAT: here_s, AGGREGATED: step_s(replace(scenario, racks=replace(racks, aggregator_bytes_per_s=link)))}


def _halved(scenario: Scenario) -> dict[str, Scenario]:
    """The scenario with one resource at half its cost, or without one rank's delay, which can be mended whole."""
    wide = _wide(scenario)
    has_links = math.isfinite(min(map(scenario.worker_link, range(scenario.num_members))))
    found = {"compute": replace(scenario, forward_s=scenario.forward_s / 2, backward_s=scenario.backward_s / 2)}
    if scenario.hosts == "colocated":
        if has_links:
            found[ALL_LINKS] = wide
    else:
        if has_links:
            alone = _alone({number: scenario.worker_link(number) for number in range(scenario.num_members)})
            name = WORKERS_LINKS if alone is None else f"time on {'worker' if scenario.pipeline else 'rank'} {alone}'s link"
            widened = wide.worker_links if alone is None else {**scenario.worker_links, alone: wide.worker_links[alone]}
            found[name] = replace(scenario, worker_links=widened)
        if rates := wide.comm.server_bandwidth:
            alone = _alone({shard: scenario.server_link(shard) for shard in range(scenario.num_servers)})
            name = SERVERS_LINKS if alone is None else f"time on shard {alone}'s link"
            mended = rates if alone is None else {**scenario.comm.server_bandwidth, alone: rates[alone]}
            found[name] = replace(scenario, comm=replace(scenario.comm, server_bandwidth=mended))
    found["work on frames, sums and updates"] = replace(scenario, costs=scenario.costs.scaled(0.5))
    if racks := scenario.racks:
        if math.isfinite(racks.uplink_bytes_per_s):
            found["time on racks' uplinks"] = replace(scenario, racks=replace(racks, uplink_bytes_per_s=2 * racks.uplink_bytes_per_s))
        if racks.aggregator_bytes_per_s is not None:
            found["time on aggregators' links"] = replace(scenario, racks=replace(racks, aggregator_bytes_per_s=2 * racks.aggregator_bytes_per_s))
    if scenario.latency_s:
        found["latency"] = replace(scenario, latency_s=scenario.latency_s / 2)
    if math.isfinite(scenario.cores_per_host):
        found["sharing of cores"] = replace(scenario, cores_per_host=2 * scenario.cores_per_host)
    for rank in scenario.stragglers:
        found[f"rank {rank}'s delay"] = replace(scenario, stragglers={other: by for other, by in scenario.stragglers.items() if other != rank})
    return found


def _alone(rates: Mapping[int, float]) -> int | None:
    """Whose link is much thinner than all the others'; None if there is no such, or no other."""
    thinnest, *others = sorted(rates, key=lambda number: rates[number])
    return thinnest if others and rates[thinnest] < THIN * rates[others[0]] else None


def _wide(scenario: Scenario) -> Scenario:
    """With links of twice the rate."""
    shards = [shard for shard in range(scenario.num_servers) if math.isfinite(scenario.server_link(shard))]
    rates = {shard: f"{16 * scenario.server_link(shard) / 1e3}kbit" for shard in shards}
    workers = {number: 2 * scenario.worker_link(number) for number in range(scenario.num_members)}
    return replace(scenario, worker_links=workers, comm=replace(scenario.comm, server_bandwidth=rates))


def server_counts(scenario: Scenario) -> list[int]:
    """From a quarter to four times as many, but no more than hosts for them."""
    most = scenario.num_members if scenario.hosts == "colocated" else 4 * scenario.num_servers
    counts = {max(1, round(scenario.num_servers * factor)) for factor in (0.25, 0.5, 1, 2, 4)}
    return sorted(count for count in counts if count <= most)


def floor_s(scenario: Scenario) -> float:
    """Of push and pull at once, by the closed forms; wire bytes."""
    if scenario.pipeline:
        return stages_floor_s(scenario)
    num_workers, num_servers = scenario.num_workers, scenario.num_servers
    worker = min(map(scenario.worker_link, range(num_workers)))
    server = min(map(scenario.server_link, range(num_servers)))
    comm = scenario.comm
    push, pull = (scenario.costs.wire_overhead * _travelling_bytes(scenario, wire_format) for wire_format in (comm.push_format, comm.pull_format))
    if scenario.hosts == "colocated":
        here, there = num_servers - 1, num_workers - 1  # hosts that a worker pushes to, and that its server answers
        wire = max(here * push + there * pull, here * pull + there * push) / (here + there) if here + there else 0.0
        return floors.colocated_s(wire, num_workers, num_servers, worker)
    ways = (max(push, pull), num_workers, num_servers, worker, server)
    if racks := scenario.racks:
        return floors.racks_s(
            *ways, rack_size=racks.size, uplink_bytes_per_s=racks.uplink_bytes_per_s, aggregator_bytes_per_s=racks.aggregator_bytes_per_s
        )
    return floors.one_way_s(*ways)


def _travelling_bytes(scenario: Scenario, wire_format: str) -> float:
    """Payload of the model in that format, one way; what no optimizer updates stays as it is."""
    updated = [spec for spec in scenario.specs if spec.rule is Rule.OPTIMIZER]
    rest = scenario.model_bytes - sum(spec.num_bytes for spec in updated)
    return rest + sum(wire_bytes(spec.num_bytes, spec.dtype, wire_format, scenario.comm) for spec in updated)


def ring_step_s(scenario: Scenario) -> float:
    """A step under DDP: forward, then buckets of gradients reduced one after the other while backward goes on, then the optimizer on every worker.
    Stages are whole ranks there, with fewer samples each."""
    layers = layers_of(scenario.specs)
    slowest = max(scenario.stragglers.values(), default=1.0)
    num_ranks = scenario.num_members
    link = min(map(scenario.worker_link, range(num_ranks)))
    slowest /= scenario.num_stages
    if scenario.racks:
        link = min(link, scenario.racks.uplink_bytes_per_s)  # the ring, in rank order, enters and leaves each rack once
    now_s, free_s, bucket = scenario.forward_s * slowest, 0.0, 0.0
    for layer in reversed(range(len(layers))):
        now_s += scenario.backward_s * slowest * layers.shares[layer]
        bucket += layers.num_bytes[layer]
        if bucket >= BUCKET_BYTES or not layer:
            exchange_s = floors.ring_s(bucket * scenario.costs.wire_overhead, num_ranks, link)
            free_s = max(now_s, free_s) + exchange_s + 2 * (num_ranks - 1) * scenario.latency_s
            bucket = 0.0
    return max(now_s, free_s) + scenario.costs.apply_byte_s * scenario.model_bytes
