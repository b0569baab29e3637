"""Formats inside of messages: frames, offers of memory, proofs, states. Who adds one adds a row here."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from google.protobuf.message import DecodeError

from protos import pserver_pb2 as pb
from ps import frame
from ps.agreement import model_from
from ps.checkpoints.of_shard import Restoring
from ps.codecs import CODECS, Seed
from ps.comm import EXACT
from ps.config import CheckpointConfig, Saving
from ps.credentials import role_of_token, token_of
from ps.host import ShardHost
from ps.layout import Layout, Run, TensorSpec
from ps.ledger import RowBuffer
from ps.roles import DRIVER, member_from, role_of_names
from ps.segments import run_prefix
from ps.shared import map_contributions, map_store
from ps.stages.messages import Assembly, Message, frames_of
from ps.store import Store
from tests.fuzz.calls import JOIN
from tests.fuzz.format import SECRET, SETTINGS, Format

# -- frames ------------------------------------------------------------------------------------------------------

_LAYOUT = Layout([TensorSpec(name="w", shape=(3, 8192), dtype="float32"), TensorSpec(name="b", shape=(5,), dtype="float64")], 1)
_SHARD = _LAYOUT.shards[0]


def _frame(wire: str) -> bytes:
    values = np.random.default_rng(0).standard_normal(3 * 8192).astype(np.float32)
    header = pb.FrameHeader(kind=pb.PUSH, num_chunks=3, weight=1.0)
    if wire == EXACT:
        return frame.encode_run(header, values.view(np.uint8), _SHARD, Run(0, 3), flat=False)
    payload = CODECS[wire].encode(values, frame.chunks_of(_SHARD, Run(0, 3)), Seed())
    return frame.encode_coded(header, payload, _SHARD, Run(0, 3), wire)


def _read_frame(data: bytes, wire: str) -> None:
    header, payload = frame.decode(data)
    run = frame.checked_run(header, payload, _SHARD, with_payload=header.kind == pb.PUSH, wire=wire, may_share=True)
    if header.kind == pb.PUSH and not header.shared:
        assert len(frame.exact_payload(header, payload, _SHARD, run)) == _SHARD.payload_bytes(run)


def _read_receipts(data: bytes, _: Path) -> None:
    receipts, at = frame.receipts_of(data)
    assert at <= len(data) and len(receipts) <= len(data) // 2


def _receipts() -> bytes:
    headers = [pb.FrameHeader(kind=pb.RECEIPT, sequence=i, verdict=pb.ACCEPTED, clock_s=1.0).SerializeToString() for i in range(3)]
    return frame.with_receipts(headers, frame.encode(pb.FrameHeader(kind=pb.READY)))


def _between_stages() -> bytes:
    (data,) = frames_of(Message(pb.ACTIVATIONS, 3, 1, [torch.ones(3, 5), None, torch.arange(4)]))
    return data


def _read_payload(data: bytes, wire: str) -> None:
    """The codec alone: digests of a frame would keep most of it from being tried."""
    payload = np.frombuffer(data, np.uint8)
    assert len(CODECS[wire].decode(payload, "float32", frame.chunks_of(_SHARD, Run(0, 3)))) == 3 * 8192


# -- messages ----------------------------------------------------------------------------------------------------


def _read_join(data: bytes, _: Path) -> None:
    model = model_from(pb.JoinRequest.FromString(data))
    if sum(spec.num_bytes for spec in model.specs) < 1 << 28:  # a server looks at its memory here
        Layout(model.specs, 3)


def _read_offer(data: bytes, _: Path) -> None:
    map_contributions(SETTINGS.run_id, pb.Member(), pb.SharedMemory.FromString(data), 512)


def _read_store(data: bytes, _: Path) -> None:
    view = map_store(SETTINGS.run_id, pb.SharedStore.FromString(data), _SHARD)
    assert view is None


def _offer() -> pb.SharedMemory:
    return pb.SharedMemory(name=f"{run_prefix(SETTINGS.run_id)}g0-r0.0-i0-0", size_bytes=4608, nonce=bytes(32))


# -- checkpoints -----------------------------------------------------------------------------------------------------

_SAVING = Saving(config=CheckpointConfig(), file=None, restored=4)


def _restore_request() -> bytes:
    return pb.RestoreRequest(model=JOIN, version=4, decided=-1, rate_factor=1.0).SerializeToString()


def _read_restore(data: bytes, _: Path) -> None:
    host = ShardHost(replace(SETTINGS, saving=_SAVING), RowBuffer())
    try:
        host.begin_restore(np.frombuffer(data, np.uint8))
    finally:
        host.close(None)


def _state_frame() -> bytes:
    values = np.arange(3 * 8192, dtype=np.float32)
    return frame.encode_run(pb.FrameHeader(kind=pb.STATE, num_chunks=3, updates=[1, 2, 3]), values.view(np.uint8), _SHARD, Run(0, 3), flat=False)


def _read_state(data: bytes, _: Path) -> None:
    store = Store(np.zeros(Store.size_bytes(_SHARD, slots=1, num_norms=0), np.uint8), _SHARD, slots=1, num_norms=0, key=bytes(32))
    Restoring(store, 4, -1, 1.0).take(*frame.decode(data))


OF_MESSAGES = [
    *(Format(f"frame {wire}", lambda wire=wire: _frame(wire), lambda data, _, wire=wire: _read_frame(data, wire)) for wire in CODECS),
    *(
        Format(
            f"payload {wire}",
            lambda wire=wire: frame.decode(_frame(wire))[1].tobytes(),
            lambda data, _, wire=wire: _read_payload(data, wire),
        )
        for wire in CODECS
    ),
    Format("receipts of a message", _receipts, _read_receipts),
    Format("message between stages", _between_stages, lambda data, _: Assembly().take(data)),
    Format("Join request", JOIN.SerializeToString, _read_join, (DecodeError,)),
    Format("member of a stream", pb.Member(incarnation=1).SerializeToString, lambda data, _: member_from(data)),
    Format("segment of a member", lambda: _offer().SerializeToString(), _read_offer, (DecodeError,)),
    Format(
        "memory of a shard", lambda: pb.SharedStore(segment=_offer(), words_at=512, even_at=1024).SerializeToString(), _read_store, (DecodeError,)
    ),
    Format("token", lambda: token_of(SECRET, DRIVER).encode(), lambda data, _: role_of_token(SECRET, data.decode(errors="replace"))),
    Format("names in a certificate", lambda: b"pserver:member-0.0", lambda data, _: role_of_names([data, b"driver.pserver"])),
    Format("request to restore", _restore_request, _read_restore),
    Format("state of a checkpoint", _state_frame, _read_state),
]
