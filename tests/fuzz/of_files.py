"""Formats of files, and of what users and processes write. Who adds one adds a row here."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.numpy import save
from torch import nn

from deploy.config import load
from deploy.config.source import overlay
from deploy.keys import RunKeys
from deploy.measure.reader import LedgerWriter
from deploy.rundir import RunDirectory
from ps import segments
from ps.checkpoints.load import Checkpoint
from ps.config import ServerSettings, from_json, to_json
from ps.credentials import token_of
from ps.host import ShardHost
from ps.key_files import read_tls, settings_of_server, write_tls
from ps.layout import Layout, TensorSpec
from ps.ledger import RowBuffer, ServerRow, to_line
from ps.roles import DRIVER, Role
from ps.shard_memory import segment_name
from ps.weights import load_weights
from tests.fuzz.calls import JOIN
from tests.fuzz.format import SECRET, SETTINGS, Format
from tests.ps.written import written
from workers.config import TrainConfig, WorkerSettings
from workers.initial import load_initial
from workers.tasks.idx import read_idx

# -- rows ------------------------------------------------------------------------------------------------------------


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


OF_FILES = [
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
    Format("memory of a dead server", _left_behind, _read_left_behind),
    Format("data set", _idx, _read_idx),
]
