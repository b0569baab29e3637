"""What being closed costs: a run's steps while strangers flood its server, beside the same flood against a server of another run; and
encrypted exchanges beside plain ones. `make bench-hostile`.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil

from benchmarks.harness import Contender, Row, Samples, report
from benchmarks.scale import Server, running, server_of, settings_of
from benchmarks.workload import parse_size
from ps.certificates import Authority

MUST = 1.10
MUST_TLS = 3.0
MOST_MB = 200.0
WORKERS = 2
TENSORS = 16
FLOODS = {"silent": 1000, "slow": 200, "push": 8, "rude": 8, "calls": 4}
"""Connections at once, by kind of flood."""


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # processes are stopped in `finally`
    rows: list[Row] = []
    for name, authority in (("tokens", None), ("certificates", Authority())):
        rows += _floods(name, authority, arguments)
    report([*rows, _tls(arguments)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-bytes", type=parse_size, default=parse_size("8MB"))
    parser.add_argument("--steps", type=int, default=20, help="measured steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=FLOODS, default=list(FLOODS), help="of floods")
    return parser.parse_args()


def _floods(name: str, authority: Authority | None, arguments: argparse.Namespace) -> Iterator[Row]:
    """Here and at another run's server in turns."""
    with _running(authority, arguments) as (server, stubs), server_of(settings_of(WORKERS, authority)) as other:
        stubs.run(Samples(), warmup=0, steps=arguments.steps)
        before_mb = psutil.Process(server.pid).memory_info().rss / 1e6
        for kind in arguments.kinds:
            here, there = Samples(), Samples()
            for _ in range(arguments.rounds):
                for target, samples in ((server, here), (other, there)):
                    with _flood(kind, target, encrypted=authority is not None):
                        stubs.run(samples, warmup=2, steps=arguments.steps)
            print(f"{name}, {kind}: {here.median * 1e3:.1f} ms per step, {there.median * 1e3:.1f} while another run's server is flooded", flush=True)
            yield Row(f"{name}, {kind} x {FLOODS[kind]}: step / same flood elsewhere", here.median, there.median, MUST)
        yield Row(f"{name}: growth of the flooded server, MB / limit", server.peak_bytes / 1e6 - before_mb, MOST_MB, 1.0)


def _running(authority: Authority | None, arguments: argparse.Namespace) -> Any:
    return running(WORKERS, authority, tensors=TENSORS, model_bytes=arguments.model_bytes)


@contextlib.contextmanager
def _flood(kind: str, server: Server, *, encrypted: bool) -> Iterator[None]:
    """Both ports, each by a process of its own."""
    tls = "tls" if encrypted else "plain"
    count = str(FLOODS[kind] // 2)
    command = [sys.executable, "-m", "benchmarks.peers.flood", kind]
    processes = [
        subprocess.Popen([*command, f"127.0.0.1:{port}", tls, count], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for port in (server.data, server.control)
    ]
    try:
        for process in processes:
            assert process.stdout
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _tls(arguments: argparse.Namespace) -> Row:
    """The same exchange with and without, in turns."""
    plain, encrypted = Samples(), Samples()
    with _running(None, arguments) as (_, one), _running(Authority(), arguments) as (_, two):
        pair: list[tuple[Contender, Samples]] = [(one, plain), (two, encrypted)]
        for _ in range(arguments.rounds):
            for contender, samples in pair:
                contender.run(samples, warmup=2, steps=arguments.steps)
    return Row(f"exchange of {arguments.model_bytes / 1e6:g} MB by {WORKERS} workers: TLS / plain", encrypted.median, plain.median, MUST_TLS)


if __name__ == "__main__":
    main()
