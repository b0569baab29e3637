"""Whether planted bottlenecks are named, and the step that a change is predicted to bring is there when it is tried. `make verdicts`.

Runs on virtual hosts, one after the other. What is planted, and how much of it, is drawn by seed; the verdict sees the ledger alone.
"""

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deploy.config import Config, RunConfig, ScalingConfig, TaskConfig, load
from deploy.launch.base import Role
from deploy.measure.ledger_file import LedgerStep, read_ledger
from deploy.measure.verdict import Verdict, verdict
from deploy.measure.window import Window
from deploy.predict.calibrate import WARMUP
from deploy.predict.changes import Change, outlook
from deploy.predict.inputs import scenario_of_run
from deploy.rundir import RunDirectory
from deploy.simulation.run import simulate as train_on_hosts
from deploy.simulation.wishes import Wishes
from ps.config import CommConfig, OptimizerConfig, SecurityConfig
from workers.config import TrainConfig

STEPS = 24
"""Of a case, unless it says otherwise, after WARMUP that are not looked at."""
RIGHT = 0.95
"""Part of the cases that must be named."""
NEAR = 0.15
"""How far a step that was tried may be from the predicted one."""
MEMBER = re.compile(r"rank \d|shard \d|layout|data loading|copies")
"""What is named where something is wrong with one of the members or its input, and never where nothing is planted."""
EVEN = [16384] * 12
"""Elements of layers whose 24 chunks two or three servers share evenly."""
_HALVES = {"compute": "compute in half", "copy": "copies in half"}
"""How changes begin that no key of the config makes, by what of the task they halve."""
SIZES = (1.3, 4.0)
"""How many times as much as without it a planted bottleneck takes, at least and at most."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained on which hosts, and what should be said of it."""

    kind: str
    size: float
    workers: int
    servers: int
    expected: str
    """Regular expression of the resource; empty: none of MEMBER."""
    task: Mapping[str, Any] = field(default_factory=dict)
    bandwidth: str | None = None
    wishes: Wishes = field(default_factory=Wishes)
    steps: int = STEPS
    busy: int | None = None
    """The shard whose host has a `size`-th of the processor time that it uses by itself: how much that is depends on the machine."""

    def __str__(self) -> str:
        return f"{self.kind} x{self.size:.1f}, {self.workers} x {self.servers}"

    def config(self, folder: str) -> Config:
        batch, steps = 4, WARMUP + self.steps
        return Config(
            task=TaskConfig(name="benchmarks.planted:Planted", fields={**self.task, "samples": batch * self.workers * steps}),
            train=TrainConfig(batch_size=batch, max_steps=steps),
            optimizer=OptimizerConfig(name="adam", lr=1e-3),
            scaling=ScalingConfig(num_workers=self.workers, num_servers=self.servers),
            comm=CommConfig(bandwidth=self.bandwidth),
            security=SecurityConfig(allow_plaintext=True),
            run=RunConfig(storage_path=folder),
        )

    def is_right(self, found: Verdict) -> bool:
        return bool(re.fullmatch(self.expected, found.resource)) if self.expected else not MEMBER.search(found.resource)


