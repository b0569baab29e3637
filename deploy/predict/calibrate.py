"""Compute and costs of a scenario from the ledgers of one run or several. Pure."""

import math
import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from deploy.measure.ledger_file import LedgerStep
from deploy.measure.window import TRAFFIC
from deploy.predict.classes import EVERY, Frame, ServerClass, classes_of
from deploy.predict.costs import DECODE_BYTE_S, ENCODE_BYTE_S, Costs
from deploy.predict.scenario import Scenario, layers_of
from deploy.predict.stage_ledger import with_stages
from ps.errors import ConfigError
from ps.ledger import ServerRow

WARMUP = 3
"""First steps that are left out."""
LAGS = 1.15
"""From how many times the typical compute a rank is slow."""
STARVED = 1.5
"""From how many times the typical stretch on a server is taken to want a processor."""
ON_PROCESSORS, FREE = 0.5, 0.75
"""Compute that is on a processor for a smaller part of its time, while processors are busy for a smaller part of theirs, waits for something else: a
device, or a clock. It takes as long however many ranks share a host."""
SHARES_OVER_TIMES = 1.5
"""Spread of shares of a link over the spread of the times that pushes through it take."""


def fit(steps: Sequence[LedgerStep], run: Scenario) -> Scenario:
    """`run` with the compute of its typical rank, those that are slower, and costs that add up to what servers and workers spent. Raises
    ConfigError without steps.

    Sums and updates are taken as measured. What else a server's processor did is divided among frames and bytes as the default costs have it,
    and so is a worker's encoding; landing is taken to cost the same multiple.
    """
    used = _whole(steps, run)
    slow = {} if run.pipeline else slow_ranks(used)
    fitted = replace(_computing(used, run), cores_per_host=_cores(steps), stragglers=slow)
    return replace(fitted, costs=_costs(used, fitted))


def fit_together(runs: Sequence[tuple[Sequence[LedgerStep], Scenario]]) -> list[Scenario]:
    """Each run with its own compute, as processors did it, and the costs that suit them all: what frames and what bytes take of a processor
    is told apart where their frames are of several lengths, on both ends. Raises ConfigError as `fit`."""
    used = [_whole(steps, run) for steps, run in runs]
    fitted = [replace(_on_processors(its, _computing(its, run)), cores_per_host=_cores(steps)) for its, (steps, run) in zip(used, runs, strict=True)]
    single = [_costs(steps, run) for steps, run in zip(used, fitted, strict=True)]
    usual = runs[0][1].costs
    typical = {name: statistics.median(getattr(costs, name) for costs in single) for name in ("copy_byte_s", "install_byte_s", "step_s")}
    pairs = list(zip(used, fitted, strict=True))
    loop = _least([(*_moves(usual, run), run.num_servers, _loop_s(steps)) for steps, run in pairs])
    threads = _least([(_num_frames(run) / run.num_workers, _summed_s(usual, run), _threads_s(steps)) for steps, run in pairs])
    worker = _least([(*_exchanges(usual, run), run.num_workers, _worker_rest_s(steps)) for steps, run in pairs])
    factors = {"take_frame_s": loop[0], "take_byte_s": loop[1], "answer_frame_s": loop[0], "answer_byte_s": loop[1]}
    factors |= {"push_frame_s": worker[0], "push_byte_s": worker[1], "land_frame_s": worker[0], "land_byte_s": worker[1]}
    factors |= {"sum_byte_s": threads[1], "apply_byte_s": threads[1]}
    typical |= {"work_frame_s": threads[0], "server_step_s": loop[2], "worker_step_s": worker[2]}
    costs = replace(usual, **typical, **_on_wire(used, usual), **{name: getattr(usual, name) * factor for name, factor in factors.items()})
    return [replace(run, costs=costs) for run in fitted]


def _whole(steps: Sequence[LedgerStep], run: Scenario) -> list[LedgerStep]:
    used = [step for step in steady(steps) if len(step.workers) == run.num_members and len(step.servers) == run.num_servers]
    if not used:
        raise ConfigError(f"the run has no whole step after the first {WARMUP}: nothing to plan from")
    return used


def steady(steps: Sequence[LedgerStep]) -> list[LedgerStep]:
    """Without the first ones, and those in which a process came back."""
    return [step for step in steps[WARMUP:] if not step.recovers]


