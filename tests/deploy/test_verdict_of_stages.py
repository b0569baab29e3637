"""What holds split ranks up: planted in made-up rows of the ledger, and named."""

import pytest

from deploy.measure.verdict import log_line, verdict
from ps.ledger import ServerRow, WorkerRow
from tests.deploy.steps import EVEN, staged, window_of

UNEVEN = [EVEN | {"bubble_s": 0.09}, EVEN | {"forward_s": 0.05, "backward_s": 0.09, "bubble_s": 0.01}]
PIPELINES = [
    pytest.param(staged(EVEN, EVEN), "pipeline bubble 32%: raise micro_batches to 8", id="too few micro-batches"),
    pytest.param(staged(*[EVEN] * 3), "pipeline bubble 32%: raise micro_batches to 16", id="of three stages"),
    pytest.param(staged(EVEN, EVEN, num_workers=1), "pipeline bubble 32%: raise micro_batches to 8", id="of one rank"),
    pytest.param(staged(EVEN, EVEN, samples=4), "pipeline bubble 32% with 2 micro-batches", id="more than there are samples"),
    pytest.param(staged(EVEN, EVEN, micro_batches=8), "pipeline bubble 32% with 8 micro-batches", id="enough of them"),
    pytest.param(staged(*UNEVEN), "stage 1's compute 0.14 s, others 0.06 s: move blocks (pipeline.balance)", id="one stage has more to do"),
    pytest.param(staged(*[EVEN | {"bubble_s": 0.008}] * 2), "compute 0.06 s of 0.07 s", id="small"),
    pytest.param(staged(*[EVEN | {"receive_s": 0.08}] * 2), "transport of all shards", id="something else is longer"),
]


@pytest.mark.parametrize(("rows", "expected"), PIPELINES)
def test_what_holds_stages_up_is_named(rows: list[WorkerRow | ServerRow], expected: str) -> None:
    found = verdict(window_of(*[rows] * 10))
    assert str(found).startswith(expected)
    assert sum(found.shares.values()) == pytest.approx(1.0)


def test_a_slow_rank_is_told_from_a_slow_stage_by_the_same_stage_of_others() -> None:
    rows = [row for row in staged(*[EVEN] * 2, num_workers=3, micro_batches=8) if isinstance(row, WorkerRow)]
    rows[3].backward_s, rows[3].step_s = 0.1, 0.155
    for row in rows:
        row.bubble_s = 0.01
        row.barrier_wait_s = 0.0 if row is rows[3] else 0.06
        row.waits_for = None if row is rows[3] else 3
    found = window_of(*[rows] * 10)
    assert str(verdict(found)) == "rank 1 stage 1's compute 0.12 s, others 0.06 s"
    assert log_line(9, found).endswith("waits for rank 1 stage 1: 0.06 s")
