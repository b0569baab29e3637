"""One machine: pserver beside DDP over gloo and beside Ray's example, gRPC beside its bare rate, and steps with the ledger beside steps without.

`make bench-local ARGS="--workers 2"`, `ARGS="--ledger-only --rounds 20"`.
"""

import argparse
import signal
import sys

from benchmarks.guards import report_guards
from benchmarks.harness import Entry, Row, compete, report
from benchmarks.peers import ddp, ledger, ours, raw
from benchmarks.workload import model_bytes_of, parse_size, width_of

MUST_DDP = {2: 0.70, 4: 0.68}
"""Ours over DDP's step by number of workers; other numbers are held to the stricter one."""
MUST_RAY = 0.30
MUST_GRPC = 1.6
MUST_LEDGER = 1.01
WARMUP = 3


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # contenders are stopped in `finally`
    shape = f"1024-{arguments.width}-{arguments.width}-1024, {model_bytes_of(arguments.width) / 1e6:.0f} MB"
    print(f"perceptron {shape}, batch {arguments.batch} per worker")
    print("one torch thread per worker; contenders take turns, times are means of the members")
    rows: list[Row] = []
    if not arguments.ledger_only:
        for workers in arguments.workers:
            rows += _steps(workers, arguments)
        if not arguments.no_grpc:
            rows.append(_grpc(arguments))
        report_guards(arguments.width, arguments.servers or 1)
    report([*rows, _ledger(arguments)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, action="append", help="workers of a run; may be repeated (default: 2 and 4)")
    parser.add_argument("--servers", type=int, help="default: 1 for whole steps, 2 for the exchange over gRPC")
    parser.add_argument("--model-bytes", type=parse_size, default=100_700_000, help="for example 400MB")
    parser.add_argument("--batch", type=int, default=32, help="samples per worker")
    parser.add_argument("--steps", type=int, default=5, help="measured steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-ray", action="store_true", help="leave Ray's example out")
    parser.add_argument("--no-grpc", action="store_true", help="leave out the exchange over gRPC alone")
    parser.add_argument("--ledger-only", action="store_true", help="only what the ledger costs")
    arguments = parser.parse_args()
    arguments.workers = arguments.workers or [2, 4]
    arguments.width = width_of(arguments.model_bytes)
    return arguments


def _steps(workers: int, arguments: argparse.Namespace) -> list[Row]:
    """Whole steps."""
    servers = arguments.servers or 1
    work = {"workers": workers, "servers": servers, "width": arguments.width, "batch": arguments.batch}
    entries = {
        "ours": Entry(module="ours", members=workers, variants=["", ours.ALONE]),
        "ddp": Entry(module="ddp", members=workers, variants=ddp.VARIANTS),
    }
    if not arguments.no_ray:
        entries["ray_example"] = Entry(module="ray_example", members=1)
    title = f"{workers} workers, {servers} servers"
    samples = compete(entries, rounds=arguments.rounds, warmup=WARMUP, steps=arguments.steps, title=title, **work)
    mine, best = samples["ours", ""], min((samples["ddp", v] for v in ddp.VARIANTS), key=lambda s: s.median)
    rows = [Row(f"{workers} workers: step / DDP's best", mine.median, best.median, MUST_DDP.get(workers, min(MUST_DDP.values())))]
    if not arguments.no_ray:
        rows.append(Row(f"{workers} workers: step / Ray's example", mine.median, samples["ray_example", ""].median, MUST_RAY))
    return rows


def _grpc(arguments: argparse.Namespace) -> Row:
    """An exchange without compute over gRPC, beside 2*W*M bytes at the best rate of one bare stream."""
    workers = 2
    servers = arguments.servers or 2
    work = {"workers": workers, "servers": servers, "width": arguments.width, "compute": False, "comm": {"shared_memory": False}}
    title = f"gRPC only, {workers} workers, {servers} servers, no compute (raw: the model once, one stream)"
    entries = {"ours": Entry(module="ours", members=workers), "raw": Entry(module="raw", members=1, variants=raw.VARIANTS)}
    samples = compete(entries, rounds=arguments.rounds, warmup=WARMUP, steps=arguments.steps, title=title, **work)
    floor = 2 * workers * min(samples["raw", variant].median for variant in raw.VARIANTS)
    return Row("gRPC only, 2 workers: exchange / raw rate", samples["ours", ""].median, floor, MUST_GRPC)


def _ledger(arguments: argparse.Namespace) -> Row:
    """The same processes keep the ledger in one stretch and do without in the next."""
    workers, servers = arguments.workers[0], arguments.servers or 1
    work = {"workers": workers, "servers": servers, "width": arguments.width, "batch": arguments.batch}
    entries = {"ours": Entry(module="ledger", members=workers, variants=ledger.VARIANTS)}
    title = f"{workers} workers, {servers} servers, with and without the ledger"
    samples = compete(entries, rounds=arguments.rounds, warmup=WARMUP, steps=arguments.steps, title=title, **work)
    kept, left = samples["ours", ledger.WITH], samples["ours", ledger.WITHOUT]
    return Row("step with the ledger / without", kept.median, left.median, MUST_LEDGER)


if __name__ == "__main__":
    main()
