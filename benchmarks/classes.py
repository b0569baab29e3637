"""What classes of equal members cost in accuracy: the model with every member by itself, and with classes. `make plan-classes`; ten minutes.

Nothing is measured: both are the model's. The table goes into docs/predict.md.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.growth import filled
from deploy.predict.classes import EVERY, FINE
from deploy.predict.costs import Costs
from deploy.predict.scenario import Racks, Scenario, equal_tensors, tensors_of
from deploy.predict.simulate import simulate
from ps.config import CommConfig
from workers.shapes import shapes_named

PAGE = Path("docs/predict.md")
MB = 1 << 20
MUST = 0.01


@dataclass(frozen=True)
class Found:
    """Steps in seconds."""

    name: str
    every_s: float
    classes_s: float

    @property
    def error(self) -> float:
        return self.classes_s / self.every_s - 1


def scenarios(workers: int, servers: int) -> Mapping[str, Scenario]:
    """By a few words each."""
    usual = Scenario(
        specs=equal_tensors(64 * MB, 32),
        forward_s=0.05,
        backward_s=0.1,
        num_workers=workers,
        num_servers=servers,
        comm=CommConfig(bandwidth="2gbit"),
        latency_s=50e-6,
        costs=Costs(),
        cores_per_host=8,
    )
    ten = replace(usual, comm=CommConfig(bandwidth="10gbit"))
    of_servers = dict.fromkeys(range(servers), "1gbit")
    rack = max(2, workers // 8)
    return {
        "2 Gbit/s": usual,
        "100 Mbit/s, 16 MiB": replace(usual, specs=equal_tensors(16 * MB, 16), comm=CommConfig(bandwidth="100mbit")),
        "10 Gbit/s, 128 MiB": replace(ten, specs=equal_tensors(128 * MB, 32)),
        "25 Gbit/s, 256 MiB, 64 tensors": replace(usual, specs=equal_tensors(256 * MB, 64), comm=CommConfig(bandwidth="25gbit")),
        "2 tensors": replace(usual, specs=equal_tensors(64 * MB, 2)),
        "100 tensors": replace(usual, specs=equal_tensors(64 * MB, 100)),
        "ResNet-50, 10 Gbit/s": replace(ten, specs=tensors_of(shapes_named("resnet50"))),
        "compute on devices, 10 Gbit/s": replace(ten, computes_on_host=False),
        "compute rules, 10 Gbit/s": replace(ten, forward_s=0.5, backward_s=1.0),
        "no compute": replace(usual, forward_s=0.0, backward_s=0.0),
        "servers' links thin": replace(ten, specs=equal_tensors(32 * MB, 32), comm=replace(ten.comm, server_bandwidth=of_servers)),
        "hosts of two cores, 10 Gbit/s": replace(ten, cores_per_host=2),
        "slow servers": replace(ten, costs=Costs().scaled(3), server_cores=dict.fromkeys(range(servers), 1.0)),
        "three slow ranks": replace(usual, stragglers={1: 1.5, workers // 2: 1.2, workers - 1: 1.7}),
        "one slow server": replace(usual, slow_servers={1: 4.0}),
        "two thin workers": replace(usual, specs=equal_tensors(32 * MB, 32), worker_links={2: 5e7, workers - 3: 8e7}),
        "bf16 both ways": replace(usual, comm=replace(usual.comm, push_format="bf16", pull_format="bf16")),
        "5 ms of latency": replace(usual, latency_s=0.005),
        "without overlap": replace(usual, overlap=False),
        "servers on workers' hosts": replace(usual, specs=equal_tensors(32 * MB, 32), hosts="colocated"),
        "4 micro-batches": replace(usual, micro_batches=4),
        "racks": replace(usual, specs=equal_tensors(32 * MB, 32), racks=Racks(size=rack, uplink_bytes_per_s=2.5e8 * rack / 4)),
        "windows of 8 frames": replace(usual, comm=replace(usual.comm, window_frames=8)),
        "windows of 8 frames, 100 Mbit/s, 16 MiB": replace(
            usual, specs=equal_tensors(16 * MB, 16), comm=CommConfig(bandwidth="100mbit", window_frames=8)
        ),
        "links divided unevenly": replace(usual, specs=equal_tensors(32 * MB, 16), costs=Costs(unfairness=0.3)),
    }  # fmt: skip


def compared(name: str, scenario: Scenario) -> Found:
    found = Found(name, simulate(scenario, EVERY).step_s, simulate(scenario, FINE).step_s)
    print(f"{name}: {found.error:+.2%}", file=sys.stderr, flush=True)
    return found


def table(found: Sequence[Found]) -> str:
    """Markdown."""
    lines = ["| Exchange | every member s | classes s | off by |", "|---|---|---|---|"]
    lines += [f"| {one.name} | {one.every_s:.3f} | {one.classes_s:.3f} | {one.error:+.2%} |" for one in found]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--servers", type=int, default=16)
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE}")
    arguments = parser.parse_args()
    cases = scenarios(arguments.workers, arguments.servers)
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(compared, cases.keys(), cases.values()))
    print(table(found))
    if arguments.write:
        PAGE.write_text(filled(PAGE.read_text(), {"classes": table(found)}, "make plan-classes"))
    errors = [abs(one.error) for one in found]
    within = sum(error <= MUST for error in errors)
    figures = {"median_error": statistics.median(errors), "worst_error": max(errors)}
    print(json.dumps({"cases": len(found), "within": within, **{name: round(error, 4) for name, error in figures.items()}}))


if __name__ == "__main__":
    main()
