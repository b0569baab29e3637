"""Planted bottlenecks are named in the log and at the end: names are asserted, not times."""

import itertools
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from deploy.measure.ledger_file import read_ledger
from deploy.measure.window import SPANS
from tests.deploy.forked import train
from tests.deploy.own_loops import HERE, fit

PLANTED = "tests.deploy.planted:Planted"

CASES = [
    pytest.param(PLANTED, {"loss_s": 0.12}, {"batch_size": 32, "num_servers": 1}, "compute", id="compute-bound"),
    pytest.param(PLANTED, {"slow_rank": 1, "slow_loss_s": 0.06}, {"batch_size": 32}, "rank 1's compute", id="slow rank"),
    pytest.param(
        PLANTED, {"slow_rank": 0, "slow_data_s": 0.12}, {"batch_size": 16, "num_workers": 3}, "rank 0's data loading", id="slow loader of a rank"
    ),
    pytest.param(PLANTED, {"sample_s": 0.003}, {"batch_size": 16, "num_servers": 1}, "data loading", id="slow loader"),
    pytest.param(PLANTED, {"width": 256}, {"batch_size": 32, "server_bandwidth": {1: "20mbit"}}, "shard 1 ingress", id="throttled shard"),
    pytest.param(
        PLANTED,
        {"width": 256, "loss_s": 0.02},
        {"batch_size": 32, "num_servers": 3, "frame_bytes": 16384, "server_bandwidth": {0: "10mbit"}},
        "shard 0 ingress",
        id="throttled shard of three, many frames",
    ),
    pytest.param(PLANTED, {"width": 256}, {"batch_size": 32, "bandwidth": "20mbit"}, "ingress of all shards", id="thin links"),
]


@pytest.mark.parametrize(("task", "fields", "options", "expected"), CASES)
def test_the_planted_bottleneck_is_named(task: str, fields: dict[str, Any], options: dict[str, Any], expected: str, tmp_path: Path) -> None:
    result = train(tmp_path, task, fields, max_steps=8, **options)
    assert result.error is None
    log = (result.path / "logs" / "driver.log").read_text()
    named = re.findall(r"step (\d+) \|.*bottleneck: ([^|\n]*)", log)
    assert named[-1][0] == "8"
    assert all(name.startswith(f"{expected} ") for _, name in named), named
    summary = json.loads((result.path / "summary.json").read_text())
    assert f"bottleneck: {expected} " in summary["verdict"]
    assert_spans_add_up(result.path / "comm.jsonl")
    assert_trace_has_all_steps(result.path)


@pytest.mark.alone
def test_all_time_of_a_training_thread_has_a_name(tmp_path: Path) -> None:
    """Validation, the report, and the parts of a step, of an own loop: rows follow each other without a gap."""
    result = fit(tmp_path, f"{HERE}:takes_its_time", train={"batch_size": 5, "epochs": 2})
    assert result.error is None
    steps = list(read_ledger(result.path / "comm.jsonl"))
    assert len(steps) == 12
    for rank in range(2):
        rows = [next(row for row in step.workers if row.rank == rank) for step in steps]
        assert all(min(row.data_wait_s, row.forward_s, row.backward_s) > 0.015 for row in rows)
        assert [row.step for row in rows if row.validation_s > 0.025] == [2, 5, 8, 11]
        assert [row.step for row in rows if row.report_s > 0] == [3, 6, 9]
        for one, other in itertools.pairwise(rows):
            assert other.time_s - one.time_s == pytest.approx(one.validation_s + other.report_s + other.step_s, abs=2e-3)
        assert statistics.median(row.other_s / row.step_s for row in rows) < 0.02
    events = json.loads((result.path / "trace.json").read_text())["traceEvents"]
    drawn = sum(event["dur"] for event in events if event["name"] == "validation")
    assert drawn == pytest.approx(1e6 * sum(row.validation_s for step in steps for row in step.workers), rel=0.01)


def assert_spans_add_up(ledger: Path) -> None:
    """To the step. What has no name is small: 2% on an idle machine, where a thread that is woken runs at once. What the ledger costs has one."""
    rows = [row for step in read_ledger(ledger) for row in step.workers]
    total_s = sum(row.step_s for row in rows)
    assert sum(getattr(row, span) for row in rows for span in SPANS) == pytest.approx(total_s)
    assert sum(row.other_s for row in rows) < 0.1 * total_s
    assert all(row.ledger_s > 0 for row in rows)
    assert statistics.median(row.other_s / row.step_s for row in rows) < 0.02 or total_s / len(rows) < 0.02


def assert_trace_has_all_steps(path: Path) -> None:
    """Each with all of its seconds, and an arrow through the server for every push."""
    events = json.loads((path / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X" and event["name"] in {span.removesuffix("_s").replace("_", " ") for span in SPANS}]
    rows = [row for step in read_ledger(path / "comm.jsonl") for row in step.workers]
    assert sum(event["dur"] for event in spans) == pytest.approx(sum(row.step_s for row in rows) * 1e6)
    ends = [{event["id"] for event in events if event["ph"] == phase} for phase in "stf"]
    assert ends[0] == ends[1] == ends[2] != set()
