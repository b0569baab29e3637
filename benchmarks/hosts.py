"""Contenders on virtual hosts: worker-0 ... and server-0 ..., each with a link of its own, and the driver's, which is not shaped."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO

from benchmarks.harness import Start
from benchmarks.places import Places, host_of
from deploy.config import Config
from deploy.console import Console
from deploy.driver import Driver
from deploy.interrupts import Interrupt
from deploy.launch.base import ProcessKey
from deploy.launch.hosts import DRIVER, HostsLauncher, Place
from deploy.resume import begin
from deploy.virtual.cluster import VirtualCluster
from deploy.virtual.plan import HostSpec
from ps.config import Timeouts


@contextmanager
def hosts(rates: Mapping[str, str]) -> Iterator[tuple[Start, dict[str, tuple[int, str]]]]:
    """Hosts with links of the given rates, gone at the end; how a contender starts on the driver's, and where all are."""
    specs = [HostSpec(name=DRIVER), *(HostSpec(name=name, rate=rate) for name, rate in rates.items())]
    with VirtualCluster(specs) as cluster:

        def start(command: list[str], environment: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
            return cluster.popen(DRIVER, command, env=environment, stdout=log, stderr=subprocess.STDOUT)

        yield start, {spec.name: (cluster.holder_pid(spec.name), cluster.address(spec.name)) for spec in specs}


def run_in_hosts(config: Config, places: Places) -> None:
    """A whole run whose processes are spread over the hosts; its driver is this process."""
    beginning = begin(config, "network")
    rundir = beginning.rundir
    there = {name: Place(*place) for name, place in places.items()}
    scaling = config.scaling
    keys = [ProcessKey("worker", i) for i in range(scaling.num_workers)] + [ProcessKey("server", i) for i in range(scaling.num_servers)]
    launcher = HostsLauncher(lambda key: rundir.process_log(key.role, key.index), there, {key: host_of(key.role, key.index) for key in keys})
    with launcher, Console(quiet=True, stderr=True) as console:
        Driver(config, beginning, launcher, console, Timeouts()).run(Interrupt())
