"""Why a worker has one stream to a server, and a host one server: more of either, in the same run. `make bench-streams`."""

import argparse
import signal
import sys

from benchmarks.harness import Entry, Row, Samples, compete, report
from benchmarks.peers import raw
from benchmarks.workload import model_bytes_of, parse_size, width_of

SERVERS = (1, 2, 4)
MUST = 1.05
"""How many times as long as with the best number a step may take with the one that is the default."""
WARMUP = 3


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # contenders are stopped in `finally`
    print(f"{arguments.workers} workers on one host, a model of {model_bytes_of(arguments.width) / 1e6:.0f} MB")
    common = {"workers": arguments.workers, "width": arguments.width, "rounds": arguments.rounds, "warmup": WARMUP, "steps": arguments.steps}
    raws = compete({"raw": Entry(module="raw", members=1, variants=raw.SEVERAL)}, title="bare gRPC, MiB of a message x streams", **common)
    shared = _by_servers(arguments.workers, "whole steps in shared memory", {}, common)
    remote = _by_servers(arguments.workers, "gRPC only, no compute", {"compute": False, "comm": {"shared_memory": False}}, common)
    by_streams = {variant: samples for (_, variant), samples in raws.items()}
    report([
        _row("bare gRPC: 1 stream / best number", by_streams, raw.SEVERAL[0]),
        _row("shared memory: 1 server / best number", shared, "1"),
        _row("gRPC only: 1 server / best number", remote, "1"),
    ])  # fmt: skip


def _by_servers(workers: int, title: str, work: dict[str, object], common: dict[str, int]) -> dict[str, Samples]:
    entries = {f"{count} servers": Entry(module="ours", members=workers, work={**work, "servers": count}) for count in SERVERS}
    samples = compete(entries, title=title, **common)
    return {str(count): samples[f"{count} servers", ""] for count in SERVERS}


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
