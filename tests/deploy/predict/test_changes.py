"""Predicted changes of a run."""

import os
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.measure.ledger_file import LedgerStep
from deploy.measure.window import Window
from deploy.predict.calibrate import fit
from deploy.predict.changes import Change, outlook
from deploy.predict.costs import Costs
from deploy.predict.scenario import Scenario, equal_tensors
from deploy.report.page import write_report
from deploy.report.words import outlook as words_of
from ps.config import CommConfig
from ps.ledger import ServerRow
from ps.pacing import Pacing
from tests.deploy.ledgers import step_of, write_run


def steps_of(num_workers: int, length: float) -> list[LedgerStep]:
    return [step_of(step, num_workers, 2, length=length) for step in range(10)]


def window_of(steps: list[LedgerStep]) -> Window:
    window = Window()
    for step in steps:
        window.add(step.step, step.rows)
    return window


def thin(**options: object) -> Scenario:
    """1 MB on links of 5 Mbit/s: nothing else matters."""
    comm = CommConfig(bandwidth="5mbit")
    base = Scenario(specs=equal_tensors(1_000_000), forward_s=0.01, backward_s=0.02, num_workers=4, num_servers=2, comm=comm)
    return replace(base, **options)  # type: ignore[arg-type]


def test_on_thin_links_more_servers_and_fewer_bytes_shorten_the_step_as_the_bytes_say() -> None:
    """4 workers on 2 servers need 2 M/B; 16-bit formats and twice as many servers half of it, and ring all-reduce 1.5 M/B."""
    steps = steps_of(4, length=3.6)
    found = outlook(thin(), steps)
    assert found is not None and found.step_s == pytest.approx(3.6)
    assert found.model_s == pytest.approx(2 * 1e6 * 1.045 / 0.625e6, rel=0.1)
    names = [change.what for change in found.changes]
    assert 'comm.push_format = "bf16" and comm.pull_format = "bf16"' in names and len(names) == 3
    assert len([name for name in names if name.startswith("scaling.num_servers")]) == 1
    assert [change.step_s for change in found.changes] == sorted(change.step_s for change in found.changes)
    assert all(change.step_s == pytest.approx(1.8, rel=0.15) for change in found.changes)
    assert found.ring_s == pytest.approx(1.5 * 1e6 * 1.045 / 0.625e6, rel=0.1)
    said = words_of(found, window_of(steps))
    assert found.floor_s == pytest.approx(2 * 1e6 * 1.045 / 0.625e6)
    assert said[-2].endswith("the longer of the two is 93% of the step.")
    assert len(said) == 5 and said[-1].startswith("Plain DDP: 2.5") and "it would be faster than the 3.60 s here" in said[-1]


def test_a_straggler_is_mended_and_links_are_those_that_workers_have_measured() -> None:
    steps = steps_of(4, length=0.3)
    slow = [replace(s, workers=[replace(r, backward_s=r.backward_s * (3 if r.rank == 2 else 1)) for r in s.workers]) for s in steps]
    first = [replace(r, pacing=Pacing(link_bytes_per_s=1.25e9, delay_s=1e-4)) for r in slow[0].workers]
    scenario = thin(comm=CommConfig(), forward_s=0.1, backward_s=0.2, hosts="one", cores_per_host=float(os.cpu_count() or 1))
    found = outlook(scenario, [replace(slow[0], workers=first), *slow[1:]])
    assert found is not None and found.ring_s is not None
    assert "rank 2 as quick as the others" in [change.what for change in found.changes]
    local = [replace(s, workers=[replace(r, shards=[replace(t, local=True) for t in r.shards]) for r in s.workers]) for s in slow]
    found = outlook(scenario, local)
    assert found is not None and found.ring_s is None
    assert outlook(scenario, steps[:2]) is None, "the first steps are no typical ones"


def changes_of(scenario: Scenario, steps: list[LedgerStep]) -> dict[str, Change]:
    found = outlook(scenario, steps)
    assert found is not None
    return {change.what: change for change in found.changes}


def what_of(scenario: Scenario, steps: list[LedgerStep]) -> dict[str, float]:
    length = statistics.median(row.step_s for step in steps for row in step.workers)
    return {what: change.step_s / length for what, change in changes_of(scenario, steps).items()}


def with_workers(steps: list[LedgerStep], **fields: float) -> list[LedgerStep]:
    return [replace(step, workers=[replace(row, **fields) for row in step.workers]) for step in steps]  # type: ignore[arg-type]


def test_of_two_ranks_the_slow_one_computes_longer_and_the_other_is_the_typical_one() -> None:
    steps = with_workers(steps_of(2, length=0.4), forward_s=0.0, backward_s=0.1)
    slow = [replace(s, workers=[s.workers[0], replace(s.workers[1], backward_s=0.3)]) for s in steps]
    wide = CommConfig(bandwidth="100gbit")
    found = what_of(thin(comm=wide, forward_s=0.0, backward_s=0.1, num_workers=2), slow)
    assert found["rank 1 as quick as the others"] == pytest.approx(1 / 3, rel=0.1)


