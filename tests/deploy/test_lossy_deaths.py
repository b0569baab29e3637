"""kill -9 where a push format has a memory: successors go on with what is left to send, and a repeated push has the same bytes."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.deploy.faults import S0, W0, W1, Faults
from tests.deploy.killing import bits_of, deaths_of, run

CASES: dict[str, dict[str, Any]] = {
    "int8": {"optimizer": "adam", "push_format": "int8"},
    "topk": {"optimizer": "two phases", "push_format": "topk", "topk_fraction": 0.1},
    "own loop": {"optimizer": "adam", "push_format": "int8", "loop": "tests.deploy.own_loops:noisy_with_reports"},
    # the loss is NaN in step 7 on rank 1
    "skip": {
        "optimizer": "skip",
        "push_format": "int8",
        "task": "tests.deploy.broken:Broken",
        "fields": {"how": "nan"},
        "batch_size": 11,
        "epochs": 1,
    },
}


@cache
def undisturbed(case: str) -> dict[str, Any]:
    with TemporaryDirectory() as storage:
        return bits_of(run(Path(storage), faults=Faults(), **CASES[case]))


DEATHS: list[tuple[str, Faults]] = [
    ("int8", Faults().kill(W0, ("worker.sent", 5)).kill(W1, ("worker.landed", 9))),
    ("int8", Faults().kill(S0, ("shard.summed", 9)).kill(W1, ("worker.settles", 4))),
    ("topk", Faults().kill(W0, ("worker.encoded", 3)).kill(W1, ("worker.settles", 1))),
    ("topk", Faults().kill(S0, ("shard.recorded", 2))),
    ("own loop", Faults().kill(W0, ("worker.sent", 9)).kill(W1, ("worker.reports", 2))),
    ("skip", Faults().kill(W0, ("worker.settles", 8)).kill(W1, ("worker.settles", 9))),
]


@pytest.mark.parametrize(("case", "faults"), DEATHS, ids=str)
def test_processes_killed_with_something_left_to_send_cost_no_bit(case: str, faults: Faults, tmp_path: Path) -> None:
    result = run(tmp_path, faults=faults, **CASES[case])
    assert bits_of(result) == undisturbed(case)
    assert deaths_of(result) == faults.victims
