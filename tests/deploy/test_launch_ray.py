import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from deploy.launch.base import ProcessKey
from deploy.launch.fit import check_fit
from deploy.launch.local_ray import close_token
from deploy.launch.ray import RayLauncher
from deploy.launch.ray_errors import require_listener
from ps.errors import ConfigError, ResourcesMissing, Unreachable
from tests.deploy.conftest import Notes, gone
from tests.deploy.waiting import ending_of
from tests.ports import free_port

WORKER = ProcessKey("worker", 0)
SERVER = ProcessKey("server", 0)
STAND_IN = {"server": "tests.deploy.stand_in:serve", "worker": "tests.deploy.stand_in:serve"}


def make(tmp_path: Path, **options: Any) -> RayLauncher:
    defaults: dict[str, Any] = {"num_workers": 1, "num_servers": 1, "targets": STAND_IN}
    return RayLauncher(lambda key: tmp_path / f"{key.role}-{key.index}.log", **(defaults | options))


@pytest.fixture
def launcher(tmp_path: Path, ray_cluster: str) -> Iterator[RayLauncher]:
    with make(tmp_path) as launcher:
        launcher.check()
        yield launcher


def test_a_normal_end_is_code_0_and_output_goes_to_the_log(launcher: RayLauncher, tmp_path: Path) -> None:
    launcher.start(WORKER, json.dumps({"end": "return"}))
    launcher.start(SERVER, json.dumps({"end": "return", "code": 3}))
    assert ending_of(launcher, WORKER).code == 0
    assert ending_of(launcher, SERVER).reason == "exited with code 3"
    log = (tmp_path / "server-0.log").read_text()
    assert "last words" in log
    assert "on stderr" in log


def test_an_exception_and_an_exit_end_the_process(launcher: RayLauncher) -> None:
    launcher.start(WORKER, json.dumps({"end": "raise"}))
    launcher.start(SERVER, json.dumps({"end": "exit", "code": 4}))
    raised = ending_of(launcher, WORKER)
    assert (raised.code, raised.reason) == (1, "raised ValueError: no such thing")
    assert ending_of(launcher, SERVER).code == 4


def test_a_kill_is_seen_within_five_seconds(launcher: RayLauncher, notes: Notes) -> None:
    launcher.start(WORKER, json.dumps({"end": "sleep", "say_to": notes.port}))
    os.kill(notes.next()["pid"], signal.SIGKILL)
    ending = ending_of(launcher, WORKER, timeout_s=5)
    assert (ending.code, ending.reason) == (None, "was killed or has crashed")
    assert ending.last_words


def test_stop_leaves_no_process_but_a_ray_it_has_not_started(launcher: RayLauncher, notes: Notes) -> None:
    launcher.start(WORKER, json.dumps({"end": "sleep", "say_to": notes.port}))
    launcher.start(SERVER, json.dumps({"end": "sleep", "say_to": notes.port}))
    pids = [notes.next()["pid"], notes.next()["pid"]]
    launcher.stop(0.1)
    launcher.stop(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert set(launcher.ended()) == {WORKER, SERVER}
    assert ray.is_initialized()


def test_a_stopped_process_is_killed_too(launcher: RayLauncher, notes: Notes) -> None:
    launcher.start(WORKER, json.dumps({"end": "sleep", "say_to": notes.port}))
    pid = notes.next()["pid"]
    os.kill(pid, signal.SIGSTOP)
    launcher.stop(0.0)
    assert gone(pid, timeout_s=0.1)


def test_an_interrupt_while_actors_are_killed_breaks_nothing_off(launcher: RayLauncher, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (WORKER, SERVER):
        launcher.start(key, json.dumps({"end": "sleep", "say_to": notes.port}))
    pids = [notes.next()["pid"], notes.next()["pid"]]
    kill, killed = ray.kill, []

    def then_interrupt(actor: Any) -> None:
        kill(actor)
        killed.append(actor)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ray, "kill", then_interrupt)
    launcher.stop(0.0)
    assert len(killed) == 2
    assert all(gone(pid, timeout_s=0.1) for pid in pids)


def test_on_one_node_everything_stays_on_loopback(launcher: RayLauncher, notes: Notes) -> None:
    assert (launcher.control_host(), launcher.bind_host(SERVER)) == ("127.0.0.1", "127.0.0.1")


def test_an_open_host_is_decided_where_the_server_starts(launcher: RayLauncher, notes: Notes) -> None:
    launcher.start(SERVER, json.dumps({"end": "return", "say_to": notes.port, "host": ""}))
    assert notes.next()["host"] == ray.util.get_node_ip_address()


def test_gpus_that_are_not_there_are_refused_at_once(tmp_path: Path, ray_cluster: str) -> None:
    with make(tmp_path, num_workers=2000, use_gpu=True) as launcher, pytest.raises(ResourcesMissing, match=r"^GPU: 2000 asked, \d+ there"):
        launcher.check()


def test_a_busy_cluster_is_refused_after_the_timeout(tmp_path: Path, ray_cluster: str) -> None:
    with make(tmp_path, num_workers=6, num_servers=1) as first, make(tmp_path, num_workers=6, num_servers=1, timeout_s=0.1) as second:
        first.check()
        with pytest.raises(ResourcesMissing, match="busy"):
            second.check()


def test_a_ray_client_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ray job submit"):
        make(tmp_path, address="ray://head:10001")


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:six"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        require_listener(address, 1.0)


def test_a_cluster_that_does_not_answer_is_named_at_once() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unreachable, match=rf"no Ray cluster answers at {address}: "):
        require_listener(address, 1.0)


