"""`trace.json`: made when a run ends, and from any run directory."""

import json
from pathlib import Path

from deploy.files import write_atomic
from deploy.measure.ledger_file import LedgerTail, read_ledger
from deploy.measure.trace import trace
from deploy.rundir import RunDirectory
from ps.errors import ConfigError

LAST_BYTES = 16 << 20
"""Of a ledger: holds more steps than a trace of the last ones."""


def write_trace(run: RunDirectory, *, first: int | None = None) -> Path:
    """The run's trace file, anew. Raises ConfigError if it has no such step or its ledger is damaged, OSError if it cannot be written."""
    summary = run.read_summary() or {}
    steps = read_ledger(run.comm) if first is not None else LedgerTail(run.comm, last_bytes=LAST_BYTES).poll()
    made = trace(steps, summary.get("failures", ()), first=first)
    if not made["traceEvents"]:
        raise ConfigError(f"{run.comm} has no step" + (f" from {first} on" if first is not None else ": nothing to draw"))
    write_atomic(run.trace, json.dumps(made, separators=(",", ":"), allow_nan=False).encode())
    return run.trace
