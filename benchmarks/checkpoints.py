"""What checkpoints cost: one every 50 steps beside none, in the same run. `make bench-checkpoints ARGS="--workers 4"`.

There is a checkpoint in every other stretch of 50 steps, so that what else the machine does falls on both kinds alike.
"""

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Row, report
from benchmarks.workload import ENDS, model_bytes_of, parse_size, width_of
from deploy.config import RunConfig, ScalingConfig
from deploy.trainer import Trainer
from ps.config import CheckpointConfig, OptimizerConfig
from workers.config import TrainConfig
from workers.tasks.synthetic_mlp import SyntheticMLP

STRETCH = 50
MUST = 1.05
WARMUP = 2
"""Stretches, one of each kind."""


def main() -> None:
    arguments = _arguments()
    print(f"perceptron of {model_bytes_of(arguments.width) / 1e6:.0f} MB and Adam, {arguments.workers} workers, 1 server, plain processes")
    with tempfile.TemporaryDirectory(dir=arguments.storage) as folder:
        seconds = _steps(Path(folder), arguments)
    stretches = [seconds[at : at + STRETCH] for at in range(1, len(seconds) - STRETCH + 1, STRETCH)][WARMUP:]
    saving, resting = stretches[::2], stretches[1::2]
    for name, kind in (("with a checkpoint", saving), ("without", resting)):
        print(f"{name:<18} ms per step: {', '.join(f'{statistics.fmean(one) * 1e3:.1f}' for one in kind)}")
    report([Row("step with a checkpoint every 50 / without", _mean(saving), _mean(resting), MUST)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model-bytes", type=parse_size, default=100_700_000, help="for example 400MB")
    parser.add_argument("--batch", type=int, default=32, help="samples per worker")
    parser.add_argument("--pairs", type=int, default=4, help="stretches with a checkpoint, and as many without")
    parser.add_argument("--storage", default=".", help="folder for the run directory, on the disk to be measured")
    arguments = parser.parse_args()
    arguments.width = width_of(arguments.model_bytes)
    return arguments


def _mean(stretches: Sequence[Sequence[float]]) -> float:
    return statistics.fmean(step for one in stretches for step in one)


def _steps(folder: Path, arguments: argparse.Namespace) -> list[float]:
    """Seconds of every step, mean of the ranks. Checkpoints are of steps 100, 200, ...; their bytes are copied in the step after."""
    steps = STRETCH * (2 * arguments.pairs + WARMUP) + 1
    result = Trainer(
        SyntheticMLP(inputs=ENDS, width=arguments.width, depth=2, classes=ENDS, samples=arguments.batch * arguments.workers * steps),
        train_config=TrainConfig(epochs=1, batch_size=arguments.batch),
        optimizer=OptimizerConfig(name="adam", lr=1e-4),
        scaling_config=ScalingConfig(num_workers=arguments.workers, num_servers=1),
        run_config=RunConfig(storage_path=str(folder)),
        checkpoint=CheckpointConfig(every_steps=2 * STRETCH),
        launcher="process",
        quiet=True,
    ).fit()
    if result.error:
        raise result.error
    found: defaultdict[int, list[float]] = defaultdict(list)
    for line in (result.path / "comm.jsonl").read_text().splitlines():
        step = json.loads(line)
        found[step["step"]] += [row["step_s"] for row in step["rows"] if row["kind"] == "worker"]
    return [statistics.fmean(found[step]) for step in range(steps)]


if __name__ == "__main__":
    main()
