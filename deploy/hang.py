"""Who waits for whom in a run that stands still, and the stacks of all its processes."""

from collections.abc import Sequence

from deploy.rundir import RunDirectory
from ps.inspection import ProcessState, inspect

SILENT_S = 5.0
"""Without a sign of life for so long, a process is named before anybody who waits for it."""


def look_at(rundir: RunDirectory) -> list[ProcessState]:
    """Asks the run's driver. Raises ConfigError if the run has ended, Unreachable if the driver does not answer."""
    return inspect(*rundir.read_control())


def report(states: Sequence[ProcessState]) -> list[str]:
    """Lines: every process, who holds up the others, and the stacks."""
    return [*map(_line, states), "", *verdict(states), *_stacks(states)]


def verdict(states: Sequence[ProcessState]) -> list[str]:
    """By its cause: processes that have ended, then silent ones, then the ranks that servers at the smallest version wait for."""
    away = [f"{state} has ended and is being started again: the others wait for it" for state in states if state.is_away]
    silent = [f"{state} has given no sign of life for {state.silent_s:.0f} s: it is stopped, or its host is overloaded" for state in states]
    causes = away + [text for state, text in zip(states, silent, strict=True) if state.silent_s > SILENT_S and not state.is_away]
    return causes or [f"the servers wait for {state}, which {state.doing} at step {state.step}" for state in _waited_for(states)] or ["nobody waits"]


def _waited_for(states: Sequence[ProcessState]) -> list[ProcessState]:
    servers = [state for state in states if state.role == "server" and state.step >= 0]
    behind = [server for server in servers if server.step == min(other.step for other in servers)]
    ranks = {rank for server in behind for rank in server.waits_for}
    return [state for state in states if state.role == "worker" and state.index in ranks]


def _line(state: ProcessState) -> str:
    place = f"{state} on {state.host} (pid {state.pid})"
    if state.is_away:
        return f"{place}: has ended"
    version = f"version {state.step}" if state.step >= 0 else "no version yet"
    waits = f", waits for {', '.join(f'rank {rank}' for rank in state.waits_for)}" if state.waits_for else ""
    what = f"{version}{waits}" if state.role == "server" else f"step {state.step}, {state.doing}"
    return f"{place}: {what}; sign of life {state.silent_s:.1f} s ago"


def _stacks(states: Sequence[ProcessState]) -> list[str]:
    return [line for state in states for line in ("", f"== {state}", state.stacks.rstrip() or "its stacks have not come")]
