"""Whatever is wrong is said in one line that names the thing, with the right exit code, and nothing stays behind."""

import json
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.cli.verbs import exit_code
from deploy.config import RunConfig, ScalingConfig
from deploy.launch.ray import RayLauncher
from deploy.trainer import Trainer
from ps.config import SecurityConfig, ServerSettings, Timeouts, to_json
from ps.control import Control
from ps.control_client import ControlClient
from ps.control_service import ControlServicer
from ps.credentials import Credentials, token_of
from ps.errors import ConfigError, ForeignRun, ResourcesMissing, Unauthenticated, Unreachable
from ps.roles import DRIVER, Role
from ps.security import RunGuard
from ps.server import environment
from ps.server import main as serve_by_hand
from ps.transport.rpc import Peer, bind, new_server
from tests.deploy.broken import BROKEN
from tests.deploy.forked import train
from tests.deploy.leftovers import nothing_left, segments_of
from tests.ports import free_port, free_ports
from workers.config import TrainConfig, WorkerSettings
from workers.tasks.digits import Digits
from workers.worker import work

SERVER = ServerSettings(run_id="by-hand", secret="secret", shard=0, num_servers=1, num_workers=1)
OPEN = SecurityConfig(allow_plaintext=True)

FAILING = [
    pytest.param("model", {}, r"rank \d: RuntimeError: there is no such layer", 1, id="model() raises"),
    pytest.param("train_data", {}, r"rank \d: FileNotFoundError: .*'/data/missing'", 1, id="train_data() raises"),
    pytest.param("loss", {}, r"rank \d: ValueError: labels are missing", 1, id="loss() raises"),
    pytest.param("empty", {}, r"the task's train_data\(\) is empty", 2, id="no data"),
    pytest.param("nan", {}, r"loss is nan at step 7 on rank 1: lower optimizer.lr, .*skip", 1, id="a loss that is NaN at step 7"),
    pytest.param(
        "shapes",
        {},
        r"rank \d against rank \d: tensor 0.weight is float32\[\d, 8\].*: every rank must build the same model",
        1,
        id="other shapes on a rank",
    ),
]


