"""Strangers who connect, say nothing, speak slowly, push and call all at once: the run's bits stay, and its servers' memory too."""

import contextlib
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ps.certificates import Authority
from ps.memory import SPARE_BYTES
from tests.ps.cluster import cluster, in_threads, start
from tests.ps.test_tls import OVER_GRPC, contribute, model, trained

ROOT = Path(__file__).parents[2]
FLOODS = {"silent": 500, "slow": 50, "push": 50, "rude": 8, "calls": 2}
HANDSHAKES = FLOODS | {"rude": 2}
"""Encrypted, nobody gets as far as to push: all that is done is the handshake, and the machine is the flooders' too."""
READ_BYTES = 4 << 20
"""What gRPC holds at most for a connection that sends faster than it is read."""
MOST_GROWTH_MB = (2 * FLOODS["rude"] * READ_BYTES + SPARE_BYTES) / 1e6 + 40
"""For the rude, what is in use and what was some looks ago; what may stay free; 40 MB for the run and for all other strangers."""
STEPS = 3


@contextlib.contextmanager
def flooded(address: str, *, encrypted: bool) -> Iterator[None]:
    """By processes of their own, each of which has tried to connect as often as it wants to."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.flood", kind, address, "tls" if encrypted else "plain", str(count)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for kind, count in (HANDSHAKES if encrypted else FLOODS).items()
    ]
    try:
        for process in processes:
            assert process.stdout and process.stdout.readline() == "all are there\n"
        yield
        assert all(process.poll() is None for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("authority", [None, Authority()], ids=["tokens", "certificates"])
@pytest.mark.parametrize("port", ["data", "control"])
def test_floods_change_no_bit_and_take_little_memory(authority: Authority | None, port: str) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with cluster(2, 2, comm=OVER_GRPC, authority=authority) as made:
        members = [made.member(rank, model()) for rank in range(2)]
        before_mb = psutil.Process().memory_info().rss / 1e6
        with flooded(getattr(made.addresses[0], port), encrypted=authority is not None):
            in_threads([lambda m=m: start(m) for m in members])
            for step in range(STEPS):
                in_threads([lambda m=m, t=step: contribute(m, t) for m in members])
            sha256 = made.sha256(STEPS)
            growth_mb = psutil.Process().memory_info().rss / 1e6 - before_mb
    assert sha256 == trained(None)
    assert growth_mb < MOST_GROWTH_MB