class Draw:
    """Cases of a seed, kind after kind."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._kinds = [
            self._server_link,
            self._worker_link,
            self._nothing_on_links,
            self._slow_rank,
            self._busy_server,
            self._layout,
            self._latency,
            self._nothing_but_compute,
            self._data,
            self._copies,
            self._compute,
            self._nothing_in_particular,
        ]

    def cases(self, count: int) -> list[Case]:
        """A dozen kinds in turn; with three of them nothing is planted."""
        return [self._kinds[number % len(self._kinds)]() for number in range(count)]

    def _size(self) -> float:
        low, high = SIZES
        return float(low * (high / low) ** self._rng.random())

    def _mbit(self) -> int:
        return self._rng.randint(40, 80)

    def _server_link(self) -> Case:
        return self._thin_link("server", ((2, 2), (3, 2), (3, 3)), "shard {} (ingress|egress)")

    def _worker_link(self) -> Case:
        return self._thin_link("worker", ((2, 2), (3, 3), (2, 3)), "rank {}'s (link|transfers)")

    def _thin_link(self, role: Role, shapes: Sequence[tuple[int, int]], expected: str) -> Case:
        """Of one host; `shapes`: numbers of workers and servers."""
        size, mbit = self._size(), self._mbit()
        workers, servers = self._rng.choice(shapes)
        index = self._rng.randrange(workers if role == "worker" else servers)
        wishes = Wishes(hosts=(f"{role}-{index}:bandwidth={round(1e3 * mbit / size)}kbit",))
        return Case(
            kind=f"{role}'s link", size=size, workers=workers, servers=servers, expected=expected.format(index),
            task={"sizes": EVEN, "compute_s": 0.02}, bandwidth=f"{mbit}mbit", wishes=wishes,
        )  # fmt: skip

    def _nothing_on_links(self) -> Case:
        workers, servers = self._rng.choice(((2, 2), (3, 2), (3, 3)))
        return Case(
            kind="nothing", size=1.0, workers=workers, servers=servers, expected="",
            task={"sizes": EVEN, "compute_s": 0.02}, bandwidth=f"{self._mbit()}mbit",
        )  # fmt: skip

    def _nothing_but_compute(self) -> Case:
        workers, servers = self._rng.choice(((2, 2), (3, 2), (4, 1)))
        task = {"sizes": [8192] * 8, "compute_s": self._rng.uniform(0.06, 0.2)}
        return Case(kind="nothing", size=1.0, workers=workers, servers=servers, expected="", task=task)

    def _slow_rank(self) -> Case:
        size, workers = self._size(), self._rng.randint(2, 4)
        rank = self._rng.randrange(workers)
        return Case(
            kind="slow rank", size=size, workers=workers, servers=self._rng.randint(1, 2), expected=f"rank {rank}'s compute",
            task={"sizes": [8192] * 8, "compute_s": self._rng.uniform(0.1, 0.15)}, wishes=Wishes(stragglers=(f"rank={rank},factor={size:.2f}",)),
        )  # fmt: skip

    def _busy_server(self) -> Case:
        size, servers = self._size(), 2
        shard = self._rng.randrange(servers)
        return Case(
            kind="busy server", size=size, workers=2, servers=servers, expected=f"CPU of shard {shard}'s host",
            task={"sizes": [1 << 20] * 8, "compute_s": 0.02}, steps=STEPS // 2, busy=shard,
        )  # fmt: skip

    def _layout(self) -> Case:
        """As many tensors as shards, each of one chunk, and one of them larger: bytes that cannot be balanced."""
        size, servers = self._size(), self._rng.randint(2, 3)
        sizes = [8192] + [round(8192 / size)] * (servers - 1)
        return Case(
            kind="layout", size=size, workers=2, servers=servers, expected="layout", task={"sizes": sizes}, bandwidth="100mbit",
            wishes=Wishes(server_bandwidth=f"{self._rng.randint(4, 6)}mbit"),
        )  # fmt: skip

    def _latency(self) -> Case:
        size = self._size()
        wishes = Wishes(latency=f"{5 * size:.1f}ms")
        return Case(kind="latency", size=size, workers=2, servers=2, expected="latency of the exchange", task={"sizes": [256] * 4}, wishes=wishes)

    def _compute(self) -> Case:
        size = self._size()
        task = {"sizes": [8192] * 8, "compute_s": 0.05 * size}
        return Case(kind="compute", size=size, workers=2, servers=self._rng.randint(1, 2), expected="compute", task=task)

    def _data(self) -> Case:
        size, compute_s = self._size(), 0.05
        task = {"sizes": [8192] * 8, "compute_s": compute_s, "data_s": compute_s * size}
        return Case(kind="data loading", size=size, workers=2, servers=self._rng.randint(1, 2), expected="data loading", task=task)

    def _nothing_in_particular(self) -> Case:
        workers = self._rng.randint(2, 3)
        return Case(kind="nothing", size=1.0, workers=workers, servers=workers, expected="", task={"sizes": [65536] * 8, "compute_s": 0.03})

    def _copies(self) -> Case:
        size, compute_s = self._size(), 0.05
        task = {"sizes": [8192] * 8, "compute_s": compute_s, "copy_s": compute_s * size}
        return Case(kind="device copies", size=size, workers=2, servers=self._rng.randint(1, 2), expected="copies and encoding", task=task)


@dataclass(frozen=True)
class Told:
    """What a run's ledger says."""

    found: Verdict
    step_s: float
    """Median of the mean rank."""
    changes: Sequence[Change]


