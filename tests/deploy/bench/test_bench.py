"""`pserver bench`: links and a model's communication, measured really once each."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from deploy.bench import net, places
from deploy.bench.comm import bench_comm, config_for
from deploy.bench.net import Measured, bench_net, found_by
from deploy.cli.main import main
from deploy.simulation.wishes import Wishes
from ps.config import CommConfig
from ps.errors import ConfigError
from tests.deploy.forked import ForkedTrainer
from workers.tasks.shapes import ModelShapes


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "Trainer", ForkedTrainer)


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "weights.safetensors"
    save_file({"first.weight": np.zeros((300, 400), np.float32), "first.bias": np.zeros(400, np.float32), "last": np.zeros((3, 5), np.float32)}, path)
    return str(path)


def test_a_models_tensors_are_there_and_their_gradients_cost_nothing(weights: str) -> None:
    task = ModelShapes(like=weights)
    model = task.model()
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        "first.weight": (300, 400),
        "first.bias": (400,),
        "last": (3, 5),
    }
    task.loss(model, None).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    again = task.model()
    task.loss(again, None).backward()
    assert all(torch.equal(one, other.grad) and one.abs().sum() > 0 for one, other in zip(gradients, again.parameters(), strict=True))


def test_a_tasks_own_model_travels_as_it_is() -> None:
    model = ModelShapes(like="workers.tasks.digits:Digits").model()
    assert type(model).__name__ == "Sequential"


@pytest.mark.usefixtures("forked")
def test_the_communication_of_a_file_of_weights_over_thin_links(weights: str) -> None:
    config = config_for(weights, workers=2, servers=2, steps=4, push_format="bf16")
    found = bench_comm(replace(config, comm=CommConfig(push_format="bf16", bandwidth="40mbit")))
    num = 300 * 400 + 400 + 15
    assert num * 4 <= found.pull_bytes < num * 4 * 1.05 and num * 2 <= found.push_bytes < num * 2 * 1.05
    assert found.floor_s == pytest.approx(found.pull_bytes / 5e6, rel=0.05)
    assert found.step_s > 0.9 * found.floor_s
    text = found.text()
    assert f"floor {found.floor_s:.2f} s: {found.step_s / found.floor_s:.2f} times" in text and "bottleneck: " in text
    assert json.loads(json.dumps(found.to_dict()))["push_format"] == "bf16"


@pytest.mark.parametrize(
    ("model", "message"), [("nosuch", "nosuch is no model: resnet50"), ("no.safetensors", "no.safetensors cannot be read as weights")]
)
def test_a_model_that_is_none_is_refused(model: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "comm", "--model", model])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.alone
@pytest.mark.usefixtures("forked")
def test_the_links_between_hosts_are_found() -> None:
    comm = CommConfig(bandwidth="80mbit", worker_bandwidth={1: "20mbit"}, server_bandwidth={0: "40mbit"}, latency="5ms")
    found = bench_net(replace(net.config_for(2), comm=comm))
    rates = {(link.worker, link.server): link.bytes_per_s * 8e-6 for link in found.links.values()}
    assert set(rates) == {(rank, shard) for rank in (0, 1) for shard in (0, 1)}
    for pair, rate in {(0, 0): 40, (0, 1): 80, (1, 0): 20, (1, 1): 20}.items():  # of the thinner end
        assert 0.5 * rate < rates[pair] < 1.7 * rate
    assert all(0.01 <= link.delay_s < 0.2 for link in found.links.values())
    assert "thinnest: worker 1 to server " in found.text()


@pytest.mark.usefixtures("forked")
def test_this_machine_is_one_host_with_one_link_to_itself() -> None:
    found = bench_net(net.config_for(2))
    ((here, there),) = found.links
    assert here == there == socket.gethostname()
    assert found.hosts == {here: ["worker 0", "worker 1", "server 0", "server 1"]}
    assert "thinnest" not in found.text()


def test_links_are_a_matrix_by_host_wherever_servers_are_and_those_that_broke_have_no_figure() -> None:
    names = {"worker 0": "a", "worker 1": "b", "worker 2": "c", "server 0": "b", "server 1": "a", "server 2": "b"}
    row = {"local_0_1": 1.0, "local_1_0": 1.0, "local_1_2": 1.0, "local_2_2": 0.0}
    for pair, rate, delay in (("0_1", 2e9, 1e-4), ("0_0", 12.5e6, 2e-3), ("2_0", 1e9, 1e-4), ("2_1", 5e8, 1e-4)):
        row |= {f"bytes_per_s_{pair}": rate, f"delay_s_{pair}": delay}
    found = found_by(row, names, 3, "here")
    assert found.hosts == {"a": ["worker 0", "server 1"], "b": ["worker 1", "server 0", "server 2"], "c": ["worker 2"]}
    assert found.links["a", "b"] == Measured(0, 0, 12.5e6, 0.002)
    lines = found.text().splitlines()
    assert [line.split() for line in lines[2:5]] == [["a", "b"], ["a", "2000.0*", "12.5"], ["c", "500.0", "1000.0"]]
    assert lines[-1] == "thinnest: a to b, 12.5 MB/s; longest: a to b, 2 ms"
    (link,) = [link for link in found.to_dict()["links"] if link["local"]]
    assert (link["from"], link["to"], link["worker"], link["server"]) == ("a", "a", 0, 1)


def test_hosts_whose_names_do_not_tell_them_apart_are_called_by_a_process_and_what_is_not_measured_is_said() -> None:
    row = {"local_2_0": 1.0, "local_2_1": 1.0, "local_2_2": 1.0}
    row |= {f"{what}_{rank}_0": 1.0 for rank in range(3) for what in ("bytes_per_s", "delay_s")}
    found = found_by(row, {f"{role} {index}": "same" for role in ("worker", "server") for index in range(3)}, 3, "here")
    assert list(found.links) == [("worker 0", "worker 2"), ("worker 1", "worker 2"), ("worker 2", "worker 2")]
    assert found.text().splitlines()[-1] == "not measured: links among worker 0, worker 1, where no server is"


def test_links_are_not_simulated_on_a_real_cluster() -> None:
    with pytest.raises(ConfigError, match="of a real cluster, whose links are what they are"):
        bench_net(net.config_for(2), Wishes(bandwidth="1gbit"), "10.0.0.1:6379")
