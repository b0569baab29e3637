"""What an admitted process may not make others keep: texts, lists, streams, answers."""

import asyncio

import pytest
from torch import nn

from protos import pserver_pb2 as pb
from ps.agreement import MAX_CHUNKS, MAX_TENSORS, model_from, num_chunks, specs_from
from ps.control import Control, EpochSums
from ps.control_checks import MAX_ERROR, MAX_SUMS, MAX_TEXT, MAX_TRACEBACK, check_heartbeat, check_register, check_report, printable
from ps.errors import MalformedFrame, ModelMismatch
from ps.inspection import _state
from ps.layout import CHUNK_ELEMENTS
from ps.transport.streams import Outbox
from tests.ps.cluster import cluster

SERVER = {"role": pb.SERVER, "data_address": "10.0.0.1:1", "control_address": "10.0.0.1:2"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data_address": "10.0.0.1"}, "is no HOST:PORT"),
        ({"control_address": ":1"}, "is no HOST:PORT"),
        ({"control_address": "host:port"}, "is no HOST:PORT"),
        ({"data_address": "h" * MAX_TEXT + ":1"}, "at most 1024 are taken"),
        ({"environment": pb.Environment(torch="2" * (MAX_TEXT + 1))}, "at most 1024 are taken"),
        ({"environment": pb.Environment(host="node\x1b[2J")}, "that a terminal would obey"),
    ],
)
def test_a_process_that_cannot_be_there_is_refused(fields: dict[str, object], message: str) -> None:
    check_register(pb.RegisterRequest(**SERVER))  # type: ignore[arg-type]
    with pytest.raises(MalformedFrame, match=message):
        check_register(pb.RegisterRequest(**(SERVER | fields)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"step": -2}, "a step or version -2"),
        ({"step": 1 << 62}, "a step or version"),
        ({"doing": "x" * (MAX_TEXT + 1)}, "a text of 1025 characters"),
        ({"stacks": "x" * (MAX_TRACEBACK + 1)}, "a text of"),
        ({"waits_for": [0, 1, 2]}, "waits for 3 ranks in a run of 2"),
        ({"rows": ["", '{"kind":"worker", ' + " " * 6200]}, "a text of 6218 characters, at most 6144 are taken"),
    ],
)
def test_a_heartbeat_that_says_too_much_is_refused(fields: dict[str, object], message: str) -> None:
    check_heartbeat(pb.HeartbeatRequest(step=-1, waits_for=[0, 1], rows=["x" * 6000]), 2, 2)
    with pytest.raises(MalformedFrame, match=message):
        check_heartbeat(pb.HeartbeatRequest(**fields), 2, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"training_names": ["a", "b"]},
        {"validation_names": ["metric.accuracy"], "validation_sums": [1.0]},
        {"validation_names": ["user.a", "weight.b"], "validation_sums": [1.0, 1.0]},
        {"event": pb.EVENT_UNSPECIFIED},
        {"event": 7},
        {"training_names": ["a"] * (MAX_SUMS + 1), "training_sums": [1.0] * (MAX_SUMS + 1)},
        {"validation_sums": [1.0]},
        {"version": -2},
        {"error_type": "E" * (MAX_TEXT + 1)},
        {"error": "E" * (MAX_ERROR + 1)},
        {"traceback": "E" * (MAX_TRACEBACK + 1)},
        {"validation_names": ["x" * (MAX_TEXT + 1)], "validation_sums": [1.0]},
    ],
)
def test_a_report_that_does_not_fit_together_is_refused(fields: dict[str, object]) -> None:
    right = {"event": pb.EPOCH, "training_names": ["a"], "training_sums": [1.0], "error": "rank 0: no data"}
    check_report(pb.ReportRequest(**right))  # type: ignore[arg-type]
    with pytest.raises(MalformedFrame):
        check_report(pb.ReportRequest(**(right | fields)))  # type: ignore[arg-type]


def test_a_rank_has_one_report_at_a_time() -> None:
    control = Control(num_workers=2, num_servers=1)
    control.report_epoch(0, EpochSums(4, {}, {}))
    control.report_epoch(0, EpochSums(4, {}, {}))
    with pytest.raises(MalformedFrame, match="rank 0 reports version 5 while others are awaited for its report of version 4"):
        control.report_epoch(0, EpochSums(5, {}, {}))
    assert control.report_epoch(1, EpochSums(4, {}, {})) is not None
    control.report_epoch(0, EpochSums(8, {}, {}))


