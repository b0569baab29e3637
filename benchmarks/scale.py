"""One server and many stub workers: its CPU time per push, and its memory while one rank stands still. `make bench-scale`."""

import argparse
import contextlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import START_S, Contender, Entry, Row, Samples, gate, report, start_here
from benchmarks.workload import parse_size
from ps.certificates import Authority
from ps.config import OptimizerConfig, ServerSettings, to_json
from ps.credentials import new_secret
from ps.roles import Role

MUST_PUSH_US = 400.0
MUST_GROWTH = 1.2
SLACK_MB = 64.0
CHUNKS = 16
"""In the frame that every worker pushes in every step; one tensor each."""
MEMORY_TENSORS = 8
SLOTS = 2
"""Values that Adam keeps for every parameter."""
WARMUP = 3
CPUCLOCK_SCHED = 2
"""Of Linux's clocks of a whole process."""


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # processes are stopped in `finally`
    print(f"one server with default settings and Adam; every stub worker pushes {CHUNKS} chunks of {arguments.chunk_elements} elements in one frame")
    rows: list[Row] = []
    found = {workers: _push_us(workers, arguments) for workers in arguments.workers}
    for workers in arguments.workers:
        print(f"{workers} workers, a bare relay of as long messages: {_relay_us(workers, arguments):.0f} us per message", flush=True)
    for workers, push_us in found.items():
        rows.append(Row(f"{workers} workers: server CPU us per push / limit", push_us, MUST_PUSH_US, 1.0))
    few, many = min(found), max(found)
    if few != many:
        rows.append(Row(f"server CPU us per push: {many} workers / {few}", found[many], found[few], MUST_GROWTH))
    report(rows + [_memory(workers, arguments) for workers in arguments.memory_workers])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, action="append", help="may be repeated (default: 64 and 256)")
    parser.add_argument("--memory-workers", type=int, action="append", help="may be repeated (default: 2 and 8)")
    parser.add_argument("--model-bytes", type=parse_size, default=parse_size("100MB"), help="of the model whose memory is measured")
    parser.add_argument("--chunk-elements", type=int, default=1024, help="1 to 8192")
    parser.add_argument("--steps", type=int, default=10, help="measured steps in a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.workers = arguments.workers or [64, 256]
    arguments.memory_workers = arguments.memory_workers or [2, 8]
    return arguments


def _push_us(workers: int, arguments: argparse.Namespace) -> float:
    """CPU time of the server process per rank and step in microseconds, at the median round."""
    samples = Samples()
    with running(workers, tensors=CHUNKS, model_bytes=_frame_bytes(arguments)) as (server, stubs):
        cpu_us = _cpu_us(server.pid, stubs, workers, arguments, samples)
    median = statistics.median(cpu_us)
    print(f"{workers} workers: {median:.0f} us per push ({min(cpu_us):.0f}..{max(cpu_us):.0f}), {samples.median * 1e3:.0f} ms per step", flush=True)
    return median


def _relay_us(workers: int, arguments: argparse.Namespace) -> float:
    """The same of a process that sends back what comes."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.peers.relay", "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        with process.stdout as lines, gate() as at:
            where = {"data": f"127.0.0.1:{lines.readline().strip()}"}
            entry = Entry(module="relay", members=1)
            clients = Contender(at, "relay", entry, start_here, workers=workers, stub=where, model_bytes=_frame_bytes(arguments))
            try:
                return statistics.median(_cpu_us(process.pid, clients, workers, arguments, Samples()))
            finally:
                clients.stop()
    finally:
        process.terminate()
        process.wait()


def _frame_bytes(arguments: argparse.Namespace) -> int:
    return CHUNKS * int(arguments.chunk_elements) * 4


def _cpu_us(pid: int, clients: Contender, workers: int, arguments: argparse.Namespace, samples: Samples) -> list[float]:
    """CPU microseconds of a process per rank and step, by round."""
    clients.run(Samples(), warmup=0, steps=WARMUP)
    found = []
    for _ in range(arguments.rounds):
        before = cpu_s(pid)
        clients.run(samples, warmup=0, steps=arguments.steps)
        found.append((cpu_s(pid) - before) / (arguments.steps * workers) * 1e6)
    return found


def cpu_s(pid: int) -> float:
    """CPU time of a process since its start, by the clock of clock_getcpuclockid(3): /proc counts ticks of 10 ms, as much as 25 pushes take."""
    return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)


def _memory(workers: int, arguments: argparse.Namespace) -> Row:
    """The server's memory while rank 0 stands still and all others push on."""
    with running(workers, tensors=MEMORY_TENSORS, model_bytes=arguments.model_bytes) as (server, stubs):
        for variant in ("", "stopped"):
            stubs.run(Samples(), warmup=0, steps=2, variant=variant)
        ours_mb = (server.peak_bytes - server.idle_bytes) / 1e6
    model_mb = arguments.model_bytes / 1e6
    limit_mb = 2 * (1 + SLOTS) * model_mb + model_mb + model_mb + SLACK_MB  # two copies, accumulators, encoded answers
    return Row(f"{workers} workers, one stopped: server MB / limit", ours_mb, limit_mb, 1.0)


@dataclass(frozen=True)
class Server:
    """A running server process."""

    pid: int
    data: int
    """Port."""
    control: int
    """Port."""
    idle_bytes: int
    """Resident before the first Join."""

    @property
    def peak_bytes(self) -> int:
        """Most that has been resident since its start, shared memory included."""
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024


def settings_of(workers: int, authority: Authority | None) -> ServerSettings:
    """Of a server of its own run."""
    data, control = _free_ports(2)
    return ServerSettings(
        run_id=f"scale-{data}",
        secret=None if authority else new_secret(),
        tls=authority.issue(Role("server", 0)) if authority else None,
        shard=0,
        num_servers=1,
        num_workers=workers,
        data_port=data,
        control_port=control,
        optimizer=OptimizerConfig(name="adam", lr=1e-3),
    )


@contextlib.contextmanager
def running(workers: int, authority: Authority | None = None, **work: Any) -> Iterator[tuple[Server, Contender]]:
    """A server and all its workers; with an authority they are encrypted."""
    settings = settings_of(workers, authority)
    tls = [asdict(authority.issue(Role("member", rank))) for rank in range(workers)] if authority else None
    where = {
        "data": f"127.0.0.1:{settings.data_port}",
        "control": f"127.0.0.1:{settings.control_port}",
        "run_id": settings.run_id,
        "secret": settings.secret,
        "tls": tls,
    }
    with server_of(settings) as server, gate() as at:
        stubs = Contender(at, "stubs", Entry(module="stubs", members=1), start_here, workers=workers, stub=where, **work)
        try:
            yield server, stubs
        finally:
            stubs.stop()


@contextlib.contextmanager
def server_of(settings: ServerSettings) -> Iterator[Server]:
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, "-m", "ps.server"], stdin=subprocess.PIPE, stdout=log, stderr=log, text=True)
        try:
            assert process.stdin
            with process.stdin as pipe:
                pipe.write(to_json(settings))
            deadline = time.monotonic() + START_S
            while not _is_listening(settings.data_port):
                log.seek(0)
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start: {log.read()}")
                time.sleep(0.05)
            yield Server(process.pid, settings.data_port, settings.control_port, psutil.Process(process.pid).memory_info().rss)
        finally:
            process.terminate()
            process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main()
