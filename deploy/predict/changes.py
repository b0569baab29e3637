"""What would make a run's steps shorter, and how long they would be then; and whether ring all-reduce would be quicker. Pure.

The model of the step is asked twice, for the run as it was and with one change; their ratio, times the measured step, is the prediction:
what the model does not know of the machine is in both.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from deploy.measure.ledger_file import LedgerStep
from deploy.predict.calibrate import slow_ranks, slow_servers, steady
from deploy.predict.plan import WORTH, floor_s, ring_step_s, server_counts
from deploy.predict.scenario import Scenario
from deploy.predict.simulate import simulate
from ps.comm import LONGEST_FRAME_BYTES, parse_rate

NUM_CHANGES = 3
MOST_FRAMES = 128
MOST_LOADERS = 8
LOADED = 0.8
"""Part of the time that threads which load data may be busy."""


@dataclass(frozen=True)
class Change:
    """One change of the run, and the step then."""

    what: str
    step_s: float
    sets: Sequence[str] = ()
    """What makes it so, or simulates it, in the words of `--set`; empty: nothing of the config does."""
    samples: float = 1.0
    """How many times as many samples the step then has."""

    @property
    def same_samples_s(self) -> float:
        """For as many samples as a step has now."""
        return self.step_s / self.samples


@dataclass(frozen=True)
class Outlook:
    """Times in seconds."""

    step_s: float
    """Median, as measured, of the steps after the first few."""
    model_s: float
    """What the model says of the run as it was."""
    changes: Sequence[Change]
    """The best ones, the best first, those last that learn from larger batches; those that nobody would feel are left out."""
    floor_s: float
    """What the bytes need on these links, by the closed forms; 0 where no link has a rate."""
    ring_s: float | None
    """The step under ring all-reduce on the workers' links, by the formula; None where no link has a rate."""


def outlook(scenario: Scenario, steps: Sequence[LedgerStep]) -> Outlook | None:
    """Of a run that was like `scenario`; None without steps of all workers."""
    whole = [step for step in steady(steps) if len(step.workers) == scenario.num_members]
    if not whole:
        return None
    measured_s = statistics.median(statistics.fmean(row.step_s for row in step.workers) for step in whole)
    data_s = statistics.median(statistics.median(row.data_wait_s for row in step.workers) for step in whole)
    quotas = _quotas(whole, scenario)
    slow = {shard: factor for shard, factor in slow_servers(whole).items() if shard not in quotas}
    scenario = replace(scenario, stragglers=slow_ranks(whole, scenario.num_stages), slow_servers=slow, server_cores=quotas)
    scenario = _coarse(_on_links(scenario, steps, measured_s))
    model_s = simulate(scenario).step_s
    candidates = _candidates(scenario, data_s)
    more = [candidate.scenario.samples / scenario.samples for candidate in candidates]
    found = [Change(c.what, measured_s * simulate(c.scenario).step_s / model_s, c.sets, times) for c, times in zip(candidates, more, strict=True)]
    best_servers = min((c for c in found if c.what.startswith("scaling.num_servers")), key=lambda change: change.step_s, default=None)
    felt = [c for c in found if c.same_samples_s <= (1 - WORTH) * measured_s and (c is best_servers or not c.what.startswith("scaling.num_servers"))]
    has_links = scenario.comm.bandwidth is not None
    best = sorted(felt, key=lambda change: (change.samples > 1, change.same_samples_s))[:NUM_CHANGES]
    return Outlook(measured_s, model_s, best, floor_s(scenario), ring_step_s(scenario) if has_links else None)


def _on_links(scenario: Scenario, steps: Sequence[LedgerStep], measured_s: float) -> Scenario:
    """Where no worker found a server on its host, hosts are apart, with the links that the workers have measured; unless these could not carry
    a step in the time that it took: then something else held up the measurement."""
    rows = [row for step in steps for row in step.workers]
    rates = [row.pacing.link_bytes_per_s for row in rows if row.pacing and row.pacing.link_bytes_per_s]
    if scenario.comm.bandwidth is not None or not rates or any(traffic.local for row in rows for traffic in row.shards):
        return scenario
    linked = replace(scenario, hosts="apart", comm=replace(scenario.comm, bandwidth=f"{round(8 * min(rates) / 1e3)}kbit"))
    return linked if floor_s(linked) <= measured_s else replace(scenario, hosts="apart")


def _coarse(scenario: Scenario) -> Scenario:
    """With frames of at least a MOST_FRAMES-th of the model: what more would cost is in the measured step, and takes seconds to simulate."""
    least = scenario.model_bytes // MOST_FRAMES
    if scenario.pacing.frame_bytes >= least:
        return scenario
    frame_bytes = min(least, LONGEST_FRAME_BYTES)
    return replace(scenario, comm=replace(scenario.comm, frame_bytes=frame_bytes))


def _quotas(steps: Sequence[LedgerStep], scenario: Scenario) -> Mapping[int, float]:
    """Cores of those servers that may use less than the typical host has, by shard."""
    return {row.shard: row.cores for step in steps for row in step.servers if row.cores and row.cores < scenario.cores_per_host}


@dataclass(frozen=True)
class _Candidate:
    what: str
    scenario: Scenario
    sets: Sequence[str] = ()


