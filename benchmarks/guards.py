"""What the guards cost by themselves: digests, the second copy, the ledger. One thread, best of several; no part of the steps' time."""

import time
from collections.abc import Callable

import numpy as np

from benchmarks.workload import ENDS
from ps.config import OptimizerConfig
from ps.frame import chunk_digests
from ps.kernels import one_pass_rule
from ps.layout import Layout, Rule, Run, ShardLayout, TensorSpec
from ps.ledger import ShardTraffic, WorkerRow, to_line
from ps.store import Store

_REPEATS = 5
_ADAM_SLOTS = 2


def report_guards(width: int, servers: int) -> None:
    """Prints the milliseconds of each per step: of one worker's digests, which travel over gRPC, of the shard's second copy with Adam, of one
    ledger row."""
    sizes = [(width, ENDS), (width,), (width, width), (width,), (ENDS, width), (ENDS,)]
    layout = Layout([TensorSpec(name=f"t{i}", shape=shape, dtype="float32", rule=Rule.OPTIMIZER) for i, shape in enumerate(sizes)], 1)
    shard = layout.shards[0]
    memory = np.ones(layout.flat_bytes, np.uint8)
    row = WorkerRow(rank=0, step=0, time_s=0.0, step_s=0.0, shards=[ShardTraffic(shard=i) for i in range(servers)])
    costs = {
        "digests of a push over gRPC": _best(lambda: chunk_digests(memory, shard, Run(0, len(shard)), flat=True)),
        "second copy of parameters and Adam's state": _second_copy_s(shard),
        "a ledger row": _best(lambda: to_line(row)),
    }
    print("guards, ms per step, measured apart: " + ", ".join(f"{name} {seconds * 1e3:.2g}" for name, seconds in costs.items()))


def _second_copy_s(shard: ShardLayout) -> float:
    """An update that writes into another copy, less one in place; where updates take several passes, the copy before."""
    store = Store(np.zeros(Store.size_bytes(shard, slots=_ADAM_SLOTS, num_norms=0), np.uint8), shard, slots=_ADAM_SLOTS, num_norms=0, key=bytes(32))
    rule = one_pass_rule(OptimizerConfig(name="adam"))
    if rule is None:

        def copied() -> None:
            for run in shard.frames(1 << 20):
                store.fill_next(0, run)

        return _best(copied)
    old, new = ([copy[: shard.size_bytes] for copy in store.copies(version, Run(0, 1))] for version in (0, 1))
    terms = [np.zeros(shard.size_bytes, np.uint8)]
    return _best(lambda: rule(new, old, terms, 1, 0.1, 1.0)) - _best(lambda: rule(old, old, terms, 1, 0.1, 1.0))


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