def _computing(steps: Sequence[LedgerStep], run: Scenario) -> Scenario:
    """The run with the compute of its typical rank."""
    if run.pipeline:
        return with_stages(steps, run)
    data_s, forward_s, backward_s = (statistics.median_low(by_rank(steps, name).values()) for name in ("data_wait_s", "forward_s", "backward_s"))
    samples = statistics.fmean(row.samples for step in steps for row in step.workers)
    on_host = run.computes_on_host and not _computes_elsewhere(steps, run, forward_s + backward_s)
    return replace(run, forward_s=forward_s + data_s, backward_s=backward_s, samples=samples, computes_on_host=on_host)


def _computes_elsewhere(steps: Sequence[LedgerStep], run: Scenario, compute_s: float) -> bool:
    """Whether the typical rank's compute waits for something else than the processors that it shares."""
    of_ranks = by_rank(steps, "compute_cpu_s")
    on_processors_s = statistics.median_low(of_ranks.values())
    if not 0 < on_processors_s < ON_PROCESSORS * compute_s:
        return False
    shares = run.hosts == "one" or math.isfinite(run.machine_cores)
    cores = min(run.machine_cores, _cores(steps)) if shares else _cores(steps)
    used_s = (sum(row.cpu_s for row in step.rows) if shares else max(row.cpu_s for row in step.workers) for step in steps)
    in_step = statistics.median(used / cores / step.workers[0].step_s for used, step in zip(used_s, steps, strict=True))
    in_compute = (sum if shares else max)(of_ranks.values()) / cores / compute_s  # ranks compute at once: the rest of a step may be quiet
    return max(in_step, in_compute) < FREE


