"""A real Ray cluster of five nodes, on virtual hosts."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.virtual.cluster import VirtualCluster
from deploy.virtual.plan import HostSpec
from deploy.virtual.ray_nodes import RAY_FOLDER, RayNodes
from deploy.virtual.remove import NAMESPACES
from tests.workers.idx_files import write_pictures

NEIGHBOUR = """
from torch import nn


def net(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
"""
TASK = """
from dataclasses import dataclass

from neighbour import net
from workers.tasks.digits import Digits


@dataclass(frozen=True)
class Mine(Digits):
    def model(self):
        return net(self.hidden)
"""
LOOP = """
import torch
from torch import nn

from neighbour import net
from workers.tasks.digits import Digits


def train(ctx):
    pixels, classes = Digits().train_data()[range(1437)]
    model = net(8)
    sampler = ctx.sampler(len(pixels))
    optimizer = ctx.optimizer(model)
    for step in ctx.steps():
        batch = torch.from_numpy(sampler(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels[batch]), classes[batch]).backward()
        optimizer.step(weight=len(batch))
    ctx.report({"copies": 0.0 if __file__ == "CODE/loop.py" else 1.0})
"""
CONFIG = """
[train]
batch_size = 16
max_steps = 6
[optimizer]
name = "adam"
[comm]
interface = "10.77.0.0/16"
port_range = "20000-20009"
[scaling]
num_workers = 4
placement_strategy = "STRICT_SPREAD"
"""
NODES = ["head", "one", "two", "three", "four"]
Done = subprocess.CompletedProcess[str]


@dataclass
class Outcome:
    """What came of a cluster that is gone."""

    trained: Done
    looped: Done
    without_storage: Done
    without_data: Done
    without_token: Done
    probed: Done
    namespaces: list[str]
    pids: list[int]
    runs: Path
    """Run directories that all nodes saw, and those of local processes."""
    apart: Path
    """Run directories that two nodes did not see."""


@dataclass
class Commands:
    """`pserver` on the head of a cluster."""

    cluster: VirtualCluster
    env: dict[str, str]
    config: Path

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        return self._popen(run_of(self.config, *arguments), env)

    def bench_net(self, *arguments: str) -> subprocess.Popen[bytes]:
        return self._popen(pserver("bench", "net", "--address", self.env["RAY_ADDRESS"], *arguments), {})

    def _popen(self, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        return self.cluster.popen("head", command, env={**self.env, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> Done:
    output, errors = process.communicate(timeout=100)
    return subprocess.CompletedProcess(process.args, process.returncode, output.decode(), errors.decode())


def pserver(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from deploy.cli.main import main; main()", *arguments]


def run_of(config: Path, *arguments: str) -> list[str]:
    return pserver("run", str(config), *arguments)


def summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}


def error_of(done: Done) -> str:
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Runs on a head and four nodes. The nodes do not have the code; three and four do not see `apart`, nor four the pictures; its link is thin."""
    base = tmp_path_factory.mktemp("nodes")
    code, runs, apart, pictures = folders = [base / name for name in ("code", "runs", "apart", "pictures")]
    for folder in folders:
        folder.mkdir()
    (code / "neighbour.py").write_text(NEIGHBOUR)
    (code / "task.py").write_text(TASK)
    (code / "loop.py").write_text(LOOP.replace("CODE", str(code)))
    write_pictures(pictures)
    config = base / "config.toml"
    config.write_text(CONFIG)
    task = ("--set", f"task.name={code}/task.py:Mine", "--set", f"run.storage_path={runs}", "--set", "task.hidden=8")
    loop = ("--loop", f"{code}/loop.py:train")
    in_apart = ("--set", f"run.storage_path={apart}", "--servers", "1")
    fashion = ("--set", "task.name=fashion-mnist", "--set", f"task.data_dir={pictures}", "--set", f"run.storage_path={runs}", "--servers", "1")
    private = {"three": [code, apart], "four": [code, apart, pictures], "head": []}
    rates = {"four": "100mbit"}
    hosts = [HostSpec(name=name, rate=rates.get(name), private=(RAY_FOLDER, *map(str, private.get(name, [code])))) for name in NODES]
    root = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with VirtualCluster(hosts) as cluster, RayNodes(cluster, NODES, cpus=dict.fromkeys(NODES[1:], 4), timeout_s=120.0) as nodes:
        head = Commands(cluster, root | nodes.env, config)
        stranger = head.start(*task, "--name", "stranger", RAY_AUTH_TOKEN="f" * 64)
        trained, without_storage = map(ended, [head.start(*task, "--name", "trained"), head.start(*loop, *in_apart)])
        shown = ("--name", "looped", "--set", "run.shared_storage=false")
        looped, without_data = map(ended, [head.start(*loop, *in_apart, *shown), head.start(*fashion)])
        without_token = ended(stranger)
        probed = ended(head.bench_net("--hosts", "4", "--json"))
        namespaces = [cluster.plan.switch, *map(cluster.plan.namespace, NODES)]
        pids = [pid for name in NODES for pid in cluster.pids(name)]
    local = ("--launcher", "process", "--set", "comm.interface=")
    for arguments in ((*task, "--name", "local-task"), (*loop, "--name", "local-loop", "--set", f"run.storage_path={runs}")):
        subprocess.run(run_of(config, *arguments, *local), env={**os.environ, **root}, capture_output=True, check=True)
    return Outcome(trained, looped, without_storage, without_data, without_token, probed, namespaces, pids, runs, apart)


@pytest.mark.root
@pytest.mark.hosts
@pytest.mark.timeout(300)  # the cluster and seven runs, on a busy machine
def test_five_nodes_give_the_bits_of_local_processes(outcome: Outcome) -> None:
    assert outcome.trained.returncode == 0, outcome.trained.stderr
    on_nodes = summary(outcome.runs / "trained")
    assert on_nodes["steps"] == 6
    assert on_nodes["params_sha256"] == summary(outcome.runs / "local-task")["params_sha256"]


@pytest.mark.root
@pytest.mark.hosts
def test_an_own_loop_and_its_neighbour_reach_nodes_that_do_not_have_them(outcome: Outcome) -> None:
    assert outcome.looped.returncode == 0, outcome.looped.stderr
    on_nodes, local = summary(outcome.apart / "looped"), summary(outcome.runs / "local-loop")
    assert on_nodes["params_sha256"] == local["params_sha256"]
    assert (on_nodes["metrics"]["copies"], local["metrics"]["copies"]) == (1.0, 0.0)


@pytest.mark.root
@pytest.mark.hosts
def test_all_logs_come_together_where_the_storage_is_shared(outcome: Outcome) -> None:
    names = {path.name for path in (outcome.runs / "trained" / "logs").iterdir()}
    assert names == {"driver.log", *(f"worker-{rank}.log" for rank in range(4)), "server-0.log", "server-1.log"}


@pytest.mark.root
@pytest.mark.hosts
def test_storage_that_is_not_shared_is_refused_before_the_first_step_and_the_nodes_named(outcome: Outcome) -> None:
    assert outcome.without_storage.returncode == 2
    assert error_of(outcome.without_storage).startswith(f"error: run.storage_path: four, three cannot see {outcome.apart} of the driver's host: ")
    (run,) = [path for path in outcome.apart.iterdir() if path.name != "looped"]
    assert summary(run)["steps"] == 0
    assert not (run / "metrics.jsonl").exists()


@pytest.mark.root
@pytest.mark.hosts
def test_where_storage_need_not_be_shared_logs_stay_on_their_nodes_and_the_user_is_told(outcome: Outcome) -> None:
    assert "logs of processes on four, three stay there, in Ray's logs: run.storage_path is not shared" in outcome.looped.stdout
    names = [path.name for path in (outcome.apart / "looped" / "logs").iterdir()]
    assert "driver.log" in names
    assert sum(name.startswith("worker-") for name in names) == 2


@pytest.mark.root
@pytest.mark.hosts
def test_missing_data_is_an_error_that_names_the_node(outcome: Outcome) -> None:
    assert outcome.without_data.returncode == 2
    line = error_of(outcome.without_data)
    assert line.startswith("error: rank ")
    assert " on four: no Fashion-MNIST in " in line


@pytest.mark.root
@pytest.mark.hosts
def test_another_token_is_refused_with_the_remedy(outcome: Outcome) -> None:
    assert outcome.without_token.returncode == 1
    assert "the Ray cluster at 10.77.0.1:6379 wants another token: set RAY_AUTH_MODE=token" in error_of(outcome.without_token)


@pytest.mark.root
@pytest.mark.hosts
def test_the_links_between_nodes_are_measured_and_a_thin_one_stands_out(outcome: Outcome) -> None:
    assert outcome.probed.returncode == 0, outcome.probed.stderr
    found = json.loads(outcome.probed.stdout)
    nodes = {"one", "two", "three", "four"}
    assert set(found["hosts"]) == nodes
    rates = {(link["from"], link["to"]): link["bytes_per_s"] for link in found["links"]}
    servers = {host for host, processes in found["hosts"].items() if any(name.startswith("server") for name in processes)}
    assert set(rates) == {(here, there) for here in nodes for there in servers}
    thin = {pair for pair, rate in rates.items() if pair[0] != pair[1] and rate < 1.7 * 12.5e6}
    assert thin == {(here, there) for here, there in rates if here != there and "four" in (here, there)}, rates


@pytest.mark.root
@pytest.mark.hosts
def test_no_process_and_no_namespace_stays(outcome: Outcome) -> None:
    assert len(outcome.pids) >= 5
    assert not [pid for pid in outcome.pids if Path(f"/proc/{pid}").exists()]
    assert not [name for name in outcome.namespaces if (NAMESPACES / name).exists()]
