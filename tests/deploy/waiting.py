"""Waiting for what a run does."""

from deploy.launch.base import Ending, Launcher, ProcessKey
from deploy.rundir import RunDirectory
from tests.waiting import until


def ending_of(launcher: Launcher, key: ProcessKey, timeout_s: float = 20.0) -> Ending:
    """The ending of `key`, asked for again and again, as the Trainer does."""
    until(lambda: key in launcher.ended(), timeout_s)
    return launcher.ended()[key]


def in_training(rundir: RunDirectory) -> bool:
    """Whether a step has ended."""
    return rundir.comm.exists() and rundir.comm.stat().st_size > 0