FOUR = {"CPU": 4.0}


@pytest.mark.parametrize(
    ("bundles", "nodes", "strategy", "message"),
    [
        ([{"CPU": 1}] * 8, [FOUR, FOUR], "PACK", None),
        ([{"CPU": 1}] * 9, [FOUR, FOUR], "PACK", "CPU: 9 asked, 8 there in the Ray cluster"),
        ([{"CPU": 5}], [FOUR, FOUR], "SPREAD", "CPU: 5 asked, 4 there on its largest node"),
        ([{"CPU": 1}] * 5, [FOUR, FOUR], "STRICT_PACK", "CPU: 5 asked, 4 there on its largest node"),
        ([{"CPU": 1}] * 3, [FOUR, FOUR], "STRICT_SPREAD", "nodes: 3 asked, 2 there"),
        ([{"CPU": 1, "GPU": 1}] * 2, [FOUR], "PACK", "GPU: 2 asked, 0 there in the Ray cluster.*use_gpu = false"),
        ([{"CPU": 1, "tpu": 1}], [FOUR], "PACK", "tpu: 1 asked, 0 there.*resources_per_worker"),
    ],
)
def test_what_never_fits_is_named(bundles: list[dict[str, float]], nodes: list[dict[str, float]], strategy: str, message: str | None) -> None:
    if message is None:
        check_fit(bundles, nodes, strategy)
    else:
        with pytest.raises(ResourcesMissing, match=message):
            check_fit(bundles, nodes, strategy)


STRANGER = """
import sys, ray
try:
    ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)
except Exception as error:
    print("refused", type(error).__name__)
"""


def test_a_ray_of_ones_own_is_reached_from_this_host_with_its_token_only(ray_cluster: str, ray_session: Path, tmp_path: Path) -> None:
    rays = [p for p in psutil.process_iter(["cmdline"]) if ray_session.name in " ".join(p.info["cmdline"] or [])]
    listening = {c.laddr for p in rays for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert len(rays) > 3 and len(listening) >= 3
    assert {address.removeprefix("::ffff:") for address, _ in listening} == {"127.0.0.1"}
    assert 8265 not in {port for _, port in listening}, "no dashboard"
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    outside |= {"HOME": str(tmp_path), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # or Ray would seek it at the outer address
    stranger = subprocess.run([sys.executable, "-c", STRANGER, ray_cluster], env=outside, capture_output=True, text=True, timeout=50, check=False)
    assert stranger.stdout.startswith("refused"), stranger.stdout + stranger.stderr


def test_the_token_of_rays_clusters_is_for_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    close_token()
    (tmp_path / ".ray").mkdir()
    (token := tmp_path / ".ray" / "auth_token").write_text("t")
    token.chmod(0o644)
    close_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
