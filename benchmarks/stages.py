"""Memory of a rank's workers when its model is split over stages, and how long these wait for each other: `make bench-stages`.

A worker's memory is what no other process shares (USS), in the middle of training, above that of such a worker whose model is next to
nothing. The most that a stage has had at any time, its start included, is printed beside it.
"""

import argparse
import statistics
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.harness import Row, report
from benchmarks.waits import measured
from benchmarks.workload import parse_size
from deploy.config import RunConfig, ScalingConfig
from deploy.trainer import Trainer
from ps.config import CommConfig, OptimizerConfig
from workers.config import PipelineConfig, TrainConfig
from workers.tasks.synthetic_mlp import SyntheticMLP

LAYERS = 8
MUST = 1.15
POLL_S = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-bytes", type=parse_size, default=400_000_000, help="for example 400MB")
    parser.add_argument("--stages", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    width = round((arguments.model_bytes / 4 / LAYERS) ** 0.5)
    print(f"{LAYERS} layers of {4 * width * width / 1e6:.0f} MB, one rank, SGD, plain processes, gradients over gRPC")
    whole, most_of_whole = memory_above_empty(width, 1, arguments.steps)
    rows = [measured(3, 6), measured(2, 4)]
    for stages in arguments.stages:
        found, most = memory_above_empty(width, stages, arguments.steps)
        rows.append(Row(f"memory of one of {stages} stages / that part of the whole", found / 1e6, whole / stages / 1e6, MUST))
        rows.append(Row(f"the most of one of {stages} stages / that part of the whole", most / 1e6, most_of_whole / stages / 1e6, MUST))
    report(rows)


def memory_above_empty(width: int, stages: int, steps: int) -> tuple[float, float]:
    """Bytes of a worker while it trains layers of this width, and the most it has had; means over a rank's workers."""
    empty, full = memory_of(8, stages, steps), memory_of(width, stages, steps)
    used, most = ([worker[i] - nothing[i] for worker, nothing in zip(full, empty, strict=True)] for i in (0, 1))
    print(f"{stages} stages: {_megabytes(used)} above {_megabytes(one for one, _ in empty)}; at most {_megabytes(most)}", flush=True)
    return statistics.fmean(used), statistics.fmean(most)


def _megabytes(sizes: Iterable[float]) -> str:
    return ", ".join(f"{size / 1e6:.0f}" for size in sizes) + " MB"


def memory_of(width: int, stages: int, steps: int) -> list[tuple[float, float]]:
    """Bytes of every worker of one rank while it trains layers of this width, and the most that it has had."""
    with tempfile.TemporaryDirectory() as folder, Watched() as watched:
        result = Trainer(
            SyntheticMLP(inputs=width, width=width, depth=LAYERS - 1, classes=width, samples=8 * steps),
            train_config=TrainConfig(epochs=1, batch_size=8),
            optimizer=OptimizerConfig(lr=1e-4),
            comm=CommConfig(shared_memory=False),
            scaling_config=ScalingConfig(num_workers=1, num_servers=1, num_stages=stages),
            pipeline=PipelineConfig(micro_batches=2),
            run_config=RunConfig(storage_path=str(Path(folder))),
            launcher="process",
            quiet=True,
        ).fit()
    if result.error:
        raise result.error
    return [(statistics.median(seen[len(seen) // 2 :]), max(seen)) for seen in watched.seen.values()]


class Watched:
    """Looks at the workers of this process now and then."""

    def __init__(self) -> None:
        self.seen: defaultdict[int, list[float]] = defaultdict(list)
        """Bytes by process, in the order of the looks."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="look")

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(POLL_S):
            for process in psutil.Process().children():
                with suppress(psutil.Error):
                    if "workers.worker" in process.cmdline():
                        self.seen[process.pid].append(process.memory_full_info().uss)


if __name__ == "__main__":
    main()