def test_of_an_epoch_that_is_over_nothing_is_kept_but_who_has_reported_it() -> None:
    control = Control(num_workers=1, num_servers=1)
    for version in (4, 8):
        epoch = control.report_epoch(0, EpochSums(version, {"loss": 3.0}, {"loss": 1.5}))
        assert epoch is not None and (epoch.training, epoch.validation) == ({"loss": 3.0}, {"loss": 1.5})
        assert control.report_epoch(0, EpochSums(version, {"loss": 3.0}, {"loss": 1.5})) is None
    assert all(sums == EpochSums(version, {}, {}) for version, reports in control._reports.items() for sums in reports.values())


def test_what_a_process_says_cannot_steer_the_drivers_terminal() -> None:
    assert printable("no é\n\x1b[2Jdata\x07") == "no é\n?[2Jdata?"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (pb.Tensor(name="w", shape=[1] * 65, dtype="float32", rule=pb.RULE_OPTIMIZER), "has 65 dimensions"),
        (pb.Tensor(name="w" * 1025, shape=[1], dtype="float32", rule=pb.RULE_OPTIMIZER), "a name of 1025 characters"),
        (pb.Tensor(name="w", shape=[0, (1 << 64) - 1], dtype="float32", rule=pb.RULE_OPTIMIZER), "is .0, 18446744073709551615. large"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused_before_it_is_multiplied_out(tensor: pb.Tensor, message: str) -> None:
    with pytest.raises(ModelMismatch, match=message):
        model_from(pb.JoinRequest(tensors=[tensor], chunk_digests=[1], steps_per_epoch=1, total_steps=1))


def test_no_more_tensors_and_chunks_than_a_join_can_bring_are_taken_from_anybody() -> None:
    tensor = pb.Tensor(name="w", shape=[CHUNK_ELEMENTS * (MAX_CHUNKS - 1)], dtype="float32", rule=pb.RULE_OPTIMIZER)
    one = pb.Tensor(name="v", shape=[1], dtype="float32", rule=pb.RULE_OPTIMIZER)
    assert num_chunks(specs_from([tensor, one], "server 0")) == MAX_CHUNKS
    with pytest.raises(ModelMismatch, match="server 0 brings 2097153 chunks"):
        specs_from([tensor, one, one], "server 0")
    with pytest.raises(ModelMismatch, match="server 0 brings 131073 tensors"):
        specs_from([one] * (MAX_TENSORS + 1), "server 0")


@pytest.mark.parametrize("plan", [{"steps_per_epoch": 1}, {"total_steps": 1}])
def test_a_plan_without_steps_is_refused(plan: dict[str, int]) -> None:
    with pytest.raises(ModelMismatch, match="a plan without steps"):
        model_from(pb.JoinRequest(**plan))  # type: ignore[arg-type]


def test_an_environment_of_any_length_is_not_kept() -> None:
    with pytest.raises(ModelMismatch, match="an environment of more than 1024 characters"):
        model_from(pb.JoinRequest(environment=pb.Environment(python="3" * 1025)))


def test_who_does_not_read_its_answers_is_waited_for() -> None:
    async def scenario() -> None:
        outbox: Outbox[bytes] = Outbox()
        outbox.put(bytes(10))
        await outbox.below(10)
        outbox.put(bytes(1))
        waiter = asyncio.create_task(outbox.below(10))
        await asyncio.sleep(0)
        assert not waiter.done()
        assert len(await outbox.get()) == 10
        await waiter

    asyncio.run(scenario())


def test_what_processes_say_cannot_steer_the_terminal_of_who_asks_for_it() -> None:
    state = _state(pb.ProcessState(role=pb.WORKER, doing="rests\x1b[2J", stacks="thread main\n\x07"))
    assert (state.doing, state.stacks) == ("rests?[2J", "thread main\n?")


@pytest.mark.parametrize("wrong", [{"norms_shard": 1, "norms": [1.0] * 2}, {"norms_shard": 0, "norms": [1.0]}, {"norms_shard": 7}])
def test_a_member_keeps_no_norms_that_no_shard_can_have(wrong: dict[str, object]) -> None:
    with cluster(1, 1) as servers:
        client = servers.member(0, nn.Linear(3, 2)).client
        client.inbox.learn_norms(pb.FrameHeader(kind=pb.NORMS, norms_shard=0, norms=[1.0, 2.0], step=5))
        with pytest.raises(MalformedFrame, match="no such shard has so many"):
            client.inbox.learn_norms(pb.FrameHeader(kind=pb.NORMS, **wrong))  # type: ignore[arg-type]
