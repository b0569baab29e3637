"""How far the plan is from what is measured, on virtual hosts and in configurations that it was not calibrated on. `make plan-accuracy`.

Every run's ledger is kept as it ends: the same command goes on where it was left. When all have been run it begins anew.
"""

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.ledgers import ledger_of, ledgers_in, on_hosts, step_s
from deploy.config import Config, RunConfig, ScalingConfig, TaskConfig
from deploy.measure.ledger_file import LedgerStep
from deploy.predict.calibrate import WARMUP, fit_together
from deploy.predict.classes import EVERY
from deploy.predict.inputs import scenario_of_config
from deploy.predict.scenario import Scenario
from deploy.predict.simulate import Prediction, simulate
from ps.config import CommConfig, OptimizerConfig, SecurityConfig
from workers.config import TrainConfig

SETTLED, STEPS = 6, 20
"""First steps that are left out, while TCP learns its links, and those that are measured: the median of eight moves by 5% from run to run.
So is the last step, in which nobody begins the next."""
WIDTH = 512
BATCHES = {"wide": 8, "busy": 4096}
"""Samples of a worker in a step: of a perceptron with little compute for its bytes, and of one with much."""
INPUTS = {"wide": 512, "busy": 128}
RATES = ("50mbit", "100mbit", "200mbit")
DIFFERENT = 0.05
"""Every case is run twice, the second time when all have been run: machines have slow minutes. By how much these two steps must differ for a
third run, of which the middle one counts."""
EXPOSED, BUSY = 0.3, 0.75
"""From which part of a step exposed communication, and of all cores' time work, rules a case."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration."""

    model: str
    workers: int
    servers: int
    rate: str
    wire: str

    def __str__(self) -> str:
        return f"{self.model}-{self.workers}x{self.servers}-{self.rate}-{self.wire}"

    def config(self, folder: str) -> Config:
        """With the frames that the plan says: what ranks find when they measure a link that others measure too is not the same in every run."""
        num_steps, batch = SETTLED + STEPS + 1, BATCHES[self.model]
        fields = {"inputs": INPUTS[self.model], "width": WIDTH, "depth": 2, "samples": batch * self.workers * num_steps}
        comm = {"push_format": self.wire, "pull_format": self.wire}
        config = Config(
            task=TaskConfig(name="synthetic-mlp", fields=fields),
            train=TrainConfig(batch_size=batch, max_steps=num_steps),
            optimizer=OptimizerConfig(name="adam", lr=1e-3),
            scaling=ScalingConfig(num_workers=self.workers, num_servers=self.servers),
            comm=CommConfig(bandwidth=self.rate, shaping="links", **comm),  # type: ignore[arg-type]
            security=SecurityConfig(allow_plaintext=True),
            run=RunConfig(storage_path=folder),
        )
        frames = scenario_of_config(config, []).pacing
        return replace(config, comm=replace(config.comm, frame_bytes=frames.frame_bytes, window_frames=frames.window_frames))


CALIBRATION = {
    "wide": Case(model="wide", workers=1, servers=2, rate="400mbit", wire="fp32"),
    "busy": Case(model="busy", workers=1, servers=2, rate="400mbit", wire="bf16"),
    "frames": Case(model="busy", workers=3, servers=1, rate="25mbit", wire="fp32"),
}
"""Compute of either model, and frames of other lengths; none is in the grid."""


@dataclass(frozen=True)
class Found:
    """A case as measured and as predicted; `steps_s` of every run."""

    case: Case
    steps_s: Sequence[float]
    exposed: float
    """Part of the step."""
    busy: float
    """Part of the time of all cores."""
    prediction: Prediction

    @property
    def measured_s(self) -> float:
        return statistics.median(self.steps_s)

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return self.prediction.step_s / self.measured_s - 1


