"""The report's figures: what is drawn of the ledger, the losses and the weights."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.measure.recorded import read_run
from deploy.report import figure as figure_module
from deploy.report.figure import binned
from deploy.report.figures import losses
from deploy.rundir import RunDirectory
from tests.deploy.ledgers import MB, history_of, step_of, write_run
from tests.deploy.reported import by_key


def test_a_whole_run_has_every_figure(whole_run: RunDirectory) -> None:
    assert list(by_key(whole_run)) == ["gantt", "time", "links", "traffic", "waits", "tensors", "losses"]


def test_a_bar_of_the_step_is_as_long_as_its_span(whole_run: RunDirectory) -> None:
    chart = by_key(whole_run)["gantt"]
    length = sum(length for trace in chart.traces for who, length in zip(trace["y"], trace["x"], strict=True) if who == "worker 1")
    assert length == pytest.approx(100.0)
    (waits,) = [trace for trace in chart.traces if trace["name"] == "barrier wait"]
    assert dict(zip(waits["y"], waits["x"], strict=True)) == pytest.approx({"worker 0": 10.0, "worker 1": 0.0, "worker 2": 10.0})
    assert {who for trace in chart.traces for who in trace["y"]} == {"worker 0", "worker 1", "worker 2", "server 0", "server 1"}


def test_the_typical_step_is_the_one_of_median_length(tmp_path: Path) -> None:
    run = write_run(tmp_path, "uneven", [step_of(step, length=length) for step, length in enumerate((0.1, 0.5, 0.3))])
    assert by_key(run)["gantt"].title == "One step: step 2"


def test_figures_have_the_ledgers_numbers(whole_run: RunDirectory) -> None:
    drawn = by_key(whole_run)
    assert drawn["traffic"].traces[0]["z"] == [[24 * MB, 48 * MB]] * 3
    stacked = [sum(values) for values in zip(*(trace["y"] for trace in drawn["time"].traces), strict=True)]
    assert stacked == pytest.approx([100.0] * 12)
    rates = {trace["name"]: trace["y"] for trace in drawn["links"].traces}
    assert rates["shard 1 in"] == pytest.approx([6 * MB / 0.1] * 12)
    (waits,) = drawn["waits"].traces
    assert (waits["name"], waits["x"], waits["y"]) == ("for rank 1", ["rank 0", "rank 2"], pytest.approx([10.0, 10.0]))
    assert drawn["tensors"].traces[0]["y"] == ["large", "small"]
    assert drawn["tensors"].traces[0]["x"] == [128, 12]
    assert drawn["losses"].layout["shapes"][0]["x0"] == 8


def test_the_rate_of_a_shaped_link_is_drawn(tmp_path: Path) -> None:
    step = step_of(0)
    shaped = replace(step, servers=[replace(step.servers[0], link_bytes_per_s=25e6), step.servers[1]])
    traces = by_key(write_run(tmp_path, "shaped", [shaped]))["links"].traces
    assert [trace["y"] for trace in traces if trace["name"] == "shard 0's link"] == [[25e6, 25e6]]
    assert not [trace for trace in traces if trace["name"] == "shard 1's link" or trace["name"].startswith("rank")]


def test_the_thinnest_link_of_a_worker_is_drawn_with_what_it_carries(tmp_path: Path) -> None:
    made = step_of(0)
    thin = replace(made.workers[1], link_bytes_per_s=4e6, shards=[made.workers[1].shards[0], replace(made.workers[1].shards[1], local=True)])
    shaped = replace(made, workers=[replace(made.workers[0], link_bytes_per_s=8e6), thin])
    links = by_key(write_run(tmp_path, "thin", [shaped]))["links"]
    drawn = {trace["name"]: trace["y"] for trace in links.traces if trace["name"].startswith("rank")}
    assert drawn == {"rank 1 up": [1 * MB / 0.1], "rank 1 down": [1 * MB / 0.1], "rank 1's link": [4e6, 4e6]}
    assert "of the worker with the thinnest link" in links.note


@pytest.mark.parametrize(
    ("local_ranks", "part", "said"),
    [
        (set(), 1.0, "Payload of each shard over"),
        ({0}, 2 / 3, "Payload of each shard but for workers on its own host, over"),
        ({0, 1, 2}, 1.0, "Payload of each shard, none of which leaves its host, over"),
    ],
)
def test_what_stays_on_a_host_uses_no_link(local_ranks: set[int], part: float, said: str, tmp_path: Path) -> None:
    made = step_of(0, num_workers=3)
    workers = [replace(row, shards=[replace(traffic, local=row.rank in local_ranks) for traffic in row.shards]) for row in made.workers]
    links = by_key(write_run(tmp_path, "local", [replace(made, workers=workers)]))["links"]
    assert links.traces[0]["y"] == pytest.approx([part * 3 * MB / 0.1]) and links.note.startswith(said)


def test_a_step_whose_rows_were_lost_leaves_the_others_in_their_places(tmp_path: Path) -> None:
    steps = [step_of(step) for step in range(4)]
    steps[1] = replace(steps[1], servers=steps[1].servers[:1])
    steps[2] = replace(steps[2], workers=[])
    series = read_run(write_run(tmp_path, "holes", steps)).series
    assert series.ingress[1] == [4 * MB, 0, 4 * MB, 4 * MB]
    assert [round(value, 3) for value in series.step_s] == [0.1, 0.1, 0.0, 0.1]
    assert by_key(RunDirectory(tmp_path / "holes"))["gantt"].title == "One step: step 0"


def test_a_step_that_took_far_longer_than_all_others_does_not_flatten_them(tmp_path: Path) -> None:
    lengths = [0.7, *[0.1] * 60]
    time = by_key(write_run(tmp_path, "spike", [step_of(step, length=length) for step, length in enumerate(lengths)]))["time"]
    assert time.layout["yaxis"]["range"] == [0, pytest.approx(120.0)] and "The longest steps, up to 0.70 s, do not fit." in time.note
    even = by_key(write_run(tmp_path, "even", [step_of(step) for step in range(61)]))["time"]
    assert "range" not in even.layout["yaxis"] and "do not fit" not in even.note


def test_a_long_run_is_drawn_as_means_of_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure_module, "MAX_POINTS", 4)
    assert binned([1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0]) == [2.0, 6.0, 10.0, 14.0]
    assert binned([1.0, 2.0]) == [1.0, 2.0]


def test_losses_that_are_no_numbers_are_left_out_of_their_figure() -> None:
    by_name = {trace["name"]: trace["y"] for trace in losses(history_of(0.9, float("nan"), 0.8)).traces}
    assert by_name["validation loss"] == [0.9, 0.8]
