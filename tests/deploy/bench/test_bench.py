"""`pserver bench`: links and a model's communication, measured really once each."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from deploy.bench import net, places
from deploy.bench.comm import bench_comm, config_for
from deploy.bench.net import Measured, NetFound, _links, bench_net
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


@pytest.mark.usefixtures("forked")
def test_the_links_between_hosts_are_found() -> None:
    comm = CommConfig(bandwidth="80mbit", worker_bandwidth={1: "20mbit"}, server_bandwidth={0: "40mbit"}, latency="5ms")
    found = bench_net(replace(net.config_for(2), comm=comm))
    rates = {pair: link.bytes_per_s * 8e-6 for pair, link in found.links.items()}
    assert set(rates) == {(rank, shard) for rank in (0, 1) for shard in (0, 1)}
    for pair, rate in {(0, 0): 40, (0, 1): 80, (1, 0): 20, (1, 1): 20}.items():  # of the thinner end
        assert 0.5 * rate < rates[pair] < 1.7 * rate
    assert all(0.01 <= link.delay_s < 0.2 for link in found.links.values())
    assert "thinnest: worker 1 to server " in found.text()


def test_links_are_a_matrix_and_those_that_broke_have_no_figure() -> None:
    row: dict[str, Any] = {"step": 2, "bytes_per_s_0_1": 12.5e6, "delay_s_0_1": 0.002, "local_0_1": 0.0}
    row |= {"bytes_per_s_1_1": 1e9, "delay_s_1_1": 0.0001, "local_1_1": 1.0}
    links = _links(row)
    assert links == {(0, 1): Measured(12.5e6, 0.002, False), (1, 1): Measured(1e9, 0.0001, True)}
    lines = NetFound("here", {**links, (0, 0): Measured(2e9, 0.0001, True)}).text().splitlines()
    assert lines[3].split() == ["worker", "0", "2000.0*", "12.5"] and lines[4].split() == ["worker", "1", "-", "1000.0*"]
    assert lines[-1] == "thinnest: worker 0 to server 1, 12.5 MB/s; longest: worker 0 to server 1, 2 ms"


def test_links_are_not_simulated_on_a_real_cluster() -> None:
    with pytest.raises(ConfigError, match="of a real cluster, whose links are what they are"):
        bench_net(net.config_for(2), Wishes(bandwidth="1gbit"), "10.0.0.1:6379")
