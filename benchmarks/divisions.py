"""How far the plan of ranks and stages is from what is measured, on virtual hosts, and whether it names the quickest. `make plan-stages`.

Planned from the config alone, whose task is timed here first, and from the ledger of one run of stages as well. Every run's ledger is kept as
it ends: the same command goes on where it was left.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.ledgers import ledger_of, ledgers_in, on_hosts, step_s
from deploy.config import Config, RunConfig, ScalingConfig, TaskConfig
from deploy.measure.ledger_file import LedgerStep
from deploy.predict.blocks import Blocks
from deploy.predict.calibrate import WARMUP, fit
from deploy.predict.simulate import simulate
from deploy.predict.stages import Divisions
from ps.config import CommConfig, OptimizerConfig, SecurityConfig
from workers.config import PipelineConfig, TrainConfig

STEPS = 8
"""Measured, after WARMUP that are not."""
BATCH, WIDTH, DEPTH = 512, 512, 3
"""Samples of a step, and a perceptron of 4 MB."""
RATES = ("100mbit", "25mbit")


@dataclass(frozen=True)
class Case:
    """Two servers, and as many workers as all others."""

    ranks: int
    stages: int
    micro_batches: int
    rate: str

    def __str__(self) -> str:
        return f"{self.ranks}x{self.stages}-{self.micro_batches}-{self.rate}"

    def config(self, folder: str) -> Config:
        fields = {"inputs": WIDTH, "width": WIDTH, "depth": DEPTH, "samples": BATCH * (WARMUP + STEPS)}
        return Config(
            task=TaskConfig(name="synthetic-mlp", fields=fields),
            train=TrainConfig(global_batch_size=BATCH, max_steps=WARMUP + STEPS),
            optimizer=OptimizerConfig(name="adam", lr=1e-3),
            scaling=ScalingConfig(num_workers=self.ranks, num_stages=self.stages, num_servers=2),
            pipeline=PipelineConfig(micro_batches=self.micro_batches),
            comm=CommConfig(bandwidth=self.rate, shaping="links"),
            security=SecurityConfig(allow_plaintext=True),
            run=RunConfig(storage_path=folder),
        )


CALIBRATION = Case(1, 2, 2, "50mbit")
"""Not among those that are predicted."""
DIVISIONS = ((4, 1, 1), (2, 2, 1), (2, 2, 4), (1, 4, 4), (1, 4, 8))


def measure(case: Case, folder: Path) -> list[LedgerStep]:
    """The ledger of a run, which is kept in the folder."""
    return ledger_of(folder / f"{case}.jsonl", case.config)


class Planner:
    """Predicts cases."""

    def __init__(self, steps: Sequence[LedgerStep], blocks: Blocks) -> None:
        """`steps`: of CALIBRATION."""
        self._blocks = blocks
        self._run = fit(steps, on_hosts(CALIBRATION.config("."), steps))
        timed = Divisions(CALIBRATION.config("."), self._run, blocks).scenario(CALIBRATION.ranks, CALIBRATION.stages, CALIBRATION.micro_batches)
        self.slowness = (self._run.forward_s + self._run.backward_s) / (timed.forward_s + timed.backward_s)
        """Compute of the run over that of the blocks by themselves."""

    def step_s(self, case: Case, steps: Sequence[LedgerStep], *, from_run: bool) -> float:
        hosts = on_hosts(case.config("."), steps)
        if from_run:
            hosts = replace(hosts, costs=self._run.costs)
        divisions = Divisions(case.config("."), hosts, self._blocks, self.slowness if from_run else 1.0)
        return simulate(divisions.scenario(case.ranks, case.stages, case.micro_batches)).step_s


@dataclass(frozen=True)
class Found:
    """Seconds of a step."""

    case: Case
    measured_s: float
    from_config_s: float
    from_run_s: float


def table(found: Sequence[Found]) -> str:
    """Markdown."""
    lines = [
        "| Ranks x stages, micro-batches, links | measured ms | from the config ms | error | from a run ms | error |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        cells = [f"{one.case}", f"{one.measured_s * 1e3:.0f}"]
        for predicted_s in (one.from_config_s, one.from_run_s):
            cells += [f"{predicted_s * 1e3:.0f}", f"{predicted_s / one.measured_s - 1:+.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where ledgers are kept: what is there is not run again (default: until all have been run)")
    parser.add_argument("--rates", nargs="+", default=list(RATES))
    arguments = parser.parse_args()
    found, named = [], 0
    with ledgers_in(arguments.folder, "plan-stages") as folder:
        planner = Planner(measure(CALIBRATION, folder), Blocks(CALIBRATION.config(".")))
        for rate in arguments.rates:
            there = []
            for division in DIVISIONS:
                case = Case(*division, rate)
                steps = measure(case, folder)
                there.append(Found(case, step_s(steps[WARMUP:]), *(planner.step_s(case, steps, from_run=known) for known in (False, True))))
            named += min(there, key=lambda one: one.measured_s) is min(there, key=lambda one: one.from_run_s)
            found += there
    print(f"compute in the run takes {planner.slowness:.2f} times what blocks take by themselves", file=sys.stderr)
    print(table(found))
    errors = {name: [abs(getattr(one, f"{name}_s") / one.measured_s - 1) for one in found] for name in ("from_config", "from_run")}
    figures = {
        f"{kind}_error_{name}": round(of(values), 3)
        for name, values in errors.items()
        for kind, of in (("median", statistics.median), ("worst", max))
    }
    print(json.dumps({"cases": len(found), **figures, "quickest_named": f"{named} of {len(arguments.rates)}"}))


if __name__ == "__main__":
    main()
