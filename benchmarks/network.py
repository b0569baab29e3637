"""Thin links: an exchange without compute over the time that its bytes need, and beside gloo's. `make bench-network ARGS="--bandwidth 200mbit"`."""

import argparse
import signal
import sys
from typing import Any

from benchmarks.harness import Entry, Row, Samples, compete, report
from benchmarks.hosts import hosts
from benchmarks.peers import gloo, ours
from benchmarks.places import host_of
from benchmarks.workload import parse_size
from deploy.virtual.cluster import check_machine
from ps.comm import parse_rate
from ps.errors import ResourcesMissing

MUST_FLOOR = 1.10
LEAST_FLOOR = 1.03
"""TCP and gRPC cost 4.5%: a step that needs less has found a way around its link."""
MUST_GLOO = 0.70
MUST_HALF = 0.55
MUST_TCP = 1.10
MUST_EXPOSED = 0.20
WARMUP = 4
"""Steps until all ranks push in the order that rank 0 has measured."""
COMPUTING = "ours with compute"


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # contenders are stopped, and hosts removed, in `finally`
    rows: list[Row] = []
    try:
        check_machine()
        measure = _in_hosts
    except ResourcesMissing as reason:
        print(f"TOKEN BUCKET in place of links, no peers: {reason}")
        measure = _in_buckets
    print("exchange of gradients for parameters without compute; contenders take turns, times are means of the members")
    for rate in arguments.bandwidth:
        for size in arguments.model_bytes:
            rows += measure(rate, size, arguments)
    report(rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--servers", type=int, default=4)
    parser.add_argument("--bandwidth", action="append", help="rate of every link, both ways; may be repeated (default: 50mbit and 100mbit)")
    parser.add_argument("--link", action="append", default=[], help="another rate for one host: worker-1=25mbit; may be repeated")
    parser.add_argument("--model-bytes", type=parse_size, action="append", help="may be repeated (default: 8MiB and 16MiB)")
    parser.add_argument("--tensors", type=int, default=16, help="equal tensors of the model")
    parser.add_argument("--steps", type=int, default=5, help="measured steps in a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-peers", action="store_true", help="leave gloo out")
    parser.add_argument("--no-bf16", action="store_true", help="leave the 16-bit wire format out")
    parser.add_argument("--no-overlap", action="store_true", help="leave out steps that compute for as long as they communicate")
    parser.add_argument("--comm", type=lambda text: text.split("="), action="append", default=[], help="comm.frame_bytes=32768; may be repeated")
    arguments = parser.parse_args()
    arguments.comm = {key.removeprefix("comm."): int(value) for key, value in arguments.comm}
    arguments.bandwidth = arguments.bandwidth or ["50mbit", "100mbit"]
    arguments.model_bytes = arguments.model_bytes or [parse_size("8MiB"), parse_size("16MiB")]
    return arguments


def _in_hosts(rate: str, size: int, arguments: argparse.Namespace) -> list[Row]:
    """Every process on a virtual host of its own."""
    rates = _rates(rate, arguments)
    with hosts(rates) as (start, places):
        entries = {"tcp": Entry(module="tcp", members=1), **_ours(arguments)}
        if not arguments.no_overlap:
            layer_s = _floor_s(rates, size, arguments) / 3 / arguments.tensors
            work = {"comm": arguments.comm, "compute": True, "layer_s": layer_s}
            entries[COMPUTING] = Entry(module="ours", members=arguments.workers, variants=["", ours.ALONE], work=work)
        if not arguments.no_peers:
            entries["gloo"] = Entry(module="gloo", members=arguments.workers, variants=gloo.VARIANTS)
        samples = compete(entries, title=_title(rate, size, arguments), start=start, places=places, **_common(size, arguments))
    name = _name(rate, size)
    slowest = min(parse_rate(rates[host]) for host in (host_of("worker", 0), host_of("server", 0)))
    tcp_s, floor_s = samples["tcp", ""].median, _floor_s(rates, size, arguments)
    rows = [Row(f"{name}: plain TCP / M/B", tcp_s, size / slowest, MUST_TCP, least=1.0)]
    rows += _rows(name, samples, floor_s)
    if not arguments.no_overlap:
        exposed_s = samples[COMPUTING, ""].median - samples[COMPUTING, ours.ALONE].median
        busy_s = floor_s * tcp_s / (size / slowest)  # at least: in one direction alone
        rows.append(Row(f"{name}: exposed / communication, compute as long", exposed_s, busy_s, MUST_EXPOSED))
    if not arguments.no_peers:
        best = min(samples["gloo", variant].median for variant in gloo.VARIANTS)
        rows.append(Row(f"{name}: exchange / DDP's all-reduce", samples["ours", ""].median, best, MUST_GLOO))
    return rows


def _in_buckets(rate: str, size: int, arguments: argparse.Namespace) -> list[Row]:
    """A token bucket in every process's streams, on loopback."""
    samples = compete(_ours(arguments, bandwidth=rate), title=_title(rate, size, arguments), **_common(size, arguments))
    return _rows(f"token bucket, {_name(rate, size)}", samples, _floor_s(_rates(rate, arguments), size, arguments))


def _ours(arguments: argparse.Namespace, **more: str) -> dict[str, Entry]:
    """Ours with `more` settings of comm, and its 16-bit wire format."""
    comm = {**arguments.comm, **more}
    entries = {"ours": Entry(module="ours", members=arguments.workers, work={"comm": comm})}
    if not arguments.no_bf16:
        entries["ours bf16"] = Entry(module="ours", members=arguments.workers, work={"comm": {**comm, "push_format": "bf16", "pull_format": "bf16"}})
    return entries


def _rows(name: str, samples: dict[tuple[str, str], Samples], floor_s: float) -> list[Row]:
    step_s = samples["ours", ""].median
    rows = [Row(f"{name}: exchange / M/B", step_s, floor_s, MUST_FLOOR, least=LEAST_FLOOR)]
    if ("ours bf16", "") in samples:
        rows.append(Row(f"{name}: bf16 both ways / fp32", samples["ours bf16", ""].median, step_s, MUST_HALF))
    return rows


def _common(size: int, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "rounds": arguments.rounds,
        "warmup": WARMUP,
        "steps": arguments.steps,
        "workers": arguments.workers,
        "servers": arguments.servers,
        "tensors": arguments.tensors,
        "model_bytes": size,
        "compute": False,
    }


def _rates(rate: str, arguments: argparse.Namespace) -> dict[str, str]:
    """Rate of every host's link."""
    names = [host_of("worker", i) for i in range(arguments.workers)] + [host_of("server", i) for i in range(arguments.servers)]
    return dict.fromkeys(names, rate) | dict(link.split("=") for link in arguments.link)


def _floor_s(rates: dict[str, str], size: int, arguments: argparse.Namespace) -> float:
    """Seconds until the last link has moved its bytes in one direction; both directions at once."""
    at_server = size * arguments.workers / arguments.servers
    return max((size if name.startswith("worker") else at_server) / parse_rate(rate) for name, rate in rates.items())


def _name(rate: str, size: int) -> str:
    return f"{rate}, {size / (1 << 20):.3g} MiB"


def _title(rate: str, size: int, arguments: argparse.Namespace) -> str:
    shape = f"{arguments.workers} workers, {arguments.servers} servers, {arguments.tensors} tensors"
    return f"{_name(rate, size)}, {shape}{''.join(f', {link}' for link in arguments.link)}"


if __name__ == "__main__":
    main()
