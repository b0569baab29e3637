"""`pserver certs` and a server started by hand with what it makes."""

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.cli.main import main
from deploy.keys import write_certificates
from protos import pserver_pb2 as pb
from ps import certificates
from ps.config import ServerSettings, Timeouts, to_json
from ps.credentials import Credentials
from ps.errors import ConfigError, NotInitialised
from ps.key_files import read_tls, settings_of_server
from ps.roles import DRIVER, READER, Role
from ps.server import main as serve_by_hand
from ps.transport.rpc import Peer
from tests.ports import free_port

SETTINGS: dict[str, Any] = {"run_id": "by-hand", "shard": 1, "num_servers": 2, "num_workers": 1}
HAS_SECRET = ServerSettings(run_id="by-hand", secret="s" * 64, shard=0, num_servers=1, num_workers=1)


def test_the_command_makes_a_certificate_per_role_that_only_its_owner_can_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "certs"
    with pytest.raises(SystemExit) as ended:
        main(["certs", str(folder), "--workers", "1", "--servers", "2"])
    assert ended.value.code == 0
    roles = ["driver", "member-0.0", "reader", "server-0", "server-1"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(["ca.pem", *(f"{r}.{end}" for r in roles for end in ("pem", "key"))])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")} == {0o600}
    assert "server-1, member-0.0" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["certs", str(folder)])
    assert ended.value.code == 2
    assert "certificates of two authorities do not fit together" in capsys.readouterr().err


def test_a_server_by_hand_serves_those_who_have_certificates_of_its_folder(tmp_path: Path) -> None:
    folder, config = tmp_path / "certs", tmp_path / "server.json"
    write_certificates(folder, num_workers=1, num_servers=2)
    port = free_port()
    config.write_text(json.dumps({**SETTINGS, "host": "127.0.0.1", "control_port": port}))
    command = [sys.executable, "-m", "ps.server", "--config", str(config), "--certs", str(folder)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        assert any("listens on" in line for line in process.stderr)
        ask = peer_at(port, folder, READER)
        with pytest.raises(NotInitialised):
            ask("Describe", pb.DescribeRequest(), pb.DescribeReply)
        peer_at(port, folder, DRIVER)("Stop", pb.StopRequest(reason="done"), pb.StopReply)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def peer_at(port: int, folder: Path, role: Role) -> Callable[..., Any]:
    credentials = Credentials(run_id="by-hand", tls=read_tls(folder, role))
    peer = Peer(Role("server", 1), f"127.0.0.1:{port}", credentials, Timeouts())

    def ask(*call: Any) -> Any:
        try:
            return peer.call("Shard", *call)
        finally:
            peer.close()

    return ask


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_secrets_that_others_can_read_are_refused(mode: int, tmp_path: Path) -> None:
    config, folder = tmp_path / "server.json", tmp_path / "certs"
    config.write_text(to_json(HAS_SECRET))
    config.chmod(mode)
    with pytest.raises(ConfigError, match=f"others on this host can read it: chmod 600 {config}"):
        settings_of_server(config, None)
    write_certificates(folder, num_workers=1, num_servers=1)
    (folder / "server-0.key").chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600 .*server-0.key"):
        read_tls(folder, Role("server", 0))


@pytest.mark.parametrize("text", ["[]", "{}", '{"shard": "0"}'])
def test_settings_without_a_shard_find_no_certificate(text: str, tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(text)
    with pytest.raises(ConfigError, match="names no shard"):
        settings_of_server(tmp_path / "server.json", tmp_path)


def test_a_missing_certificate_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_certificates(tmp_path / "certs", num_workers=1, num_servers=1)
    (tmp_path / "server.json").write_text(json.dumps(SETTINGS))
    monkeypatch.setattr("sys.argv", ["ps.server", "--config", str(tmp_path / "server.json"), "--certs", str(tmp_path / "certs")])
    assert serve_by_hand() == 2
    assert "server-1.pem" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("ca.pem", "server-1.pem", "has no certificate of server-0 that can be used"),
        ("server-0.pem", "server-1.pem", "the key is another certificate's"),
        ("server-0.key", "server-1.key", "the key is another certificate's"),
        ("server-0.pem", None, "has no certificate of server-0 that can be used"),
        ("server-0.key", None, "has no certificate of server-0 that can be used"),
        ("both", "server-1", "the certificate is another role's"),
    ],
)
def test_certificates_that_do_not_fit_are_named_before_a_port_is_opened(file: str, text: str | None, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    write_certificates(folder, num_workers=1, num_servers=2)
    assert read_tls(folder, Role("server", 0))
    if file == "both":
        for end in (".pem", ".key"):
            (folder / f"server-0{end}").write_bytes((folder / f"{text}{end}").read_bytes())
    else:
        (folder / file).write_bytes((folder / text).read_bytes() if text else b"\x80 no PEM")
    with pytest.raises(ConfigError, match=message):
        read_tls(folder, Role("server", 0))


def test_an_expired_certificate_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "VALID_DAYS", -0.5)
    write_certificates(tmp_path / "certs", num_workers=1, num_servers=1)
    with pytest.raises(ConfigError, match=r"a certificate is valid from \S+ to \S+ only\): make the folder anew"):
        read_tls(tmp_path / "certs", Role("server", 0))
