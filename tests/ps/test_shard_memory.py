"""What a server finds on its host that a former one has left."""

import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest

from protos import pserver_pb2 as pb
from ps.config import OptimizerConfig, ServerSettings, Timeouts
from ps.errors import ResourcesMissing
from ps.host import ShardHost
from ps.ledger import RowBuffer
from ps.segments import Segment, find_segment, remove_segments
from ps.shard_memory import ShardMemory, segment_name
from tests.ps.test_host import request

BY_A_DRIVER = "127.0.0.1:1"


@pytest.fixture
def settings() -> Iterator[ServerSettings]:
    made = ServerSettings(
        run_id=str(uuid.uuid4()), secret="t", shard=0, num_servers=1, num_workers=2, control_address=BY_A_DRIVER, timeouts=Timeouts(connect_s=0.1)
    )
    yield made
    remove_segments(made.run_id)


def made_and_left(settings: ServerSettings) -> None:
    """A server that joined a member, got version 0 of its first chunk, and ended."""
    host = ShardHost(settings, RowBuffer())
    host.join(request([3], [4]))
    host.shard().store.words[0] = 0
    host.yield_place("SIGTERM")
    host.close(None)


def found_by(settings: ServerSettings) -> ShardHost:
    host = ShardHost(settings, RowBuffer())
    host.recover()
    return host


def test_a_successor_needs_nobody_to_tell_it_the_model(settings: ServerSettings) -> None:
    made_and_left(settings)
    host = found_by(settings)
    assert [tensor.name for tensor in host.describe().tensors] == ["a", "b"]
    assert host.shard().store.words.tolist() == [0, -1]
    assert host.join(request([3], [4], rank=1)).version == -1
    host.request_stop("the run has finished")
    host.close(None)
    assert find_segment(segment_name(settings)) is None


@pytest.mark.parametrize("changed", [{"run_id": "another"}, {"generation": 2}, {"shard": 1, "num_servers": 2}])
def test_the_memory_of_another_run_generation_or_shard_is_left_alone(settings: ServerSettings, changed: dict[str, object]) -> None:
    made_and_left(settings)
    other = found_by(replace(settings, **changed))  # type: ignore[arg-type]
    assert other.version == -1 and not other.waits_for()
    other.close(None)
    assert find_segment(segment_name(settings))


def test_memory_for_another_optimizer_is_replaced(settings: ServerSettings) -> None:
    made_and_left(settings)
    host = found_by(replace(settings, optimizer=OptimizerConfig(name="adam")))
    host.join(request([3], [4]))
    assert host.shard().store.words.tolist() == [-1, -1]
    host.close(None)


@pytest.mark.parametrize("at", [-1, -20, -45], ids=["length", "digest", "request"])
def test_a_request_that_is_not_whole_is_none(settings: ServerSettings, at: int) -> None:
    made_and_left(settings)
    path = find_segment(segment_name(settings))
    assert path
    segment = Segment(path, path.stat().st_size)
    segment.memory[at] ^= 255
    segment.close(remove=False)
    assert ShardMemory.find(settings, threading.Event()) is None
    assert not path.exists()


def test_a_process_killed_before_the_store_was_there_leaves_a_model_and_an_empty_store(settings: ServerSettings) -> None:
    join = request([3], [4])
    host = found_by(settings)
    host.join(join)
    host.shard().store.words[:] = 0
    host.yield_place("SIGTERM")
    host.close(None)
    memory, found = ShardMemory.find(settings, threading.Event()) or pytest.fail("no memory")
    assert found == join
    memory.store[:8] = 0  # where the mark of a whole store lies
    memory.close(remove=False)
    assert found_by(settings).shard().store.words.tolist() == [-1, -1]


def test_a_former_server_that_does_not_end_is_named(settings: ServerSettings) -> None:
    host = ShardHost(settings, RowBuffer())
    host.join(request([3]))
    with pytest.raises(ResourcesMissing, match=r"shard 0: .* belongs to a living process, a former server that does not end: kill it"):
        found_by(settings)
    host.close(None)


def test_the_memory_of_a_server_started_by_hand_ends_with_it(settings: ServerSettings) -> None:
    by_hand = replace(settings, control_address=None)
    made_and_left(by_hand)
    assert find_segment(segment_name(by_hand)) is None


def test_the_request_survives_as_it_came(settings: ServerSettings) -> None:
    join = request([3], [4])
    join.environment.CopyFrom(pb.Environment(host="h", torch="2"))
    ShardMemory.make(settings, 512, join).close(remove=False)
    memory, found = ShardMemory.find(settings, threading.Event()) or pytest.fail("no memory")
    assert found == join and len(memory.store) == 512
    memory.close(remove=True)
