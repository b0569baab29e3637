import itertools

import pytest

from ps.control import Control, Epoch, EpochSums, Failure, ServerAddress
from ps.errors import Fenced, MalformedFrame
from ps.store import EMPTY


def test_every_registration_is_a_new_incarnation_of_its_place() -> None:
    control = Control(num_workers=2, num_servers=1)
    assert [control.register("worker", 0), control.register("worker", 1), control.register("worker", 0), control.register("server", 0)] == [
        1,
        1,
        2,
        1,
    ]
    control.check_current("worker", 0, 2)
    for role, index, incarnation in (("worker", 0, 1), ("worker", 0, 3), ("server", 1, 1)):
        with pytest.raises(Fenced, match=f"{role} {index} incarnation {incarnation} is not the newest"):
            control.check_current(role, index, incarnation)


@pytest.mark.parametrize(("role", "index"), [("worker", 2), ("worker", -1), ("server", 1)])
def test_a_place_that_the_run_does_not_have_is_refused(role: str, index: int) -> None:
    with pytest.raises(MalformedFrame, match=f"{role} {index} registers in a run of"):
        Control(num_workers=2, num_servers=1).register(role, index)


def test_servers_are_complete_when_each_has_said_where_it_is() -> None:
    control = Control(num_workers=1, num_servers=2)
    for shard in (1, 1, 0):
        assert not control.has_all_servers
        control.register("server", shard, ServerAddress(shard, "d", "c"))
    assert control.has_all_servers


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_an_epochs_sums_are_added_in_rank_order_once(order: tuple[int, ...]) -> None:
    control = Control(num_workers=3, num_servers=1)
    parts = [0.1, 1e16, -1e16]
    epochs = []
    for rank in (*order, order[0]):
        epochs.append(control.report_epoch(rank, EpochSums(4, {"loss": 2.0}, {"loss": parts[rank]})))
    assert epochs[:2] == [None, None] and epochs[3] is None
    assert epochs[2] is not None and epochs[2].validation == {"loss": (0.1 + 1e16) - 1e16} and epochs[2].training == {"loss": 2.0}


def test_metrics_that_one_rank_has_not_seen_count_as_nothing() -> None:
    control = Control(num_workers=2, num_servers=1)
    control.report_epoch(0, EpochSums(1, {}, {"loss": 1.0}))
    epoch = control.report_epoch(1, EpochSums(1, {}, {"metric.accuracy": 3.0}))
    assert epoch is not None and epoch.validation == {"loss": 1.0, "metric.accuracy": 3.0}


def test_a_repeated_report_does_not_change_the_first() -> None:
    control = Control(num_workers=2, num_servers=1)
    control.report_epoch(0, EpochSums(1, {}, {"loss": 1.0}))
    control.report_epoch(0, EpochSums(1, {}, {"loss": 5.0}))
    epoch = control.report_epoch(1, EpochSums(1, {}, {"loss": 1.0}))
    assert epoch is not None and epoch.validation == {"loss": 2.0}


def test_the_run_has_a_final_version_when_every_rank_has_landed_it() -> None:
    control = Control(num_workers=2, num_servers=1)
    control.finish(1, 8)
    control.finish(1, 8)
    assert control.final_version is None and control.has_finished(1) and not control.has_finished(0)
    control.finish(0, 8)
    assert control.final_version == 8


def test_a_rank_of_two_stages_is_two_workers_of_which_the_last_brings_sums() -> None:
    control = Control(num_workers=1, num_servers=1, num_stages=2)
    assert [control.register("worker", index) for index in (0, 1)] == [1, 1]
    with pytest.raises(MalformedFrame, match="worker 2 registers in a run of 2"):
        control.register("worker", 2)
    assert control.report_epoch(0, EpochSums(4, {}, {})) is None
    assert control.report_epoch(1, EpochSums(4, {"loss": 3.0}, {"loss": 2.0})) == Epoch(4, {"loss": 3.0}, {"loss": 2.0})
    control.finish(0, 8)
    assert control.final_version is None
    control.finish(1, 8)
    assert control.final_version == 8
    control.lose("worker", 0)
    assert control.final_version is None, "its group does the last step again"


def test_the_first_failure_counts() -> None:
    control = Control(num_workers=2, num_servers=1)
    first = Failure(1, "NonFinite", "loss is nan", "")
    control.fail(first)
    control.fail(Failure(0, "Unreachable", "server 0", ""))
    assert control.failure is first


def test_signs_of_life_are_the_newest_incarnations() -> None:
    control = Control(num_workers=2, num_servers=1)
    control.register("worker", 1)
    control.beat("worker", 1, 7)
    assert (control.beats, control.steps, control.newest_step) == ({("worker", 1): 1}, {("worker", 1): 7}, 7)
    control.lose("worker", 1)
    assert (control.beats, control.steps, control.newest_step) == ({}, {}, 7)
    control.register("worker", 1)
    control.beat("worker", 1, 0)
    assert (control.beats, control.steps, control.newest_step) == ({("worker", 1): 1}, {("worker", 1): 0}, 7)


def test_what_is_applied_is_what_a_worker_of_every_stage_has_landed_or_every_server_has() -> None:
    control = Control(num_workers=2, num_servers=2, num_stages=2)
    control.beat("server", 0, 9)
    control.beat("worker", 0, 7)
    assert control.applied == 0, "nobody of stage 1 has told"
    control.beat("worker", 3, 6)
    control.beat("worker", 1, 5)
    control.lose("worker", 3)
    assert control.applied == 6, "server 1 has not told"
    control.beat("server", 1, 8)
    assert control.applied == 8


def test_a_server_without_chunks_is_as_far_as_the_others() -> None:
    control = Control(num_workers=1, num_servers=2)
    control.beat("server", 0, 7)
    control.beat("server", 1, EMPTY)
    assert (control.steps["server", 1], control.newest_step) == (7, 7)
