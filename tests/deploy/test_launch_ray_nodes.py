"""Ray on several nodes: how processes are placed, how code gets there, and a real cluster on virtual hosts."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.launch.base import ProcessKey
from deploy.launch.code import MAX_FILE_BYTES, code_folder, relative_name, stage
from deploy.launch.fit import check_fit, placement
from deploy.launch.ray import RayLauncher
from deploy.virtual.cluster import VirtualCluster
from deploy.virtual.plan import HostSpec
from deploy.virtual.ray_nodes import RAY_FOLDER, RayNodes
from deploy.virtual.remove import NAMESPACES
from ps.errors import ConfigError, ResourcesMissing

WORKERS = [ProcessKey("worker", 0), ProcessKey("worker", 1)]
SERVERS = [ProcessKey("server", 0)]
GPUS = {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("strategy", "groups"),
    [
        ("PACK", [(SERVERS, "SPREAD"), (WORKERS, "PACK")]),
        ("SPREAD", [(SERVERS, "SPREAD"), (WORKERS, "SPREAD")]),
        ("STRICT_SPREAD", [(WORKERS, "STRICT_SPREAD"), (SERVERS, "SPREAD")]),  # what is strict chooses first
        ("STRICT_PACK", [([*WORKERS, *SERVERS], "STRICT_PACK")]),
    ],
)
def test_servers_are_spread_and_workers_placed_as_asked(strategy: str, groups: list[Any]) -> None:
    assert placement([*WORKERS, *SERVERS], strategy) == groups


@pytest.mark.parametrize(
    ("bundles", "nodes", "strategy", "message"),
    [
        ([{"CPU": 1, "GPU": 0.5}] * 4, [GPUS], "PACK", None),
        ([{"CPU": 1, "GPU": 1 / 3}] * 6, [GPUS], "PACK", None),
        ([{"CPU": 1, "GPU": 0.6}] * 3, [GPUS], "PACK", "places for 2 of 3 processes that need 1 CPU, 0.6 GPU each"),  # one per GPU
        ([{"CPU": 1, "GPU": 0.5}] * 5, [GPUS], "PACK", "GPU: 2.5 asked, 2 there"),
        ([{"CPU": 1, "GPU": 1.5}], [GPUS], "PACK", "GPU: 1.5 asked for each process: a fraction below 1, or a whole number"),
        ([{"CPU": 3}] * 3, [{"CPU": 4}, {"CPU": 4}, {"CPU": 2}], "PACK", "places for 2 of 3"),  # 9 of 10, but in pieces
        ([{"CPU": 1}] * 2, [{"CPU": 4}, {"CPU": 0}], "STRICT_SPREAD", "places for 1 of 2"),
        ([{"CPU": 2, "GPU": 1}] * 2, [{"CPU": 2, "GPU": 2}, {"CPU": 2}], "STRICT_PACK", "CPU: 4 asked, 2 there on its largest node"),
    ],
)
def test_what_never_fits_because_it_cannot_be_split_is_refused(
    bundles: list[dict[str, float]], nodes: list[dict[str, float]], strategy: str, message: str | None
) -> None:
    if message is None:
        check_fit(bundles, nodes, strategy)
    else:
        with pytest.raises(ResourcesMissing, match=message):
            check_fit(bundles, nodes, strategy)


@pytest.mark.parametrize("address", ["ray://head:10001", "http://127.0.0.1:8265"])
def test_addresses_of_rays_other_doors_are_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ray job submit"):
        RayLauncher(lambda key: tmp_path / "log", num_workers=1, num_servers=1, address=address)


# -- code -----------------------------------------------------------------------------------------------------


def test_code_of_a_file_is_its_folder_and_of_a_module_the_folder_it_is_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").touch()
    (tmp_path / "own_module.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert code_folder(f"{tmp_path}/own_module.py:Task") == tmp_path
    assert code_folder("own_package.inner:Task") == tmp_path
    assert code_folder("own_module:Task") == tmp_path


@pytest.mark.parametrize("name", ["digits", "workers.tasks.digits:Digits", "json:Task", "numpy.linalg:Task", "no_such_module:Task"])
def test_what_is_installed_does_not_travel(name: str) -> None:
    assert code_folder(name) is None


def test_code_travels_without_data_runs_and_what_is_hidden(tmp_path: Path) -> None:
    folder, target = tmp_path / "code", tmp_path / "target"
    for name in (
        "task.py",
        "inner/part.py",
        "vocabulary.json",
        "runs/r/summary.json",
        ".git/config",
        "venv/pyvenv.cfg",
        "ps/__init__.py",
        "inner/ps/x.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "data.bin").write_bytes(bytes(MAX_FILE_BYTES + 1))
    stage(folder, target, skip=folder / "runs")
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()) == [
        "inner/part.py",
        "inner/ps/x.py",
        "task.py",
        "vocabulary.json",
    ]


def test_a_folder_that_is_too_full_to_be_code_is_named(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    for number in range(51):
        with (tmp_path / "code" / f"{number}.py").open("wb") as file:
            file.truncate(MAX_FILE_BYTES)
    with pytest.raises(ConfigError, match=r"code, the folder of the task, holds more than .* 50 MiB .*folder of their own"):
        stage(tmp_path / "code", tmp_path / "target", skip=tmp_path / "runs")


@pytest.mark.parametrize(
    ("name", "there"), [("/c/a.py:T", "a.py:T"), ("/c/in/a.py:T", "in/a.py:T"), ("/d/a.py:T", "/d/a.py:T"), ("a.b:T", "a.b:T"), ("digits", "digits")]
)
def test_a_task_file_is_found_in_the_copy_of_its_folder(name: str, there: str) -> None:
    assert relative_name(name, Path("/c")) == there


# -- a cluster ------------------------------------------------------------------------------------------------

NEIGHBOUR = """
from torch import nn


