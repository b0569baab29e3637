"""Means of the ledger's rows over a stretch of steps, and the path through each step that its length came from. Pure."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from deploy.predict.noise import GradientNoise
from ps import metrics
from ps.ledger import ServerRow, WorkerRow

Key = TypeVar("Key")

SPANS = tuple(f"{name}_s" for name in metrics.SPANS)
"""Fields of a worker's row that add up to its step."""
BETWEEN = tuple(f"{name}_s" for name in metrics.BETWEEN)
"""And those of the time after and before it."""
PARTS = {
    "data loading": ("data_wait_s",),
    "compute": ("forward_s", "backward_s"),
    "pipeline bubble": ("bubble_s",),
    "copies and encoding": ("copy_s", "encode_s", "install_s"),
    "transfers": ("send_s", "receive_s"),
    "apply": ("apply_s",),
    "bookkeeping": ("checkpoint_s", "ledger_s", "other_s"),
}
"""What a step of a rank that waits for nobody is made of."""
OWN_PARTS = ("data loading", "compute", "copies and encoding")
"""Parts in which a rank keeps the others waiting by itself."""
FELT = 0.15
"""Part of the step that one rank must lose by itself to be named: to mend less would not be felt."""
MOST = 0.6
"""Part of the steps in which a rank's lag must be felt, if it is not steady: one long stall hides no slow rank."""
MOST_OF = 5
"""Of as many steps at least."""
LEAST_STEPS = 3
"""Steps below which no rank is told from the others: two may be slow by chance."""
STEADY = 3.0
"""Standard errors by which a rank's lag must differ from nothing."""
TRAFFIC = ("push_bytes", "pull_bytes", "push_wire_bytes", "pull_wire_bytes")
_TIMES = ("push_s", "pull_s", "busy_s")
_SERVER_FIELDS = ("ingress_bytes", "egress_bytes", "ingress_s", "decode_s", "aggregate_s", "apply_s", "work_cpu_s", "cpu_s", "wait_s")


