"""Why a worker has one stream to a server, a host one server, and a quick link frames of 4 MiB: others beside them, in the same run.
`make bench-streams`.
"""

import argparse
import signal
import sys
from typing import Any

from benchmarks.harness import Entry, Row, Samples, compete, report
from benchmarks.peers import raw
from benchmarks.workload import model_bytes_of, parse_size, width_of

SERVERS = (1, 2, 4)
FRAMES_MIB = (1, 2, 4, 8)
MUST = 1.05
"""How many times as long as with the best number a step may take with the one that is the default."""
WARMUP = 3
REMOTE: dict[str, object] = {"compute": False, "comm": {"shared_memory": False}}


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # contenders are stopped in `finally`
    print(f"{arguments.workers} workers on one host, a model of {model_bytes_of(arguments.width) / 1e6:.0f} MB")
    common: dict[str, Any] = {
        "workers": arguments.workers,
        "width": arguments.width,
        "rounds": arguments.rounds,
        "warmup": WARMUP,
        "steps": arguments.steps,
    }
    raws = compete({"raw": Entry(module="raw", members=1, variants=raw.SEVERAL)}, title="bare gRPC, MiB of a message x streams", **common)
    shared = _compared("whole steps in shared memory", {f"{n} servers": {"servers": n} for n in SERVERS}, common)
    remote = _compared("gRPC only, no compute", {f"{n} servers": {**REMOTE, "servers": n} for n in SERVERS}, common)
    frames = {f"{n} MiB": {**REMOTE, "comm": {"shared_memory": False, "frame_bytes": n << 20}} for n in FRAMES_MIB}
    by_frames = _compared("gRPC only, no compute, 2 servers, frames of", frames, common)
    by_streams = {variant: samples for (_, variant), samples in raws.items()}
    report([
        _row("bare gRPC: 1 stream / best number", by_streams, raw.SEVERAL[0]),
        _row("shared memory: 1 server / best number", shared, "1 servers"),
        _row("gRPC only: 1 server / best number", remote, "1 servers"),
        _row("gRPC only: frames of 4 MiB / best length", by_frames, "4 MiB"),
    ])  # fmt: skip


def _compared(title: str, works: dict[str, dict[str, object]], common: dict[str, Any]) -> dict[str, Samples]:
    """Of ours with each of these workloads."""
    samples = compete({name: Entry(module="ours", members=common["workers"], work=work) for name, work in works.items()}, title=title, **common)
    return {name: samples[name, ""] for name in works}


def _row(measure: str, samples: dict[str, Samples], default: str) -> Row:
    return Row(measure, samples[default].median, min(its.median for its in samples.values()), MUST)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model-bytes", type=parse_size, default=100_700_000, help="for example 400MB")
    parser.add_argument("--steps", type=int, default=5, help="measured steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.width = width_of(arguments.model_bytes)
    return arguments


if __name__ == "__main__":
    main()
