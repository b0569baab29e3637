"""Many histories end with the bits of a few lines of numpy; without a guard one of them soon does not."""

import json
from collections import Counter

import pytest

from ps.failpoints import POINTS
from tests.explore.__main__ import main
from tests.explore.world import run
from tests.mutants.planted import planted
from tests.mutants.table import MUTANTS, Mutant

SEEDS = range(500, 620)
"""Few of the histories of `make explore`, with all that may go wrong in them."""
SEARCHED = (37, 69, *range(500))
"""Where a missing guard must be found out; the first two show what is rarest."""
FAULTS = {
    *("kill", "stop", "stop, long", "zombie", "fenced member", "break", "partition", "late copy", "overtaken"),
    *("frame again", "frame damaged", "MalformedFrame frame", "Fenced frame", "DUPLICATE", "ALREADY_APPLIED"),
    *("forged: old incarnation", "forged: old timeline", "forged: old timeline joins", "forged: next step", "pull", "reader", "snapshot"),
    *("cut", "cut given up", "receipts asked"),
}
_ELSEWHERE = {"shard.made", "shard.pulled", "store.restored"}
PLACES = {"worker.settles", *(name for name in POINTS if name.startswith(("shard.", "store.")))} - _ELSEWHERE
"""The other ones are outside of what is simulated: `tests/deploy/test_worker_deaths.py`, `test_server_deaths.py`, `test_checkpoint_runs.py`."""


def test_every_history_ends_with_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--seed", str(SEEDS.start), "--seeds", str(len(SEEDS))])
    *problems, last = capsys.readouterr().out.splitlines()
    assert code == 0, problems
    counts = Counter(json.loads(last))
    assert counts["histories"] == len(SEEDS)
    assert {fault for fault in FAULTS if counts[fault] < 3} == set()
    assert {place for place in PLACES if not counts[f"died at {place}"]} == set()


def test_histories_of_split_ranks_end_with_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--seeds", "40", "--stages", "2"])
    *problems, last = capsys.readouterr().out.splitlines()
    assert code == 0, problems
    counts = Counter(json.loads(last))
    expected = ("group again", "agreed", "zombie", "late copy", "DUPLICATE", "ALREADY_APPLIED", "pull")
    assert {what for what in expected if not counts[what]} == set()


def test_a_seed_is_one_history() -> None:
    traces: list[list[str]] = [[], []]
    for trace in traces:
        run(11, trace.append)
    assert traces[0] == traces[1] and len(traces[0]) > 3


def test_a_history_is_shown_by_its_seed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "11", "--trace"]) == 0
    *trace, last = capsys.readouterr().out.splitlines()
    assert any("server 0 begins" in line for line in trace)
    assert json.loads(last)["histories"] == 1 and json.loads(last)["problems"] == 0


@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.is_explored], ids=lambda mutant: mutant.guard)
def test_a_guard_that_is_switched_off_is_found_out(mutant: Mutant) -> None:
    with planted(mutant):
        assert any(run(seed).problem for seed in SEARCHED)