class Means:
    """Means of named values, each over the times it was added."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()

    def add(self, name: str, value: float) -> None:
        self._sums[name] += value
        self._counts[name] += 1

    def __getitem__(self, name: str) -> float:
        return self._sums[name] / self._counts[name] if self._counts[name] else 0.0


class Window:
    """Steps `first_step` to `last_step`; seconds and bytes are means per step, of those in which no process came back. Not thread-safe."""

    def __init__(self) -> None:
        self.num_steps = 0
        """Of which the means are: those that a worker has told of."""
        self.recoveries: dict[int, float] = {}
        """The other steps, and how long each was, in seconds."""
        self.first_step: int | None = None
        self.last_step: int | None = None
        self.steps = Means()
        """`step_s` and `exposed_s` of the mean rank."""
        self.ranks: defaultdict[int, Means] = defaultdict(Means)
        """By rank, or by worker where ranks have stages: its spans, `step_s`, `exposed_s`, `samples`."""
        self.shards: defaultdict[int, Means] = defaultdict(Means)
        """By shard: fields of its rows; `used`, the part of its `cores` that it used; the traffic of all ranks
        together; its times as the rank saw them that was served longest."""
        self.links: dict[int, float | None] = {}
        """By shard: rate its link is shaped to, bytes/s; None if it is not."""
        self.bytes: defaultdict[int, Counter[str]] = defaultdict(Counter)
        """By shard: TRAFFIC of all steps and ranks together."""
        self.rank_links: dict[int, float | None] = {}
        """By rank: rate its link is shaped to, bytes/s; None if it is not."""
        self.peak_bytes: dict[int, int] = {}
        """By worker: the most memory it has had, where ranks have stages."""
        self.num_stages = 1
        """Workers of each rank."""
        self.micro_batches = 1
        """Of a rank in a step."""
        self.noise = GradientNoise()
        """What norms of gradients say of the batch."""
        self.diverged = 0
        """Frames that came again with other bytes."""
        self._lags: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])  # sums of first and second powers
        self._felt: Counter[int] = Counter()
        self._path: defaultdict[str, float] = defaultdict(float)
        self._excess: defaultdict[tuple[int, str], float] = defaultdict(float)
        self._waits: defaultdict[int, float] = defaultdict(float)

    def add(self, step: int, rows: Iterable[WorkerRow | ServerRow]) -> None:
        """The rows of one step; some may be missing."""
        self.first_step = step if self.first_step is None else self.first_step
        self.last_step = step
        workers: list[WorkerRow] = []
        servers: list[ServerRow] = []
        for row in rows:
            if isinstance(row, WorkerRow):
                workers.append(row)
            else:
                servers.append(row)
                self.diverged += row.diverged
        self._add_bytes(workers)
        if any(row.rejoined for row in workers):
            self.recoveries[step] = max(row.step_s for row in workers)
            return
        for server in servers:
            self._add_server(server)
        if workers:
            self.num_steps += 1
            self._add_workers(workers)
            self._add_norms(workers, servers)
            self._add_cores(max(row.step_s for row in workers), servers)

    @property
    def num_all(self) -> int:
        """Steps that a worker has told of, whatever happened in them."""
        return self.num_steps + len(self.recoveries)

    @property
    def path(self) -> dict[str, float]:
        """Seconds of each part in the rank that nobody had to wait longer for, per step."""
        return self._per_step(self._path)

    @property
    def excess(self) -> dict[tuple[int, str], float]:
        """What of `path` the rank spent beyond the median of the others, by rank and part."""
        return self._per_step(self._excess)

    @property
    def waits(self) -> dict[int, float]:
        """Seconds per step that the most patient rank waited, by the rank it waited for."""
        return self._per_step(self._waits)

    @property
    def rank_link(self) -> float | None:
        """Rate of the thinnest link of a rank, bytes/s; None if none is shaped."""
        return min((rate for rate in self.rank_links.values() if rate), default=None)

    def is_steady_lag(self, rank: int) -> bool:
        """Whether what the rank spends more than the others on its own parts is no noise of a few steps."""
        mean, mean_square = (power / self.num_steps for power in self._lags[rank])
        error = math.sqrt(max(0.0, mean_square - mean * mean) / max(1, self.num_steps - 1))
        return self.num_steps >= LEAST_STEPS and mean >= STEADY * error

    def lag_s(self, rank: int) -> float:
        """Seconds per step that the rank spends more than the others on its own parts; less than 0 if it spends less."""
        return self._lags[rank][0] / self.num_steps

    def is_felt_lag(self, rank: int) -> bool:
        """Whether most steps are longer by the rank's lag, those not counted that are longer by another's."""
        others = max((count for other, count in self._felt.items() if other != rank), default=0)
        return self._felt[rank] - others >= MOST * max(self.num_steps, MOST_OF)

    def name(self, worker: int) -> str:
        """The rank, and which stage of it."""
        return f"rank {worker}" if self.num_stages == 1 else f"rank {worker // self.num_stages} stage {worker % self.num_stages}"

    def part_s(self, rank: int, part: str) -> float:
        """Seconds per step that `rank` spent on one of PARTS."""
        return sum(self.ranks[rank][span] for span in PARTS[part])

    @property
    def exposed_share(self) -> float:
        """Part of the step in which communication was not hidden behind compute, 0 to 1."""
        return self.steps["exposed_s"] / self.steps["step_s"] if self.steps["step_s"] else 0.0

    def totals(self) -> dict[str, Any]:
        """For summary.json: means per step, and bytes over all steps."""
        shards = {str(shard): {name: sums[name] for name in TRAFFIC} for shard, sums in sorted(self.bytes.items())}
        return {
            "steps": self.num_all,
            "step_s": self.steps["step_s"],
            "exposed_s": self.steps["exposed_s"],
            "exposed_share": self.exposed_share,
            **{name: sum(shard[name] for shard in shards.values()) for name in TRAFFIC},
            "noise_scale": self.noise.scale,
            "shards": shards,
        }

    def _per_step(self, sums: dict[Key, float]) -> dict[Key, float]:
        return {key: value / self.num_steps for key, value in sums.items()}

    def _add_bytes(self, rows: Sequence[WorkerRow]) -> None:
        for traffic in (traffic for row in rows for traffic in row.shards):
            self.bytes[traffic.shard].update({name: getattr(traffic, name) for name in TRAFFIC})

    def _add_server(self, row: ServerRow) -> None:
        for name in _SERVER_FIELDS:
            self.shards[row.shard].add(name, getattr(row, name))
        self.links[row.shard] = row.link_bytes_per_s

    def _add_workers(self, rows: Sequence[WorkerRow]) -> None:
        self.num_stages, self.micro_batches = rows[0].num_stages, rows[0].micro_batches
        for row in rows:
            for name in (*SPANS, *BETWEEN, "step_s", "exposed_s", "samples", "passed_bytes"):
                self.ranks[row.rank].add(name, getattr(row, name))
            self.rank_links[row.rank] = row.link_bytes_per_s
            if row.peak_bytes:
                self.peak_bytes[row.rank] = max(row.peak_bytes, self.peak_bytes.get(row.rank, 0))
        for name in ("step_s", "exposed_s"):
            self.steps.add(name, statistics.fmean(getattr(row, name) for row in rows))
        for shard in {traffic.shard for row in rows for traffic in row.shards}:
            traffics = [traffic for row in rows for traffic in row.shards if traffic.shard == shard]
            for name in TRAFFIC:
                self.shards[shard].add(name, sum(getattr(traffic, name) for traffic in traffics))
            self.shards[shard].add("encode_s", sum(traffic.encode_s for traffic in traffics))
            self.shards[shard].add("local", statistics.fmean(traffic.local for traffic in traffics))
            for name in _TIMES:
                self.shards[shard].add(name, max(getattr(traffic, name) for traffic in traffics))
        self._add_path(rows)

    def _add_norms(self, workers: Sequence[WorkerRow], servers: Sequence[ServerRow]) -> None:
        """Of a step in which all shards have taken norms. A rank's batch is the harmonic mean of all: noise goes with one over the samples."""
        of_ranks = [row.rank_squares for row in servers if row.rank_squares is not None]
        of_mean = [row.mean_square for row in servers if row.mean_square is not None]
        batches = [row.samples for row in workers if row.samples]
        if of_mean and len(of_mean) == len(of_ranks) == len(self.shards) and len(workers) == len(self.ranks) and len(batches) > 1:
            self.noise.add(statistics.harmonic_mean(batches), sum(of_ranks) / len(batches), sum(batches), sum(of_mean))

    def _add_cores(self, step_s: float, servers: Sequence[ServerRow]) -> None:
        """What part of the processors that it may use each server has used: in the first step no more than there was, for that row begins earlier."""
        for row in servers:
            if row.cores and step_s:
                self.shards[row.shard].add("used", min(1.0, row.cpu_s / (row.cores * step_s)))
                self.shards[row.shard].add("cores", row.cores)

    def _add_path(self, rows: Sequence[WorkerRow]) -> None:
        """Follows the barrier to its end: the rank that waited least kept all others waiting."""
        slowest = min(rows, key=lambda row: (row.barrier_wait_s, -_own(row), row.rank))
        others = _peers(slowest, rows)
        for part in PARTS:
            own = _part(slowest, part)
            common = min(own, statistics.median(_part(row, part) for row in others)) if others else own
            self._path[part] += own
            self._excess[slowest.rank, part] += own - common
        self._path["transfers"] += slowest.barrier_wait_s  # even the slowest waits while the last bytes of others travel
        for row in rows:
            lag = _own(row) - statistics.median([_own(other) for other in _peers(row, rows)] or [_own(row)])
            self._lags[row.rank][0] += lag
            self._lags[row.rank][1] += lag * lag
            self._felt[row.rank] += lag >= FELT * row.step_s
        for rank in {row.waits_for for row in rows if row.waits_for is not None}:
            self._waits[rank] += max(row.barrier_wait_s for row in rows if row.waits_for == rank)


def _peers(row: WorkerRow, rows: Sequence[WorkerRow]) -> list[WorkerRow]:
    """Of the other ranks: the same stage of each."""
    return [other for other in rows if other is not row and (other.rank - row.rank) % row.num_stages == 0]


def _own(row: WorkerRow) -> float:
    return sum(_part(row, part) for part in OWN_PARTS)


def _part(row: WorkerRow, part: str) -> float:
    return float(sum(getattr(row, span) for span in PARTS[part]))
