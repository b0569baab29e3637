"""A run that a death ends, of a worker or a server, in any push format: its last state is saved, and goes on to the same bits."""

from pathlib import Path
from typing import Any

import pytest

from deploy.launch.base import ProcessKey
from deploy.measure.recorded import read_run
from deploy.measure.text import counted
from deploy.report.words import outcome
from deploy.rundir import RunDirectory
from ps.errors import ProcessDied
from tests.deploy.faults import S0, S1, W0, W1, Faults, Point
from tests.deploy.killing import bits_of, run, undisturbed
from tests.deploy.test_lossy_deaths import CASES
from tests.deploy.test_lossy_deaths import undisturbed as undisturbed_case

EXACT: dict[str, Any] = {"optimizer": "adam"}
PLACES: list[tuple[str, ProcessKey, Point]] = [
    ("exact", W1, ("worker.landed", 45)),
    ("exact", S0, ("shard.oldest", 12)),
    ("int8", W0, ("worker.sent", 15)),
    ("int8", S0, ("shard.summed", 9)),
    ("topk", S1, ("shard.recorded", 4)),
]


@pytest.mark.parametrize(("case", "victim", "place"), PLACES, ids=str)
def test_a_death_too_many_ends_the_run_with_its_state_saved(case: str, victim: ProcessKey, place: Point, tmp_path: Path) -> None:
    options = {**CASES.get(case, EXACT), "every_steps": 100, "max_failures": 0, "name": "run"}
    result = run(tmp_path, faults=Faults().kill(victim, place), **options)
    assert isinstance(result.error, ProcessDied) and str(victim) in str(result.error), result.error
    (version,) = RunDirectory(result.path).checkpoints.versions()
    assert 0 < version < 12 and f"the state of step {version} is saved" in (result.path / "logs" / "driver.log").read_text()
    recorded = read_run(RunDirectory(result.path))
    assert recorded.summary and recorded.summary["steps"] == version, "whatever the last heartbeats have told"
    assert f"The run has failed after {counted(version, 'step')} and " in outcome(recorded)
    resumed = bits_of(run(tmp_path, faults=Faults(), **options, resume="auto"))
    assert resumed == (undisturbed_case(case) if case in CASES else undisturbed("adam"))
