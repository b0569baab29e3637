"""Checks of the machine: what a run needs, measured, with a remedy where it is short."""

import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

MIB = 1 << 20
MODULES = {
    "torch": "import torch; print(torch.__version__)",
    "ray": "import ray; print(ray.__version__)",
    "grpc": "import grpc; print(grpc.__version__)",
    "protobuf": "import google.protobuf, protos.pserver_pb2; print(google.protobuf.__version__)",
}
"""Program per library that fails if the library cannot be used, else prints its version."""

KERNELS = "from ps import _kernels; print('compiled')"
DIGITS = "from workers.tasks.digits import rows; print(len(rows()), 'digits')"


@dataclass(frozen=True)
class Check:
    """One line of the doctor."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    """What was measured, with its unit."""
    remedy: str = ""
    """What to do; empty if ok."""

    def line(self) -> str:
        return f"{self.status:<5}{self.name:<14}{self.found}" + (f": {self.remedy}" if self.remedy else "")


def run_checks() -> list[Check]:
    """All checks, the quick ones first; some seconds, for the libraries are imported in processes of their own."""
    return [
        python(sys.version_info[:3]),
        cores(num_cores()),
        memory(psutil.virtual_memory().available),
        shared_memory(Path("/dev/shm")),
        open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        loopback(),
        congestion(Path("/proc/sys/net/ipv4/tcp_congestion_control")),
        *(library(name, program) for name, program in MODULES.items()),
        kernels(KERNELS),
        digits(DIGITS),
    ]


def python(version: tuple[int, int, int]) -> Check:
    return _judge("python", ".".join(map(str, version)), fail=version < (3, 11, 0), remedy="install Python 3.11 or newer")


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores(count: int) -> Check:
    return _judge("cores", str(count), warn=count < 2, remedy="workers and servers share one core and wait for each other: use 2 or more")


def memory(available_bytes: int) -> Check:
    """Each process takes about 0.4 GB for torch and ray alone; the smallest run has five."""
    return _judge(
        "memory",
        f"{available_bytes // MIB:,} MiB available",
        fail=available_bytes < 512 * MIB,
        warn=available_bytes < 3072 * MIB,
        remedy="2 workers, 2 servers and Ray take about 3 GiB: close programs, or use fewer processes",
    )


def shared_memory(folder: Path) -> Check:
    """Ray keeps its object store there, and falls back to the disk where it is small."""
    if not folder.is_dir():
        return Check(str(folder), "warn", "missing", "Ray keeps its object store on the disk: mount a tmpfs there")
    size = shutil.disk_usage(folder).total
    return _judge(str(folder), f"{size // MIB:,} MiB", warn=size <= 64 * MIB, remedy="too small for Ray: in a container, start it with --shm-size=2g")


def open_files(limit: int) -> Check:
    found = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"
    short = limit != resource.RLIM_INFINITY
    return _judge("open files", found, fail=short and limit < 256, warn=short and limit < 1024, remedy="Ray opens many sockets: ulimit -n 4096")


def loopback(bind: Callable[[], int] | None = None) -> Check:
    """`bind` takes a free port and returns it, or raises OSError."""
    try:
        return Check("loopback", "ok", f"port {(bind or _bind)()} on 127.0.0.1 was free")
    except OSError as error:
        return Check("loopback", "fail", f"no port on 127.0.0.1 ({error.strerror})", "bring up the loopback interface: ip link set lo up")


def congestion(file: Path) -> Check:
    """BBR takes the time that acknowledgements queue behind what flows the other way for a full link (docs/data-plane.md)."""
    found = file.read_text().strip() if file.exists() else "not known"
    remedy = "on thin links steps take up to 15% longer than with cubic: sysctl -w net.ipv4.tcp_congestion_control=cubic"
    return _judge("congestion", f"TCP {found}", warn=found.startswith("bbr"), remedy=remedy)


def library(name: str, program: str) -> Check:
    """Runs `program` in a process of its own: a library may crash, or change the environment, on import."""
    ok, words = _try(program)
    return _judge(name, words, fail=not ok, remedy="reinstall with: make setup")


def kernels(program: str) -> Check:
    """They are built at the installation, where there is a compiler, for processors with AVX2 (docs/architecture.md)."""
    ok, _ = _try(program)
    remedy = "updates take longer, to the same bits: install a C compiler (apt-get install gcc libc6-dev), then pserver anew"
    return _judge("kernels", "compiled" if ok else "not compiled, or not for this processor", warn=not ok, remedy=remedy)


def digits(program: str) -> Check:
    ok, words = _try(program)
    return _judge("scikit-learn", words, warn=not ok, remedy="only the digits task needs it: make setup")


def _judge(name: str, found: str, *, fail: bool = False, warn: bool = False, remedy: str) -> Check:
    if fail:
        return Check(name, "fail", found, remedy)
    return Check(name, "warn", found, remedy) if warn else Check(name, "ok", found)


def _bind() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port: int = listener.getsockname()[1]
        return port


def _try(program: str) -> tuple[bool, str]:
    try:
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return False, "no answer within 120 s"
    lines = (ended.stdout if ended.returncode == 0 else ended.stderr).strip().splitlines()
    return ended.returncode == 0, lines[-1] if lines else f"exit code {ended.returncode}"
