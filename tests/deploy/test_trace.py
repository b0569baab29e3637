"""trace.json: slices that sum to the step, arrows, levels; from whole, failed and interrupted runs."""

import itertools
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.cli.main import main
from deploy.measure import trace as trace_module
from deploy.measure.trace import trace
from deploy.measure.window import SPANS
from ps.ledger import ShardTraffic
from tests.deploy.ledgers import BEGIN_S, MB, step_of, write_run


def slices(events: list[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append(event)
    return tracks


def names(events: list[dict[str, Any]]) -> dict[int, str]:
    return {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}


def test_every_worker_and_server_has_a_track_whose_spans_sum_to_its_steps() -> None:
    steps = [step_of(step, num_workers=3) for step in range(4)]
    events = trace(steps)["traceEvents"]
    assert list(names(events).values()) == ["worker 0", "worker 1", "worker 2", "server 0", "server 1"]
    tracks = slices(events)
    for pid, name in names(events).items():
        whole = [event for event in tracks[pid, 0] if event["name"].startswith("step ")]
        assert len(whole) == 4
        for outer in whole:
            inner = [e for e in tracks[pid, 0] if e is not outer and e["args"]["step"] == outer["args"]["step"]]
            assert sum(event["dur"] for event in inner) == pytest.approx(outer["dur"], abs=0.001)
            assert inner[0]["ts"] == outer["ts"]
            assert all(b["ts"] == pytest.approx(a["ts"] + a["dur"], abs=0.001) for a, b in itertools.pairwise(inner))
            if name.startswith("worker"):
                assert outer["dur"] == pytest.approx(100_000)


def test_each_span_of_each_worker_is_as_long_in_the_trace_as_in_the_ledger() -> None:
    steps = [step_of(step, num_workers=3) for step in range(4)]
    drawn, written = defaultdict[tuple[int, str], float](float), defaultdict[tuple[int, str], float](float)
    for event in trace(steps)["traceEvents"]:
        if event["ph"] == "X" and event["tid"] == 0 and event["pid"] <= 3 and not event["name"].startswith("step "):
            drawn[event["pid"] - 1, event["name"]] += event["dur"]
    for row in (row for step in steps for row in step.workers):
        for span in SPANS:
            if seconds := getattr(row, span):
                written[row.rank, span.removesuffix("_s").replace("_", " ")] += seconds * 1e6
    assert drawn == pytest.approx(written, abs=0.01)


def test_slices_of_one_track_never_overlap_though_clocks_jitter() -> None:
    late = replace(step_of(0).workers[0], time_s=BEGIN_S + 0.1004)  # written 0.4 ms after the step had ended
    steps = [step_of(0), step_of(1)]
    steps[0].workers[0] = late
    for track in slices(trace(steps)["traceEvents"]).values():
        tops = [event for event in track if event["name"].startswith(("step", "push", "pull"))]
        assert all(b["ts"] >= a["ts"] + a["dur"] for a, b in itertools.pairwise(tops))


def test_an_arrow_leads_from_every_push_through_the_server_to_the_pull() -> None:
    events = trace([step_of(5, num_workers=2)])["traceEvents"]
    arrows = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            arrows[event["id"]].append(event)
    assert set(arrows) == {f"5-{rank}-{shard}" for rank in (0, 1) for shard in (0, 1)}
    tracks = slices(events)
    for points in arrows.values():
        points = sorted(points, key=lambda event: event["ts"])
        assert [event["ph"] for event in points] == ["s", "t", "f"]
        inside = [[e["name"] for e in tracks[p["pid"], p["tid"]] if e["ts"] <= p["ts"] <= e["ts"] + e["dur"]] for p in points]
        assert "push step 5" in inside[0] and "step 5" in inside[1] and "pull step 5" in inside[2]


def test_an_arrow_never_goes_back_in_time_though_clocks_jitter() -> None:
    step = step_of(0)
    late = [replace(row, time_s=row.time_s + 0.005, complete_s=0.0) for row in step.servers]  # complete when the last answer has landed
    points = [event for event in trace([replace(step, servers=late)])["traceEvents"] if event["ph"] in "stf"]
    for way in {event["id"] for event in points}:
        assert [event["ph"] for event in sorted((e for e in points if e["id"] == way), key=lambda e: e["ts"])] == ["s", "t", "f"]


def test_bytes_in_flight_rise_to_what_was_on_its_way_at_once_and_fall_to_nothing() -> None:
    events = trace([step_of(0), step_of(1)])["traceEvents"]
    for way, at_once in (("push", MB // 2), ("pull", MB)):
        levels = [e["args"]["bytes"] for e in events if e["ph"] == "C" and e["name"] == f"{way} in flight, shard 1" and e["pid"] == 1]
        assert levels == [at_once, 0, at_once, 0], way


def test_a_row_without_positions_has_its_spans_but_neither_slices_of_traffic_nor_arrows() -> None:
    """Of a ledger from before there were positions, or of a step in which nothing was sent."""
    step = step_of(0)
    bare = [replace(row, shards=[ShardTraffic(shard=0)]) for row in step.workers]
    servers = [replace(row, first_s=None, complete_s=None) for row in step.servers]
    events = trace([replace(step, workers=bare, servers=servers)])["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X"}
    assert {event["tid"] for event in events if event["ph"] == "X"} == {0}


def test_a_death_stands_where_the_process_had_its_last_row_before_it() -> None:
    steps = [step_of(0), step_of(1), step_of(2, at=BEGIN_S + 5.0)]
    events = trace(steps, [{"process": "worker 1", "reason": "was killed by SIGKILL", "step": 2, "back_after_s": 4.0}])["traceEvents"]
    (death,) = [event for event in events if event["ph"] == "i"]
    assert (death["pid"], death["ts"]) == (2, pytest.approx(200_000, abs=1))
    assert death["name"] == "dies: was killed by SIGKILL"


def test_a_long_run_shows_its_last_steps_or_those_from_a_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(**options: int) -> set[int]:
        return {event["args"]["step"] for event in trace((step_of(step) for step in range(50)), **options)["traceEvents"] if event["ph"] == "X"}

    monkeypatch.setattr(trace_module, "MAX_EVENTS", 3 * trace_module._num_events(step_of(0)))
    assert shown() == {47, 48, 49}
    assert shown(first=20) == {20, 21, 22}
    monkeypatch.setattr(trace_module, "MAX_EVENTS", 1)
    assert shown() == {49}


def test_the_bound_on_events_holds() -> None:
    steps = [step_of(step, num_workers=3, num_servers=2) for step in range(3)]
    events = [event for event in trace(steps)["traceEvents"] if event["ph"] not in "M"]
    assert len(events) <= sum(trace_module._num_events(step) for step in steps)


def test_the_command_writes_the_trace_of_a_run_whose_driver_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(Path("runs"), "killed", [step_of(step) for step in range(3)])
    with run.comm.open("a") as file:
        file.write('{"step":3,"rows":[{"ki')  # a line that was cut
    for arguments in ([], ["killed"], ["--from", "1"], ["runs/killed"]):
        with pytest.raises(SystemExit) as ended:
            main(["trace", *arguments])
        assert ended.value.code == 0
        assert capsys.readouterr().out.strip().endswith("runs/killed/trace.json")
    assert json.loads(run.trace.read_text())["otherData"]["steps"] == "0 to 2"


@pytest.mark.parametrize(
    ("steps", "arguments", "damage", "message"),
    [
        pytest.param([], [], "", "comm.jsonl has no step: nothing to draw", id="a run that ended before its first step"),
        pytest.param([step_of(0)], ["--from", "7"], "", "comm.jsonl has no step from 7 on", id="steps that are not there"),
        pytest.param([step_of(0)], ["--from", "0"], "7\n", "comm.jsonl, line 2 is no line of the ledger", id="a damaged line among all"),
        pytest.param([step_of(0)], [], '{"step":1,"rows":[{"kind":"worker"}]}\n', "comm.jsonl is no line of the ledger", id="a damaged line"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(
    steps: Any, arguments: list[str], damage: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, "odd", steps, status="failed", error="x")
    with run.comm.open("a") as file:
        file.write(damage)
    with pytest.raises(SystemExit) as ended:
        main(["trace", str(run.path), *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not run.trace.exists()
