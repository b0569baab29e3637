"""A task whose gradients are no function of parameters, seed, step and rank, and a worker that dies in the middle of a step."""

import json
import threading
from pathlib import Path

from deploy.result import Result
from deploy.rundir import RunDirectory
from ps.errors import Diverged
from tests.deploy.faults import S0, W0, Faults
from tests.deploy.forked import ForkedLauncher, trainer
from tests.deploy.leftovers import nothing_left
from tests.waiting import until

SUMS_OF_A_STEP = 4
"""Of two ranks, parameters and loss."""


def run(storage: Path, *, exact: bool) -> Result:
    """Rank 0 is killed in step 5, as soon as the server has all of it and nothing of rank 1; that one waits until rank 0's successor has
    pushed something else."""
    mark = storage / "mark"
    fields = {"how": "random", "mark": str(mark)}
    made = trainer(storage, "tests.deploy.broken:Broken", fields, batch_size=16, epochs=1, exact=exact, num_workers=2, num_servers=1)
    faults = Faults().pass_by(S0, ("shard.summed", 5 * SUMS_OF_A_STEP + 2))

    def prepare(launcher: ForkedLauncher, rundir: RunDirectory) -> None:
        launcher.faults = faults.arm(storage)
        launcher.victim, launcher.when = W0, faults.have_fired
        threading.Thread(target=_mark_when_logged, args=(rundir.process_log("server", 0), mark), daemon=True).start()

    made.prepare = prepare  # type: ignore[method-assign]
    with nothing_left():
        result = made.fit()
    assert made.launcher.has_killed
    return result


def _mark_when_logged(log: Path, mark: Path) -> None:
    until(lambda: log.exists() and "rank 0 pushed other bytes for step 5" in log.read_text(), 100)
    mark.touch()


def test_it_ends_the_run(tmp_path: Path) -> None:
    result = run(tmp_path, exact=True)
    assert isinstance(result.error, Diverged)
    assert "rank 0 pushed other bytes for step 5" in str(result.error) and "train.exact = false" in str(result.error)
    assert json.loads((result.path / "summary.json").read_text())["bit_exact"] is True


def test_a_run_that_promises_no_bits_goes_on_and_says_so(tmp_path: Path) -> None:
    result = run(tmp_path, exact=False)
    assert result.error is None, result.error
    summary = json.loads((result.path / "summary.json").read_text())
    assert summary["bit_exact"] is False and summary["diverged"] == 2 and summary["steps"] == 8
    log = (result.path / "logs" / "driver.log").read_text()
    assert "warning: train.exact = false: the run is not bit-exact" in log
    assert "warning: 2 frames came again with other bytes than before; the first ones stand" in log
