"""Every format that the project reads from files, and those inside of messages. Who adds a format adds a row here."""

import gzip
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from google.protobuf.message import DecodeError
from safetensors.numpy import save
from torch import nn

from deploy.config import load
from deploy.config.source import overlay
from deploy.keys import RunKeys
from deploy.measure.reader import LedgerWriter
from deploy.rundir import RunDirectory
from protos import pserver_pb2 as pb
from ps import frame, segments
from ps.agreement import model_from
from ps.checkpoints.load import Checkpoint
from ps.checkpoints.of_shard import Restoring
from ps.codecs import CODECS, Seed
from ps.config import CheckpointConfig, Saving, ServerSettings, from_json, to_json
from ps.credentials import role_of_token, token_of
from ps.errors import PserverError
from ps.host import ShardHost
from ps.key_files import read_tls, settings_of_server, write_tls
from ps.layout import Layout, Run, TensorSpec
from ps.ledger import RowBuffer, ServerRow, to_line
from ps.roles import DRIVER, Role, member_from, role_of_names
from ps.segments import run_prefix
from ps.shard_memory import segment_name
from ps.shared import map_contributions, map_store
from ps.store import Store
from ps.weights import load_weights
from tests.fuzz.calls import JOIN
from tests.ps.test_checkpoints import written
from workers.config import TrainConfig, WorkerSettings
from workers.initial import load_initial
from workers.tasks.idx import read_idx

SECRET = "s" * 64
SETTINGS = ServerSettings(run_id=f"fuzz-{os.getpid()}", secret=SECRET, shard=0, num_servers=1, num_workers=1)


@dataclass(frozen=True)
class Format:
    """One format. `read` gets bytes and a folder of its own; it may raise errors of ours, and `refusals`, which its callers name to the user."""

    name: str
    right: Callable[[], bytes]
    """What must be read without an error."""
    read: Callable[[bytes, Path], object]
    refusals: tuple[type[Exception], ...] = ()


# -- frames ------------------------------------------------------------------------------------------------------

_LAYOUT = Layout([TensorSpec(name="w", shape=(3, 8192), dtype="float32"), TensorSpec(name="b", shape=(5,), dtype="float64")], 1)
_SHARD = _LAYOUT.shards[0]


def _frame(wire: str) -> bytes:
    values = np.random.default_rng(0).standard_normal(3 * 8192).astype(np.float32)
    header = pb.FrameHeader(kind=pb.PUSH, num_chunks=3, weight=1.0)
    if wire == frame.EXACT:
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


def _read_rows(data: bytes, folder: Path) -> None:
    ledger = LedgerWriter(folder / "comm.jsonl", 1, 1)
    try:
        ledger.add(("server", 0), data.decode(errors="replace").split("\n"))
    finally:
        ledger.close()


# -- settings, keys, configs ---------------------------------------------------------------------------------------


def _server_settings() -> bytes:
    return to_json(SETTINGS).encode()


def _worker_settings() -> bytes:
    settings = WorkerSettings(run_id="r", token="t", rank=0, num_workers=1, num_servers=1, control_address="h:1", train=TrainConfig(batch_size=1))
    return to_json(settings).encode()


def _read_by_hand(data: bytes, folder: Path) -> None:
    """As `python -m ps.server --config FILE --certs FOLDER`."""
    (folder / "server.json").write_bytes(data)
    (certificates := folder / "certs").exists() or write_tls(certificates, [(Role("server", 0), RunKeys("r", encrypted=True).tls(Role("server", 0)))])
    from_json(ServerSettings, settings_of_server(folder / "server.json", certificates))


def _without_proof() -> bytes:
    fields = json.loads(to_json(SETTINGS))
    return json.dumps({name: value for name, value in fields.items() if name not in ("secret", "tls")}).encode()


def _key_file(suffix: str) -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        certificates = folder / "certs"
        if not certificates.exists():
            write_tls(certificates, [(DRIVER, _TLS)])
        path = certificates / suffix
        kept = path.read_bytes()
        path.write_bytes(data)
        try:
            return read_tls(certificates, DRIVER)
        finally:
            path.write_bytes(kept)

    return read


_TLS = RunKeys("r", encrypted=True).tls(DRIVER)
assert _TLS is not None
_CONFIG = b"""
[task]
name = "digits"
hidden = 8
[train]
batch_size = 8
epochs = 2
[optimizer]
name = "adam"
lr = 0.1
groups = [{ pattern = "*.bias", lr_factor = 2.0 }]
[scaling]
num_workers = 2
[comm]
server_bandwidth = { 0 = "10mbit" }
"""


def _read_config(data: bytes, folder: Path) -> None:
    (folder / "config.toml").write_bytes(data)
    load(folder / "config.toml")


# -- the run directory ---------------------------------------------------------------------------------------------


def _rundir(folder: Path) -> RunDirectory:
    run = RunDirectory(folder / "run")
    if not run.path.exists():
        RunDirectory.create(folder, "run", "task").write_config("")
    return run


def _control() -> bytes:
    return json.dumps({"address": "h:1", "credentials": {"run_id": "r", "token": token_of(SECRET, Role("reader")), "tls": None}}).encode()


def _read_control(data: bytes, folder: Path) -> None:
    run = _rundir(folder)
    run.control.touch(mode=0o600)
    run.control.write_bytes(data)
    run.read_control()


_MODEL = nn.Linear(3, 2)


def _weights() -> bytes:
    return save({name: tensor.detach().numpy() for name, tensor in _MODEL.state_dict().items()}, {"pserver_version": "3"})