def draw(count: int, seed: int) -> list[Case]:
    """Different ones, models, rates and formats in turn; those that compute much on at least four workers and two servers."""
    rng, cases = random.Random(seed), list[Case]()
    while len(cases) < count:
        i = len(cases)
        model = tuple(BATCHES)[i % 2]
        is_busy = model == "busy"
        workers, servers = rng.randint(4 if is_busy else 1, 6), rng.randint(2 if is_busy else 1, 4)
        case = Case(model=model, workers=workers, servers=servers, rate=RATES[i // 2 % len(RATES)], wire=("fp32", "bf16")[i // 2 // len(RATES) % 2])
        if case not in cases:
            cases.append(case)
    return cases


def spread(steps_s: Sequence[float]) -> float:
    """By how much the longest is longer than the shortest."""
    return max(steps_s) / min(steps_s) - 1


def measure(case: Case, folder: Path, repeat: int = 0) -> list[LedgerStep]:
    """The ledger of a run, which is kept in the folder."""
    return ledger_of(folder / f"{case}-{repeat}.jsonl", case.config)


def _settled(steps: Sequence[LedgerStep]) -> Sequence[LedgerStep]:
    return steps[SETTLED:-1]


def _found(case: Case, runs: Sequence[Sequence[LedgerStep]], calibrated: Mapping[str, Scenario]) -> Found:
    used = [step for run in runs for step in _settled(run)]
    like = calibrated[case.model]
    scenario = replace(on_hosts(case.config("."), runs[0]), forward_s=like.forward_s, backward_s=like.backward_s, costs=like.costs)
    total_s = sum(statistics.fmean(row.step_s for row in step.workers) for step in used)
    exposed_s = sum(statistics.fmean(row.exposed_s for row in step.workers) for step in used)
    busy_s = sum(row.cpu_s for step in used for row in step.rows)
    busy = busy_s / total_s / (os.cpu_count() or 1)
    return Found(case, [step_s(_settled(run)) for run in runs], exposed_s / total_s, busy, simulate(scenario, EVERY))


def table(found: Sequence[Found]) -> str:
    """Markdown."""
    lines = ["| Case | measured ms | of runs of | predicted ms | error | exposed | cores busy |", "|---|---|---|---|---|---|---|"]
    for one in found:
        cells = (
            f"{one.measured_s * 1e3:.0f}",
            ", ".join(f"{run_s * 1e3:.0f}" for run_s in one.steps_s),
            f"{one.prediction.step_s * 1e3:.0f}",
            f"{one.error:+.1%}",
            f"{one.exposed:.0%}",
            f"{one.busy:.0%}",
        )
        lines.append(f"| {one.case} | {' | '.join(cells)} |")
    spreads = [spread(one.steps_s) for one in found]
    exposed, busy = (sum(getattr(one, name) >= limit for one in found) for name, limit in (("exposed", EXPOSED), ("busy", BUSY)))
    lines.append(f"\nWith at least {EXPOSED:.0%} exposed: {exposed}; with cores at least {BUSY:.0%} busy: {busy} of {len(found)}.")
    lines.append(f"Runs of the same case differ by {statistics.median(spreads):.1%} in the middle, by {max(spreads):.1%} at most.")
    return "\n".join(lines)


def _page(text: str, seed: int) -> str:
    runs = ", ".join(map(str, CALIBRATION.values()))
    made = f"Written by `make plan-accuracy` (`--seed {seed}`), calibrated from {runs}; see [predict.md](predict.md#how-far-it-is-off)."
    return f"# The plan beside what is measured\n\n{made}\n\n{text}\n"


def main() -> None:
    arguments = _arguments()
    with ledgers_in(arguments.folder, "plan-accuracy") as folder:
        found = compare(draw(arguments.cases, arguments.seed), folder)
    print(text := table(found))
    errors = [abs(one.error) for one in found]
    median, worst = statistics.median(errors), max(errors)
    if arguments.table:
        arguments.table.write_text(_page(text, arguments.seed) + f"\nError: {median:.1%} in the middle, {worst:.1%} at worst.\n")
    print(json.dumps({"cases": len(found), "median_error": round(median, 4), "worst_error": round(worst, 4)}))


def compare(cases: Sequence[Case], folder: Path) -> list[Found]:
    """Runs and predicts all of them."""
    ledgers = {name: measure(case, folder) for name, case in CALIBRATION.items()}
    fitted = fit_together([(steps[SETTLED - WARMUP : -1], on_hosts(CALIBRATION[name].config("."), steps)) for name, steps in ledgers.items()])
    calibrated = dict(zip(ledgers, fitted, strict=True))
    print(f"costs: {calibrated['frames'].costs}", file=sys.stderr)
    rounds = [[measure(case, folder, repeat) for case in cases] for repeat in range(2)]
    runs = [list(its) for its in zip(*rounds, strict=True)]
    for case, its in zip(cases, runs, strict=True):
        if spread([step_s(_settled(run)) for run in its]) > DIFFERENT:
            its.append(measure(case, folder, repeat=2))
    return [_found(case, its, calibrated) for case, its in zip(cases, runs, strict=True)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where ledgers are kept: what is there is not run again (default: until all have been run)")
    parser.add_argument("--table", type=Path, help="file for the table, in Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    main()
