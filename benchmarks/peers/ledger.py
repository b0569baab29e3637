"""pserver whose ledger is switched off and on between steps, in all of its processes; variants WITH and WITHOUT it."""

import mmap
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import ours
from benchmarks.workload import Step, Workload, take_part
from deploy.console import Console
from deploy.launch.process import MODULES, ProcessLauncher
from deploy.rundir import RunDirectory
from deploy.trainer import Trainer
from ps import server
from ps.ledger import RowBuffer, ShardTraffic
from ps.stats import ServerStats, Spent
from ps.step_clock import StepClock, StepTiming
from ps.transport.counters import Sent, WireMeter
from workers.context import Context
from workers.rows import StepRows
from workers.spans import Spans

WITH, WITHOUT = VARIANTS = ("with", "without")
SWITCH = "PSERVER_BENCHMARK_LEDGER"
"""Environment variable with the path of the switch: one byte, which all processes map."""


class Switch:
    """Off or on, for all processes at once; off while the byte is 1."""

    def __init__(self) -> None:
        with Path(os.environ[SWITCH]).open("r+b") as file:
            self._byte = mmap.mmap(file.fileno(), 1)

    def turn(self, *, off: bool) -> None:
        self._byte[0] = off

    def without(self, cls: type, **others: Callable[..., Any]) -> None:
        """Methods of the class do what `others` say while the switch is off."""
        for name, other in others.items():
            setattr(cls, name, self._either(getattr(cls, name), other))

    def _either(self, usual: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
        def method(*arguments: Any, **keywords: Any) -> Any:
            return (other if self._byte[0] else usual)(*arguments, **keywords)

        return method


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile() as switch:
        switch.write(b"\0")
        switch.flush()
        os.environ[SWITCH] = switch.name
        config = ours.config_of(Workload.here(), folder, loop="benchmarks.peers.ledger:train")
        _Trainer.from_config(config, launcher="process", quiet=True).fit()


class _Trainer(Trainer):
    """A trainer whose servers run this module."""

    def _make_launcher(self, rundir: RunDirectory, console: Console) -> ProcessLauncher:
        return ProcessLauncher(lambda key: rundir.process_log(key.role, key.index), modules={**MODULES, "server": "benchmarks.peers.ledger"})


def train(ctx: Context) -> None:
    """The loop of one worker."""
    switch, workload = Switch(), Workload.here()
    step = ours.training(ctx, workload)
    shards = range(workload.servers)
    switch.without(Spans, span=lambda self, name: nullcontext(), rest=_nothing, take=lambda self: (0.0, {}))
    switch.without(StepClock, waited=_nothing, sent=_nothing, received=_nothing, landed=_nothing)
    switch.without(StepClock, finish=lambda self: StepTiming(shards=[ShardTraffic(shard=shard) for shard in shards]))
    switch.without(WireMeter, take=lambda self, address: Sent(0, 0))
    switch.without(StepRows, end_step=_nothing)
    switch.without(RowBuffer, add=_nothing)

    def step_of(variant: str) -> Step:
        switch.turn(off=variant == WITHOUT)
        return step

    take_part(workload, ctx.rank, step_of)


def serve() -> int:
    """A server."""
    switch = Switch()
    names = ("received", "sent", "decoded", "aggregated", "contributed", "averaged", "applied")
    switch.without(ServerStats, **dict.fromkeys(names, _nothing))
    switch.without(Spent, __enter__=lambda self: self, __exit__=_nothing)
    return server.main()


def _nothing(*_: Any, **__: Any) -> None:
    """In place of what only the ledger needs."""


if __name__ == "__main__":
    if SWITCH in os.environ:
        sys.exit(serve())
    torch.set_num_threads(1)
    main()