def net(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
"""
TASK = """
from dataclasses import dataclass
from pathlib import Path

from neighbour import net
from workers.tasks.digits import Digits


@dataclass(frozen=True)
class Mine(Digits):
    data: str = ""

    def model(self):
        return net(self.hidden)

    def train_data(self):
        if self.data:
            Path(self.data).read_text()
        return super().train_data()
"""
CONFIG = """
[task]
name = "{code}/task.py:Mine"
[train]
batch_size = 32
max_steps = 6
[optimizer]
name = "adam"
[comm]
interface = "10.77.0.0/16"
port_range = "20000-20009"
[security]
allow_plaintext = true
[run]
storage_path = "{runs}"
"""
NODES = ["head", "one", "two"]


@dataclass
class Outcome:
    """What came of a cluster that is gone."""

    trained: subprocess.CompletedProcess[bytes]
    without_data: subprocess.CompletedProcess[bytes]
    without_token: tuple[int, str]
    logs: list[str]
    namespaces: list[str]
    pids: list[int]
    on_nodes: dict[str, Any]
    local: dict[str, Any]


def summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}


def pserver(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-c", "from deploy.cli.main import main; main()", "run", str(config), *arguments]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Two runs on a head and two nodes. The nodes do not have the code; node two has neither data nor run directories."""
    base = tmp_path_factory.mktemp("nodes")
    code, runs, data = (base / name for name in ("code", "runs", "data"))
    for folder in (code, runs, data):
        folder.mkdir()
    (code / "neighbour.py").write_text(NEIGHBOUR)
    (code / "task.py").write_text(TASK)
    (data / "here").touch()
    config = base / "config.toml"
    config.write_text(CONFIG.format(code=code, runs=runs))
    private = {"head": (RAY_FOLDER,), "one": (RAY_FOLDER, str(code)), "two": (RAY_FOLDER, str(code), str(runs), str(data))}
    root = str(Path(__file__).parents[2])
    env = {"PYTHONPATH": root}
    with VirtualCluster([HostSpec(name=name, private=private[name]) for name in NODES]) as cluster, RayNodes(cluster, NODES) as nodes:
        env |= nodes.env
        stranger = cluster.popen(
            "head",
            pserver(config, "--name", "stranger"),
            env={**env, "RAY_AUTH_TOKEN": "f" * 64},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        trained = cluster.run("head", pserver(config, "--name", "trained"), env=env, timeout_s=100)
        apart = ["--servers", "1", "--set", "scaling.placement_strategy=STRICT_SPREAD"]
        without_data = cluster.run("head", pserver(config, *apart, "--set", f"task.data={data}/here"), env=env, timeout_s=100)
        _, words = stranger.communicate(timeout=60)
        namespaces = [cluster.plan.switch, *map(cluster.plan.namespace, NODES)]
        pids = [pid for name in NODES for pid in cluster.pids(name)]
    local_config = base / "local.toml"
    local_config.write_text(config.read_text().replace('interface = "10.77.0.0/16"', ""))
    local = pserver(local_config, "--launcher", "process", "--name", "local")
    subprocess.run(local, env={**os.environ, "PYTHONPATH": root}, capture_output=True, check=True)
    logs = sorted(path.name for path in (runs / "trained" / "logs").iterdir())
    refused = (stranger.returncode, words.decode())
    return Outcome(trained, without_data, refused, logs, namespaces, pids, summary(runs / "trained"), summary(runs / "local"))


@pytest.mark.root
@pytest.mark.timeout(200)  # the cluster and three runs, on a busy machine
def test_three_nodes_give_the_bits_of_local_processes(outcome: Outcome) -> None:
    assert outcome.trained.returncode == 0, outcome.trained.stderr.decode()
    assert outcome.on_nodes["steps"] == 6
    assert outcome.on_nodes["params_sha256"] == outcome.local["params_sha256"]


@pytest.mark.root
def test_logs_of_a_node_without_the_run_directory_stay_there_and_the_user_is_told(outcome: Outcome) -> None:
    assert "logs of processes on two stay there, in Ray's logs: run.storage_path is not shared" in outcome.trained.stdout.decode()
    assert "driver.log" in outcome.logs
    assert 0 < sum(name.startswith(("worker-", "server-")) for name in outcome.logs) < 4


@pytest.mark.root
def test_missing_data_is_an_error_that_names_the_node(outcome: Outcome) -> None:
    assert outcome.without_data.returncode == 1
    (line,) = [line for line in outcome.without_data.stderr.decode().splitlines() if line.startswith("error: ")]
    assert " on two: FileNotFoundError: " in line and line.startswith("error: rank ")


@pytest.mark.root
def test_another_token_is_refused_with_the_remedy(outcome: Outcome) -> None:
    code, words = outcome.without_token
    assert code == 1
    assert "error: the Ray cluster at 10.77.0.1:6379 wants another token: set RAY_AUTH_MODE=token" in words


@pytest.mark.root
def test_no_process_and_no_namespace_stays(outcome: Outcome) -> None:
    assert len(outcome.pids) >= 3
    assert not [pid for pid in outcome.pids if Path(f"/proc/{pid}").exists()]
    assert not [name for name in outcome.namespaces if (NAMESPACES / name).exists()]