def _candidates(scenario: Scenario, data_s: float) -> list[_Candidate]:
    """What a user can change, by how it is said. `data_s`: of the forward pass, seconds of data loading."""
    comm, links = scenario.comm, scenario.comm.shaping == "links"
    found = [*_formats(scenario), *_rates(scenario, settable=links), *_micro_batches(scenario)]
    for count in server_counts(scenario):
        if count != scenario.num_servers and all(shard < count for shard in comm.server_bandwidth):
            found.append(_Candidate(f"scaling.num_servers = {count}", replace(scenario, num_servers=count), [f"scaling.num_servers={count}"]))
    if not scenario.overlap:
        found.append(_Candidate("train.overlap = true", replace(scenario, overlap=True), ["train.overlap=true"]))
    for rank in scenario.stragglers:
        others = {other: factor for other, factor in scenario.stragglers.items() if other != rank}
        found.append(_Candidate(f"rank {rank} as quick as the others", replace(scenario, stragglers=others), [f"scaling.slowdown.{rank}="]))
    for shard in (*scenario.slow_servers, *scenario.server_cores):
        slow, quotas = ({s: v for s, v in of.items() if s != shard} for of in (scenario.slow_servers, scenario.server_cores))
        mended = replace(scenario, slow_servers=slow, server_cores=quotas)
        found.append(_Candidate(f"shard {shard}'s host with as much of a processor as the others", mended))
    rest_s = scenario.compute_s - data_s
    if data_s:
        threads = min(MOST_LOADERS, max(1, math.ceil(data_s / max(rest_s, data_s / MOST_LOADERS) / LOADED)))
        ahead = replace(scenario, forward_s=scenario.forward_s - data_s + max(0.0, data_s / threads - rest_s))
        found.append(_Candidate(f"train.data_workers = {threads}", ahead, [f"train.data_workers={threads}"]))
    quicker = replace(scenario, forward_s=(scenario.forward_s + data_s) / 2, backward_s=scenario.backward_s / 2)
    by = "quicker processors" if scenario.pipeline else "train.autocast, a quicker device"
    found.append(_Candidate(f"compute in half the time ({by})", quicker))
    costs = scenario.costs
    copied = replace(costs, copy_byte_s=costs.copy_byte_s / 2, install_byte_s=costs.install_byte_s / 2)
    found.append(_Candidate("copies in half the time (a faster bus to the device, fewer ranks on one host)", replace(scenario, costs=copied)))
    return [*found, _accumulated(scenario)]


def _accumulated(scenario: Scenario) -> _Candidate:
    """Twice as many micro-batches in a step: one exchange, and one copy of everything, for twice the samples."""
    parts, batch = 2 * scenario.micro_batches, scenario.global_batch
    compute = {name: 2 * getattr(scenario, name) for name in ("forward_s", "backward_s", "samples")}
    stages = scenario.pipeline
    if stages:
        stages = replace(stages, micro_batches=2 * stages.micro_batches, passed_bytes=tuple(2 * passed for passed in stages.passed_bytes))
    larger = replace(scenario, micro_batches=parts, global_batch=batch and 2 * batch, pipeline=stages, **compute)
    what = {"train.accumulate": parts} | ({"train.global_batch_size": 2 * batch} if batch else {})
    return _Candidate(" and ".join(f"{key} = {value}" for key, value in what.items()), larger, [f"{key}={value}" for key, value in what.items()])


def _formats(scenario: Scenario) -> Iterator[_Candidate]:
    comm = scenario.comm
    if comm.push_format == "fp32" and comm.pull_format == "fp32":
        halved = replace(scenario, comm=replace(comm, push_format="bf16", pull_format="bf16"))
        sets = ['comm.push_format="bf16"', 'comm.pull_format="bf16"']
        yield _Candidate('comm.push_format = "bf16" and comm.pull_format = "bf16"', halved, sets)


def _micro_batches(scenario: Scenario) -> Iterator[_Candidate]:
    """Twice as many, where ranks are split and have samples for them; what they cost more by themselves is not counted."""
    pipeline = scenario.pipeline
    if pipeline and 2 * pipeline.micro_batches <= scenario.samples:
        more = replace(scenario, pipeline=replace(pipeline, micro_batches=2 * pipeline.micro_batches))
        yield _Candidate("twice as many micro-batches (pipeline.micro_batches)", more)


def _rates(scenario: Scenario, *, settable: bool) -> Iterator[_Candidate]:
    """Links of twice the rate, and each that is thinner than the others as they are. `settable`: the config says what is simulated."""
    comm = scenario.comm
    if comm.bandwidth is None:
        return
    usual = comm.link_bytes_per_s()
    assert usual
    thinner = False
    one = "worker" if scenario.pipeline else "rank"
    for role, member, number in (("server", "shard", scenario.num_servers), ("worker", one, scenario.num_members)):
        rates: Mapping[int, str] = getattr(comm, f"{role}_bandwidth")
        thin = [index for index, rate in rates.items() if parse_rate(rate) < usual]
        thinner = thinner or bool(thin)
        names = {f"links of all {role}s as wide as the others": thin} if 1 < len(thin) == number else {}
        for name, mended in (names or {f"{member} {index}'s link like the others": [index] for index in thin}).items():
            left = {index: rate for index, rate in rates.items() if index not in mended}
            wider = replace(scenario, comm=replace(comm, **{f"{role}_bandwidth": left}))  # type: ignore[arg-type]
            yield _Candidate(name, wider, [f"comm.{role}_bandwidth.{index}=" for index in mended] if settable else [])
    if not thinner:
        rate = f"{round(16 * usual / 1e3)}kbit"
        twice = replace(scenario, comm=replace(comm, bandwidth=rate))
        yield _Candidate("links of twice the rate", twice, [f'comm.bandwidth="{rate}"'] if settable else [])