def told(case: Case, run: RunDirectory) -> Told:
    steps = list(read_ledger(run.comm))
    window = Window()
    for step in steps[WARMUP:]:
        window.add(step.step, step.rows)
    seen = outlook(scenario_of_run(run), steps)
    return Told(verdict(window), _step_s(steps), seen.changes if seen else ())


def trained(case: Case, config: Config, wishes: Wishes) -> RunDirectory:
    """Raises RuntimeError if the run fails."""
    outcome = train_on_hosts(config, wishes, quiet=True)
    if outcome.error is not None or outcome.path is None:
        raise RuntimeError(f"{case} has failed: {outcome.error}")
    return RunDirectory(Path(outcome.path))


def with_quota(case: Case) -> Case:
    """As it is planted, after a run without, for a server that is to be busy."""
    if case.busy is None:
        return case
    with tempfile.TemporaryDirectory() as folder:
        steps = list(read_ledger(trained(case, case.config(folder), case.wishes).comm))
    cpu_s = statistics.median(row.cpu_s for step in steps[WARMUP:] for row in step.servers if row.shard == case.busy)
    return replace(case, wishes=Wishes(hosts=(f"server-{case.busy}:cpus={cpu_s / _step_s(steps) / case.size:.3f}",)))


def tried(case: Case, change: Change, run: RunDirectory, folder: str) -> float:
    """The step of the run with the change."""
    halved = [f"task.{name}_s={case.task.get(f'{name}_s', 0.0) / 2}" for name in _HALVES if change.what.startswith(_HALVES[name])]
    config = load(run.config, [*change.sets, *halved, f"run.storage_path={json.dumps(folder)}", "run.name="])
    # rates, latency and slow ranks are in the run's config
    cpus = [text for text in case.wishes.hosts if "cpus" in text and "processor" not in change.what]
    return _step_s(list(read_ledger(trained(case, config, Wishes(hosts=cpus)).comm)))


def _step_s(steps: Sequence[LedgerStep]) -> float:
    return statistics.median(statistics.fmean(row.step_s for row in step.workers) for step in steps[WARMUP:])


def main() -> None:
    arguments = _arguments()
    right, with_confidence, near = 0, 0, list[bool]()
    for number, case in enumerate(map(with_quota, Draw(arguments.seed).cases(arguments.cases))):
        with tempfile.TemporaryDirectory() as folder:
            run = trained(case, case.config(folder), case.wishes)
            seen = told(case, run)
            is_right = case.is_right(seen.found)
            right += is_right
            with_confidence += not is_right and seen.found.is_sure
            print(_line(case, seen, is_right=is_right), flush=True)
            for change in seen.changes if number < arguments.tried else ():
                step_s = tried(case, change, run, folder)
                near.append(abs(change.step_s / step_s - 1) <= NEAR)
                print(f"  {change.what}: predicted {_ms(change.step_s)}, tried {_ms(step_s)}, {change.step_s / step_s - 1:+.0%}", flush=True)
    of_tried = {"tried": len(near), "near": sum(near)} if arguments.tried else {}
    print(json.dumps({"cases": arguments.cases, "right": right, "wrong_with_confidence": with_confidence, **of_tried}))
    sys.exit(right < RIGHT * arguments.cases or with_confidence > 0 or not all(near))


def _line(case: Case, seen: Told, *, is_right: bool) -> str:
    sure = "sure" if seen.found.is_sure else "unsure"
    planted = f"{case!s:<34}{_ms(seen.step_s):>8}"
    return f"{'right' if is_right else 'WRONG':<6} {planted}  {seen.found.resource:<27} {sure:<7} {seen.found.evidence}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--tried", type=int, default=0, help="of how many cases the three best changes are made, and their steps compared with the predicted ones"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
