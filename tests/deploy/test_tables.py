"""What is said of steps: the log line, the closing line and the tables."""

from deploy.measure.table import closing_line, tables
from deploy.measure.verdict import log_line, verdict
from deploy.measure.window import Window
from deploy.report.words import headline
from ps.ledger import WorkerRow
from tests.deploy.steps import COMPUTE, EVEN, MB, THIN, ranks, staged, step_of, window_of


def test_no_step_is_no_verdict() -> None:
    assert str(verdict(Window())) == ""
    assert log_line(7, Window()) == "step 7 | no step has ended since the last line"
    assert tables(Window()) == []


def test_the_log_line_names_step_time_exposure_bottleneck_and_wait() -> None:
    shards = [{"push_s": 0.2}, {"push_s": 0.425, "link_bytes_per_s": 10.0 * MB}]
    rows = step_of([*ranks(3, **THIN), THIN | {"compute_s": 0.13}], shards)
    assert log_line(1200, window_of(rows)) == (
        "step 1200 | 0.49 s | exposed comm 86% | bottleneck: shard 1 ingress 9.4 of 10.0 MB/s | waits for rank 3: 0.08 s"
    )
    assert log_line(3, window_of(step_of(ranks(2, **COMPUTE)))) == "step 3 | 0.37 s | exposed comm 16% | bottleneck: compute 0.30 s of 0.37 s"


def test_tables_tell_seconds_by_worker_and_bytes_by_shard() -> None:
    workers, shards = tables(window_of(step_of(ranks(2, **COMPUTE)), step_of(ranks(2, **COMPUTE))))
    assert [row[0] for row in workers.rows] == ["worker 0", "worker 1"]
    assert workers.columns[1:4] == ["step", "data wait", "backward"]
    assert list(workers.rows[0][1:4]) == ["0.37 s", "10.0 ms", "0.30 s"]
    assert [list(row[:3]) for row in shards.rows] == [["shard 0", "4.0 MB", "4.0 MB"], ["shard 1", "4.0 MB", "4.0 MB"], ["total", "8.0 MB", "8.0 MB"]]
    assert len({len(line) for line in workers.plain().splitlines()[1:]}) == 1
    assert closing_line(window_of(step_of(ranks(2, **COMPUTE)))).startswith("1 step of 0.37 s, exposed comm 16% | bottleneck: compute")


def test_a_run_whose_steps_are_all_recoveries_says_so() -> None:
    rows = step_of(ranks(2, **COMPUTE))
    assert isinstance(rows[0], WorkerRow)
    rows[0].rejoined = True
    said = "process came back in every step that has ended: 1 step, 0.37 s in all"
    assert closing_line(window_of(rows)) == f"a {said}"
    assert headline(window_of(rows)).startswith(f"A {said}. ")


def test_what_each_stage_passes_on_and_its_most_memory_are_shown() -> None:
    steps = [staged(EVEN, EVEN, num_workers=1) for _ in range(2)]
    for step, peaks in zip(steps, ((300 * MB, 200 * MB), (310 * MB, None)), strict=True):
        for row, peak in zip(step, peaks, strict=False):
            assert isinstance(row, WorkerRow)
            row.peak_bytes, row.passed_bytes = peak, 3 * MB
    shown = tables(window_of(*steps))[0]
    assert (shown.columns[-2:], [row[-2:] for row in shown.rows]) == (["passed", "peak"], [["3.0 MB", "310.0 MB"], ["3.0 MB", "200.0 MB"]])
    assert "peak" not in tables(window_of(step_of([EVEN, EVEN])))[0].columns