def slow_ranks(steps: Sequence[LedgerStep], num_stages: int = 1) -> dict[int, float]:
    """Ranks that compute longer than the typical one, all their stages together: how many times as long."""
    compute: defaultdict[int, float] = defaultdict(float)
    for number, seconds in by_rank(steps, "compute_s").items():
        compute[number // num_stages] += seconds
    typical = statistics.median_low(compute.values())
    return {rank: value / typical for rank, value in compute.items() if typical and value > LAGS * typical}


def slow_servers(steps: Sequence[LedgerStep]) -> dict[int, float]:
    """Servers whose work waits for a processor more than that of the typical one, by shard: how many times as long it takes them."""
    rows: dict[int, list[ServerRow]] = {}
    for step in steps:
        for row in step.servers:
            rows.setdefault(row.shard, []).append(row)
    stretch = {shard: _stretch(its) for shard, its in rows.items()}
    typical = statistics.median_low(stretch.values()) if stretch else 1.0
    return {shard: value / typical for shard, value in stretch.items() if value > STARVED * typical}


def _stretch(rows: Sequence[ServerRow]) -> float:
    """How many times as long as on a processor their work took."""
    work_s, cpu_s = sum(row.decode_s + row.aggregate_s + row.apply_s for row in rows), sum(row.work_cpu_s for row in rows)
    return max(1.0, work_s / cpu_s) if cpu_s else 1.0


def _cores(steps: Sequence[LedgerStep]) -> float:
    """Of the typical host; this machine's if no process has told them."""
    told = [row.cores for step in steps for row in step.rows if row.cores]
    return statistics.median_low(told) if told else float(os.cpu_count() or 1)


def _on_processors(steps: Sequence[LedgerStep], run: Scenario) -> Scenario:
    """The run with the compute that processors did: what it took by the clock is more where others wanted them, which the model counts itself.
    Of stages it is that already."""
    if run.pipeline:
        return run
    data_s, cpu_s = (statistics.median_low(by_rank(steps, name).values()) for name in ("data_wait_s", "compute_cpu_s"))
    wall_s = run.compute_s - data_s
    part = min(1.0, cpu_s / wall_s) if cpu_s and wall_s and run.computes_on_host else 1.0
    return replace(run, forward_s=data_s + part * (run.forward_s - data_s), backward_s=part * run.backward_s)


def by_rank(steps: Sequence[LedgerStep], name: str) -> dict[int, float]:
    """Median of what the rows of each rank say; the lower of two is the typical rank, for the other one may be slow."""
    values: dict[int, list[float]] = {}
    for step in steps:
        for row in step.workers:
            values.setdefault(row.rank, []).append(getattr(row, name))
    return {rank: statistics.median(its) for rank, its in values.items()}


def _on_wire(runs: Sequence[Sequence[LedgerStep]], usual: Costs) -> dict[str, float]:
    """What links do to the bytes of these runs: the usual where none travelled."""
    overheads = [overhead for steps in runs if (overhead := _overhead(steps))]
    return {
        "wire_overhead": statistics.median(overheads or [usual.wire_overhead]),
        "unfairness": statistics.median([_unfairness(steps) for steps in runs if len(steps[0].workers) > 1] or [0.0]),
    }


def _overhead(steps: Sequence[LedgerStep]) -> float | None:
    """Bytes on the wire for a byte of payload, in the direction that has more of them; None where payload stayed on hosts."""
    traffics = [traffic for step in steps for row in step.workers for traffic in row.shards if not traffic.local]
    sums = {name: sum(getattr(traffic, name) for traffic in traffics) for name in TRAFFIC}
    if not sums["push_bytes"] or not sums["pull_bytes"]:
        return None
    return float(max(sums["push_wire_bytes"] / sums["push_bytes"], sums["pull_wire_bytes"] / sums["pull_bytes"]))


def _unfairness(steps: Sequence[LedgerStep]) -> float:
    """How differently ranks have fared that pushed to the same shard over equal links, from the times it took them. Who is left behind has
    the link for itself at the end: shares differ more than times. Ranks that compute longer push for longer anyway: they are left out."""
    slow = slow_ranks(steps)
    logs: dict[tuple[int, int, float | None], list[float]] = {}
    for step in steps:
        for row in step.workers:
            for traffic in row.shards if row.rank not in slow else ():
                if (
                    not traffic.local
                    and traffic.push_from_s is not None
                    and traffic.push_to_s is not None
                    and traffic.push_from_s > traffic.push_to_s
                ):
                    key = step.step, traffic.shard, row.link_bytes_per_s
                    logs.setdefault(key, []).append(math.log(traffic.push_from_s - traffic.push_to_s))
    spreads = [statistics.stdev(values) for values in logs.values() if len(values) > 1]
    return SHARES_OVER_TIMES * sum(spreads) / max(1, len(spreads))


def _loop_s(steps: Sequence[LedgerStep]) -> float:
    """Processor seconds of all servers in a step beside their threads' for sums and updates."""
    return _per_step([[max(0.0, row.cpu_s - row.work_cpu_s) for row in step.servers] for step in steps])


def _threads_s(steps: Sequence[LedgerStep]) -> float:
    """Processor seconds of all servers' threads for sums and updates in a step."""
    return _per_step([[row.work_cpu_s for row in step.servers] for step in steps])


def _worker_rest_s(steps: Sequence[LedgerStep]) -> float:
    """Processor seconds of all workers in a step beside compute, copies and bookkeeping."""
    data_s = statistics.median_low(by_rank(steps, "data_wait_s").values())
    return _per_step(
        [
            [max(0.0, row.cpu_s - row.compute_cpu_s - data_s - row.copy_s - row.install_s - row.ledger_s - row.other_s) for row in step.workers]
            for step in steps
        ]
    )


def _num_frames(run: Scenario) -> float:
    """That all workers push in a step."""
    return sum(cls.count for cls, _ in _frames(classes_of(run, layers_of(run.specs), EVERY).servers)) * run.num_workers


def _summed_s(usual: Costs, run: Scenario) -> float:
    """What the bytes of sums and updates cost all servers in a step by the usual costs."""
    codecs = DECODE_BYTE_S[run.comm.push_format] * run.num_workers + ENCODE_BYTE_S[run.comm.pull_format]
    return run.model_bytes * (run.num_workers * usual.sum_byte_s + usual.apply_byte_s + codecs)


def _moves(usual: Costs, run: Scenario) -> tuple[float, float]:
    """What frames, and what bytes, cost all servers in a step by the usual costs."""
    frames = _frames(classes_of(run, layers_of(run.specs), EVERY).servers)
    of_frames = sum(cls.count for cls, _ in frames) * run.num_workers * (usual.take_frame_s + usual.answer_frame_s)
    return of_frames, sum(
        cls.count * run.num_workers * (usual.take_byte_s * frame.push_bytes + usual.answer_byte_s * frame.pull_bytes) for cls, frame in frames
    )


def _exchanges(usual: Costs, run: Scenario) -> tuple[float, float]:
    """The same of all workers."""
    frames = _frames(classes_of(run, layers_of(run.specs), EVERY).servers)
    of_frames = sum(cls.count for cls, _ in frames) * run.num_workers * (usual.push_frame_s + usual.land_frame_s)
    return of_frames, sum(
        cls.count * run.num_workers * (usual.push_byte_s * frame.push_bytes + usual.land_byte_s * frame.pull_bytes) for cls, frame in frames
    )


def _least(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Factors >= 0 of a row's first numbers whose sums are nearest to its last one, the seconds, relative to these."""
    table = np.array([row[:-1] for row in rows]) / np.array([[max(row[-1], 1e-9)] for row in rows])
    count = table.shape[1]
    best, least = np.zeros(count), math.inf
    for size in range(1, count + 1):
        for columns in map(list, combinations(range(count), size)):
            some = np.zeros(count)
            some[columns] = np.linalg.lstsq(table[:, columns], np.ones(len(rows)), rcond=None)[0]
            off = float(np.sum((table @ some - 1) ** 2))
            if some.min() >= 0 and off < least - 1e-12:
                best, least = some, off
    return tuple(best.tolist())


def _costs(steps: Sequence[LedgerStep], run: Scenario) -> Costs:
    usual, classes = run.costs, classes_of(run, layers_of(run.specs), EVERY)
    exact = sum(cls.count * frame.exact_bytes for cls, frame in _frames(classes.servers))
    decode_s, cast_s = DECODE_BYTE_S[run.comm.push_format], ENCODE_BYTE_S[run.comm.pull_format]
    aggregate_s, apply_s, cpu_s = (
        _per_step([[getattr(row, name) for row in step.servers] for step in steps]) for name in ("aggregate_s", "apply_s", "cpu_s")
    )
    on_processor = 1 / _stretch([row for step in steps for row in step.servers])
    aggregate_s, apply_s = on_processor * aggregate_s, on_processor * apply_s
    moves_s = sum(cls.count * run.num_workers * _moves_s(usual, frame, is_shared=run.is_shared) for cls, frame in _frames(classes.servers))
    encode_s = _per_step([[traffic.encode_s for row in step.workers for traffic in row.shards] for step in steps]) / run.num_workers
    encodes_s = sum(cls.count * _encodes_s(usual, run, frame) for cls, frame in _frames(classes.servers))
    of_server = max(0.0, cpu_s - aggregate_s - apply_s) / moves_s
    of_worker = encode_s / encodes_s if encode_s else 1.0
    names = {"take_frame_s": of_server, "take_byte_s": of_server, "answer_frame_s": of_server, "answer_byte_s": of_server}
    names |= dict.fromkeys(("push_frame_s", "push_byte_s", "land_frame_s", "land_byte_s", "shared_byte_s"), of_worker)
    copy_s, install_s = (
        _per_step([[getattr(row, name) for row in step.workers] for step in steps]) / run.num_workers for name in ("copy_s", "install_s")
    )
    return replace(
        usual,
        sum_byte_s=max(0.0, aggregate_s / (exact * run.num_workers) - decode_s),
        apply_byte_s=max(0.0, apply_s / exact - cast_s),
        copy_byte_s=copy_s / run.model_bytes,
        install_byte_s=install_s / run.model_bytes,
        step_s=_per_step([[row.ledger_s + row.other_s for row in step.workers] for step in steps]) / run.num_members,
        **_on_wire([steps], usual),
        **{name: getattr(usual, name) * factor for name, factor in names.items()},
    )


def _per_step(values: Sequence[Sequence[float]]) -> float:
    """The typical sum over all members."""
    return statistics.median(map(sum, values))


def _frames(servers: Sequence[ServerClass]) -> list[tuple[ServerClass, Frame]]:
    return [(cls, frame) for cls in servers for frame in cls.frames]


def _moves_s(costs: Costs, frame: Frame, *, is_shared: bool) -> float:
    """A server's event loop for one rank's frame and its answer."""
    of_bytes = 0.0 if is_shared else costs.take_byte_s * frame.push_bytes + costs.answer_byte_s * frame.pull_bytes
    return costs.take_frame_s + costs.answer_frame_s + of_bytes


def _encodes_s(costs: Costs, run: Scenario, frame: Frame) -> float:
    byte_s = costs.shared_byte_s if run.is_shared else costs.push_byte_s
    return costs.push_frame_s + byte_s * frame.push_bytes + ENCODE_BYTE_S[run.comm.push_format] * frame.exact_bytes