@pytest.mark.parametrize(("how", "options", "message", "code"), FAILING)
def test_a_task_that_goes_wrong_ends_the_run_by_name(how: str, options: dict[str, Any], message: str, code: int, tmp_path: Path) -> None:
    with nothing_left():
        result = train(tmp_path, BROKEN, {"how": how, "mark": str(tmp_path / "mark")}, batch_size=8, epochs=1, num_servers=1, **options)
    assert result.error is not None
    assert_one_line(result.error, message)
    assert exit_code(result.error) == code
    assert not segments_of(result.path)
    summary = json.loads((result.path / "summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", str(result.error))


def test_the_books_have_the_steps_before_the_one_that_fails(tmp_path: Path) -> None:
    slow = Timeouts(heartbeat_s=60.0)  # no heartbeat comes by itself
    result = train(tmp_path, BROKEN, {"how": "loss of step 5"}, batch_size=8, epochs=1, num_workers=2, num_servers=1, timeouts=slow)
    assert str(result.error) == "rank 1: ValueError: labels are missing"
    rows = [json.loads(line)["rows"] for line in (result.path / "comm.jsonl").read_text().splitlines()]
    assert [[row["kind"] for row in of] for of in rows[:4]] == [["worker", "worker", "server"]] * 4  # what the fifth took, rank 1 had yet to see
    assert json.loads((result.path / "summary.json").read_text())["steps"] in (4, 5), (
        "rank 1's next forward may fail before servers have applied the fifth"
    )


@pytest.mark.parametrize("count", [1, 2], ids=["none for the servers", "one for a server"])
def test_a_range_of_too_few_ports_is_a_mistake_in_the_config(count: int, tmp_path: Path) -> None:
    ports = free_ports(count)
    result = train(tmp_path, BROKEN, {"how": "nothing", "mark": ""}, batch_size=8, num_servers=1, port_range=f"{ports[0]}-{ports[-1]}")
    assert result.error is not None
    assert_one_line(result.error, rf"server 0: no port of comm.port_range = {ports[0]}-{ports[-1]} is free on 127.0.0.1: widen it")
    assert exit_code(result.error) == 2


def test_a_run_without_validation_data_trains(tmp_path: Path) -> None:
    result = train(tmp_path, BROKEN, {"how": "no validation"}, batch_size=64, epochs=1)
    assert result.error is None
    assert set(result.metrics) == {"train_loss"}


def test_a_class_in_place_of_a_task_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Trainer\(Digits\): give a task, not its class: Digits\(...\)"):
        Trainer(Digits, train_config=TrainConfig(batch_size=8))  # type: ignore[arg-type]


@pytest.mark.parametrize("launcher", ["process", "ray"])
def test_gpus_that_are_not_there_are_refused_at_once(launcher: Any, tmp_path: Path, ray_cluster: str) -> None:
    made = Trainer(
        Digits(),
        train_config=TrainConfig(batch_size=8),
        scaling_config=ScalingConfig(use_gpu=True),
        run_config=RunConfig(storage_path=str(tmp_path)),
        launcher=launcher,
        quiet=True,
    )
    error = made.fit().error
    assert isinstance(error, ResourcesMissing)
    assert_one_line(error, r"GPU: 2 asked, 0 .*: .*scaling.use_gpu = false")


def test_a_ray_cluster_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(Unreachable, match=f"no Ray cluster answers at {address}: start one there"):
        RayLauncher(lambda key: tmp_path / str(key), num_workers=1, num_servers=1, address=address).check()


BY_HAND = [
    pytest.param('{"shard": "first"}', "shard", id="a wrong type"),
    pytest.param("shard = 1", "JSON", id="no JSON"),
    pytest.param("", "JSON", id="nothing"),
    pytest.param(
        to_json(replace(SERVER, host="0.0.0.0")),
        "refusing to serve without encryption on 0.0.0.0: give it a certificate (pserver certs)",
        id="an open port",
    ),
    pytest.param(to_json(replace(SERVER, host="203.0.113.9", security=OPEN)), "cannot listen on 203.0.113.9:0", id="an address of another host"),
]


@pytest.mark.parametrize(("text", "message"), BY_HAND)
def test_a_server_by_hand_refuses_what_it_cannot_serve(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "server.json").write_text(text)
    assert by_hand(tmp_path / "server.json", monkeypatch) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert message in said


def test_a_server_by_hand_refuses_a_port_in_use_and_a_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        (tmp_path / "server.json").write_text(to_json(replace(SERVER, control_port=port)))
        assert by_hand(tmp_path / "server.json", monkeypatch) == 2
    assert f"error: cannot listen on 127.0.0.1:{port}: the port is in use" in capsys.readouterr().err
    assert by_hand(tmp_path / "missing.json", monkeypatch) == 2
    assert "missing.json" in capsys.readouterr().err


def test_a_server_whose_driver_is_not_there_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    (tmp_path / "server.json").write_text(to_json(replace(SERVER, control_address=address)))
    assert by_hand(tmp_path / "server.json", monkeypatch) == 1
    assert f"error: the driver at {address} does not answer" in capsys.readouterr().err.splitlines()[-1]


def test_a_worker_whose_driver_is_not_there_ends_at_once(caplog: pytest.LogCaptureFixture) -> None:
    address = f"127.0.0.1:{free_port()}"
    settings = WorkerSettings(
        run_id="none", token="none", rank=0, num_workers=1, num_servers=1, control_address=address, task="digits", train=TrainConfig(batch_size=8)
    )
    assert work(to_json(settings)) == 1
    assert f"the driver at {address} does not answer" in caplog.text


@pytest.mark.parametrize(("run_id", "secret", "error"), [("mine", "other", Unauthenticated), ("other", "secret", ForeignRun)])
def test_a_process_of_another_run_is_refused(run_id: str, secret: str, error: type[Exception]) -> None:
    service = ControlServicer(Control(num_workers=1, num_servers=1), 1, on_epoch=ignore, on_rows=ignore, on_step=ignore)
    server = new_server("control", RunGuard("mine", "secret"), num_roles=1)
    server.add_generic_rpc_handlers((service.handlers(),))
    address = f"127.0.0.1:{bind(server, '127.0.0.1', 0, None)}"
    server.start()
    mine = Credentials(run_id=run_id, token=token_of(secret, Role("member", 0)))
    client = ControlClient(Peer(DRIVER, address, mine, Timeouts()), "worker", 0)
    try:
        with pytest.raises(error, match="another run|belongs to run 'other', this is 'mine'"):
            client.register(environment(1))
    finally:
        client.close()
        server.stop(0).wait()


def ignore(*_: Any) -> None:
    pass


def by_hand(settings: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    if settings.exists():
        settings.chmod(0o600)
    monkeypatch.setattr("sys.argv", ["ps.server", "--config", str(settings)])
    return serve_by_hand()


def assert_one_line(error: Exception, message: str) -> None:
    assert "\n" not in str(error)
    assert re.search(message, str(error)), str(error)