def _read_export(data: bytes, folder: Path) -> None:
    run = _rundir(folder)
    run.weights("last").write_bytes(data)
    run.export(folder / "out.safetensors", "last")


def _read_initial(data: bytes, folder: Path) -> None:
    (folder / "init.safetensors").write_bytes(data)
    load_initial(nn.Linear(3, 2), folder / "init.safetensors")


def _read_best(data: bytes, folder: Path) -> None:
    (folder / "best.safetensors").write_bytes(data)
    specs = [TensorSpec(name=name, shape=tuple(tensor.shape), dtype="float32") for name, tensor in _MODEL.state_dict().items()]
    load_weights(folder / "best.safetensors", Layout(specs, 1), 3)


# -- checkpoints -----------------------------------------------------------------------------------------------------

_MANIFEST, _PART = "manifest.json", "shard-1.safetensors"


def _of_checkpoint(name: str) -> bytes:
    with TemporaryDirectory() as folder:
        return written(Path(folder) / "c").with_name(name).read_bytes()


def _read_checkpoint(data: bytes, folder: Path, name: str) -> None:
    path = folder / "c" / _MANIFEST
    if not path.parent.exists():
        written(path.parent)
    path.with_name(name).write_bytes(data)
    Checkpoint(path)


def _read_signed(data: bytes, folder: Path) -> None:
    """A manifest whose digest is right, whatever stands in it."""
    body = json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    outer = {"format": 1, "blake2b": hashlib.blake2b(body, digest_size=32).hexdigest(), "manifest": json.loads(body)}
    _read_checkpoint(json.dumps(outer).encode(), folder, _MANIFEST)


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


# -- memory that a process has left behind ---------------------------------------------------------------------------


def _left_behind() -> bytes:
    host = ShardHost(SETTINGS, RowBuffer())
    host.join(JOIN)
    path = segments.SHM / segment_name(SETTINGS)
    data = path.read_bytes()
    host.close(None)
    return data


def _read_left_behind(data: bytes, _: Path) -> None:
    path = segments.SHM / segment_name(SETTINGS)
    path.touch(mode=0o600)
    path.write_bytes(data)
    host = ShardHost(SETTINGS, RowBuffer())
    try:
        host.recover()
    finally:
        host.close(None)
        path.unlink(missing_ok=True)


# -- data ------------------------------------------------------------------------------------------------------------


def _idx() -> bytes:
    header = b"".join(number.to_bytes(4, "big") for number in (0x0803, 2, 4, 4))
    return gzip.compress(header + bytes(32), mtime=0)


def _read_idx(data: bytes, folder: Path) -> None:
    (folder / "images.gz").write_bytes(data)
    read_idx(folder / "images.gz", (4, 4), 100)


FORMATS = [
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
    Format("Join request", JOIN.SerializeToString, _read_join, (DecodeError,)),
    Format("member of a stream", pb.Member(incarnation=1).SerializeToString, lambda data, _: member_from(data)),
    Format("segment of a member", lambda: _offer().SerializeToString(), _read_offer, (DecodeError,)),
    Format(
        "memory of a shard", lambda: pb.SharedStore(segment=_offer(), words_at=512, even_at=1024).SerializeToString(), _read_store, (DecodeError,)
    ),
    Format("token", lambda: token_of(SECRET, DRIVER).encode(), lambda data, _: role_of_token(SECRET, data.decode(errors="replace"))),
    Format("names in a certificate", lambda: b"pserver:member-0.0", lambda data, _: role_of_names([data, b"driver.pserver"])),
    Format("ledger rows", lambda: to_line(ServerRow(shard=0, step=1, time_s=0.0)).encode(), _read_rows),
    Format("server settings", _server_settings, lambda data, _: from_json(ServerSettings, data), (ValueError,)),
    Format("worker settings", _worker_settings, lambda data, _: from_json(WorkerSettings, data), (ValueError,)),
    Format("settings of a server by hand", _without_proof, _read_by_hand, (ValueError, OSError)),
    Format("authority", lambda: _TLS.authority.encode(), _key_file("ca.pem")),
    Format("certificate", lambda: _TLS.certificate.encode(), _key_file("driver.pem")),
    Format("key", lambda: _TLS.key.encode(), _key_file("driver.key")),
    Format("config", lambda: _CONFIG, _read_config),
    Format("--set", lambda: b"train.batch_size=[1, 2]", lambda data, _: overlay({"train": {}}, data.decode(errors="replace"))),
    Format("control file", _control, _read_control),
    Format("weights of export", _weights, _read_export),
    Format("weights of train.init", _weights, _read_initial),
    Format("best weights", _weights, _read_best),
    Format("manifest of a checkpoint", lambda: _of_checkpoint(_MANIFEST), lambda data, folder: _read_checkpoint(data, folder, _MANIFEST)),
    Format(
        "what a manifest says",
        lambda: json.dumps(json.loads(_of_checkpoint(_MANIFEST))["manifest"]).encode(),
        _read_signed,
        (ValueError, RecursionError),  # of the test's own reader
    ),
    Format("part of a checkpoint", lambda: _of_checkpoint(_PART), lambda data, folder: _read_checkpoint(data, folder, _PART)),
    Format("request to restore", _restore_request, _read_restore),
    Format("state of a checkpoint", _state_frame, _read_state),
    Format("memory of a dead server", _left_behind, _read_left_behind),
    Format("data set", _idx, _read_idx),
]


def try_bytes(made: Format, data: bytes, folder: Path) -> None:
    """Anything but an error of ours, or one that the reader's caller turns into a line, is raised."""
    with suppress(PserverError, *made.refusals):
        made.read(data, folder)
