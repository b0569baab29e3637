"""What a server does with a Join before there is a shard."""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from protos import pserver_pb2 as pb
from ps.config import ServerSettings
from ps.errors import ModelMismatch, NotInitialised, PserverError, ResourcesMissing
from ps.host import ShardHost
from ps.ledger import RowBuffer
from ps.segments import segment_folder
from ps.shard_memory import segment_name


@pytest.fixture
def settings() -> ServerSettings:
    return ServerSettings(run_id=str(uuid.uuid4()), secret="t", shard=0, num_servers=1, num_workers=2)


@pytest.fixture
def host(settings: ServerSettings) -> Iterator[ShardHost]:
    made = ShardHost(settings, RowBuffer())
    yield made
    made.close(None)


def request(*shapes: list[int], num_digests: int | None = None, rank: int = 0, names: str = "abc") -> pb.JoinRequest:
    tensors = [pb.Tensor(name=name, shape=shape, dtype="float32", rule=pb.RULE_OPTIMIZER) for name, shape in zip(names, shapes, strict=False)]
    return pb.JoinRequest(
        member=pb.Member(rank=rank, incarnation=1, generation=1),
        tensors=tensors,
        chunk_digests=[7] * (len(shapes) if num_digests is None else num_digests),
        steps_per_epoch=1,
        total_steps=1,
    )


def left_behind(settings: ServerSettings) -> Path:
    return segment_folder(1) / segment_name(settings)


def test_the_first_join_makes_the_shard_and_the_end_removes_its_memory(host: ShardHost, settings: ServerSettings) -> None:
    with pytest.raises(NotInitialised):
        host.describe()
    reply = host.join(request([3], [4]))
    assert (reply.version, reply.shard, reply.num_servers, reply.num_chunks) == (-1, 0, 1, 2)
    assert [t.name for t in host.describe().tensors] == ["a", "b"]
    assert left_behind(settings).exists()
    host.close(None)
    assert not left_behind(settings).exists()


@pytest.mark.parametrize(
    ("join", "message"),
    [
        (request([1 << 60]), "brings 140737488355328 chunks, at most 2097152 are served"),
        (request([1 << 31, 1 << 31]), "brings 562949953421312 chunks"),
        (request([3], num_digests=2), "brings 2 digests of 1 chunks"),
        (request([3], [3], names="aa"), "tensor names are not unique: a"),
    ],
)
def test_a_model_that_cannot_be_is_refused_before_memory_is_taken(
    host: ShardHost, settings: ServerSettings, join: pb.JoinRequest, message: str
) -> None:
    with pytest.raises(ModelMismatch, match=message):
        host.join(join)
    assert not left_behind(settings).exists()


def test_a_model_without_room_is_refused_before_its_layout_is_made(host: ShardHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=8 * 8192 - 1))
    monkeypatch.setattr("ps.host.Layout", None)
    with pytest.raises(ModelMismatch, match="shard 0 needs 65536 bytes, its host has 65535: use more servers"):
        host.join(request([8192]))


def test_a_later_join_with_another_number_of_digests_is_refused(host: ShardHost) -> None:
    host.join(request([3]))
    with pytest.raises(ModelMismatch, match="brings 2 digests of 1 chunks"):
        host.join(request([3], num_digests=2, rank=1))


def test_memory_that_another_server_holds_is_named(host: ShardHost, settings: ServerSettings) -> None:
    host.join(request([3]))
    twin = ShardHost(settings, RowBuffer())
    with pytest.raises(ResourcesMissing, match="shard 0 cannot have .* bytes in .*: .*belongs to a living process"):
        twin.join(request([3]))
    twin.close(None)
    assert left_behind(settings).exists()
    other = ShardHost(replace(settings, generation=2), RowBuffer())
    with pytest.raises(PserverError):  # of generation 1
        other.join(request([3]))
    other.close(None)


def test_a_model_of_other_groups_is_refused_and_the_next_one_is_served(host: ShardHost, settings: ServerSettings) -> None:
    bad = request([3])
    bad.tensors[0].group = 1
    with pytest.raises(ModelMismatch, match="is in parameter group 1, the server's optimizer has 0"):
        host.join(bad)
    assert not left_behind(settings).exists()
    assert host.join(request([3])).num_chunks == 1