def test_data_is_loaded_ahead_by_as_many_threads_as_it_takes() -> None:
    scenario = thin(comm=CommConfig(bandwidth="100gbit"), forward_s=0.25, backward_s=0.05)  # 0.2 s of data
    assert what_of(scenario, with_workers(steps_of(4, length=0.3), data_wait_s=0.2))["train.data_workers = 3"] == pytest.approx(1 / 3, rel=0.1)


@pytest.mark.parametrize(
    ("rates", "what", "sets"),
    [
        ({1: "2mbit"}, "shard 1's link like the others", ["comm.server_bandwidth.1="]),
        ({0: "2mbit", 1: "2mbit"}, "links of all servers as wide as the others", ["comm.server_bandwidth.0=", "comm.server_bandwidth.1="]),
    ],
)
def test_thin_links_are_mended_by_their_keys_where_the_config_simulates_them(rates: dict[int, str], what: str, sets: list[str]) -> None:
    comm = CommConfig(bandwidth="5mbit", server_bandwidth=rates, shaping="links")
    found = outlook(thin(comm=comm), steps_of(4, length=9.0))
    assert found is not None
    (change,) = [change for change in found.changes if change.what == what]
    assert change.step_s == pytest.approx(3.6, rel=0.15) and list(change.sets) == sets


def test_a_server_that_wants_a_processor_is_given_one_and_links_that_it_made_look_thin_are_not_believed() -> None:
    def starved(row: ServerRow) -> ServerRow:
        return replace(row, aggregate_s=0.4, apply_s=0.6, work_cpu_s=0.2 if row.shard == 1 else 1.0)

    steps = [replace(step, servers=[starved(row) for row in step.servers]) for step in steps_of(4, length=1.0)]
    first = [replace(row, pacing=Pacing(link_bytes_per_s=1e5, delay_s=1e-4)) for row in steps[0].workers]
    scenario = thin(comm=CommConfig(), forward_s=0.0, backward_s=0.01, costs=Costs(apply_byte_s=1e-6))
    found = outlook(scenario, [replace(steps[0], workers=first), *steps[1:]])
    assert found is not None and found.ring_s is None, "10 MB do not pass a link of 0.1 MB/s in a second"
    mended = next(change for change in found.changes if change.what == "shard 1's host with as much of a processor as the others")
    assert mended.step_s < 0.4 * found.step_s


def test_a_server_with_a_quota_is_simulated_with_it_and_mended_without() -> None:
    """A second of work takes four on a quarter of a core."""

    def limited(row: ServerRow) -> ServerRow:
        return replace(row, cores=0.25 if row.shard == 1 else 2.0, aggregate_s=0.4, apply_s=0.6, work_cpu_s=0.25 if row.shard == 1 else 1.0)

    steps = [replace(step, servers=[limited(row) for row in step.servers]) for step in steps_of(4, length=4.0)]
    scenario = thin(comm=CommConfig(), forward_s=0.0, backward_s=0.01, costs=Costs(apply_byte_s=2e-6), cores_per_host=2.0)
    found = outlook(scenario, steps)
    assert found is not None and found.model_s == pytest.approx(4.0, rel=0.2)
    mended = next(change for change in found.changes if change.what == "shard 1's host with as much of a processor as the others")
    assert mended.step_s < 0.4 * found.step_s


def test_the_report_of_a_run_has_predictions_and_one_without_its_task_has_none(tmp_path: Path) -> None:
    steps = [step_of(step) for step in range(10)]
    run = write_run(tmp_path, "whole", steps)
    assert "Plain DDP" in write_report(run).read_text()
    run.config.write_text(run.config.read_text().replace('"digits"', '"nosuch.module:Task"'))
    text = write_report(run).read_text()
    assert "Plain DDP" not in text and "No prediction: " in text and "Predicted by" not in text and "What there is to gain" in text


def test_slow_copies_are_mended_by_quicker_ones_and_by_more_samples_in_a_step() -> None:
    """Of 0.3 s, 0.05 are compute, 0.1 copies of gradients, 0.1 of parameters."""
    spans = {"data_wait_s": 0.0, "forward_s": 0.01, "backward_s": 0.04, "copy_s": 0.1, "install_s": 0.1, "other_s": 0.05}
    steps = with_workers(steps_of(2, length=0.3), **spans)
    scenario = fit(steps, thin(comm=CommConfig(bandwidth="100gbit"), num_workers=2))
    changes = changes_of(scenario, steps)
    copies = changes["copies in half the time (a faster bus to the device, fewer ranks on one host)"]
    assert copies.step_s == pytest.approx(0.2, rel=0.1) and copies.samples == 1
    more = changes["train.accumulate = 2"]
    assert more.step_s == pytest.approx(0.35, rel=0.1) and more.same_samples_s == pytest.approx(0.175, rel=0.1)
    assert list(changes)[-1] == "train.accumulate = 2", "what learns from larger batches comes last"
    whole = changes_of(replace(scenario, micro_batches=3, global_batch=96), steps)
    assert list(whole["train.accumulate = 6 and train.global_batch_size = 192"].sets) == ["train.accumulate=6", "train.global_batch_size=192"]
    found = outlook(scenario, steps)
    (said,) = [line for line in words_of(found, window_of(steps)) if line.startswith("train.accumulate")]
    assert "with 2 times the samples, 0.1" in said and "learns from larger batches" in said
