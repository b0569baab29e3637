"""What Prometheus finds at the processes of a run, and what the dashboard asks for."""

import json
import re
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from ray.util.metrics import Counter

from deploy.launch.base import Ending, ProcessKey
from ps.config import MetricsConfig
from ps.errors import ConfigError
from ps.metrics import RUN, metered, tell_row
from ps.prometheus import Endpoint
from tests.deploy.forked import ForkedLauncher, ForkedTrainer, trainer
from tests.deploy.ledgers import step_of
from tests.ports import free_port, free_ports
from workers.ray_actor import RayMeter

DASHBOARD = Path("deploy/cluster/grafana.json")


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        return reply.read().decode()


def values(text: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {series: float(value) for series, _, value in lines}


def test_rows_become_series() -> None:
    with Endpoint("127.0.0.1", port := free_port()) as endpoint:
        for step in (step_of(0), step_of(1)):
            for row in step.rows:
                tell_row(endpoint, row)
        found = values(scraped(port))
    row = step_of(0).workers[1]
    assert found['pserver_steps_total{rank="1"}'] == 2
    assert found['pserver_span_seconds_total{rank="1",span="backward"}'] == pytest.approx(2 * row.backward_s)
    spans = sum(value for series, value in found.items() if series.startswith('pserver_span_seconds_total{rank="1"'))
    assert spans == pytest.approx(found['pserver_step_seconds_total{rank="1"}']) == pytest.approx(2 * row.step_s)
    assert found['pserver_bytes_total{rank="0",shard="1",way="push"}'] == 2 * step_of(0).workers[0].shards[1].push_bytes
    assert found['pserver_version{shard="0"}'] == 2


def test_nothing_listens_unless_it_is_asked_to_and_a_port_in_use_is_named() -> None:
    with metered(MetricsConfig(), 0) as meter:
        assert meter is None
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"no metrics on 127.0.0.1:{port}: Address already in use"), metered(MetricsConfig(port=port), 0):
            pass


def test_what_is_injected_takes_the_place_of_the_endpoint() -> None:
    class Told:
        def tell(self, metric: Any, value: float, *labels: str) -> None:
            raise AssertionError("nothing is told yet")

    told = Told()
    with metered(MetricsConfig(port=9), 0, told) as meter:
        assert meter is told
    with metered(MetricsConfig(), 0, told) as meter:
        assert meter is None


def test_ray_is_handed_what_the_dashboard_asks_for() -> None:
    """It puts `ray_` before the names (seen at its agent), and nothing is sent without a cluster."""
    meter = RayMeter()
    for row in step_of(0).rows:
        tell_row(meter, row)
    named = {f"ray_{name}_total" if isinstance(family, Counter) else f"ray_{name}" for name, family in meter._families.items()}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {name for panel in panels for target in panel["targets"] for name in re.findall(r'__name__=~"([^"]+)"', target["expr"])}
    asked = {name for name in asked if "pserver_run" not in name}  # the driver's, which is no actor
    assert named == {next(name for name in named if re.fullmatch(expression, name)) for expression in asked}


class Watched(ForkedLauncher):
    """Reads the endpoints of all processes while the run goes on, until each has told of a step."""

    def __init__(self, inner: ForkedLauncher, ports: dict[str, int]) -> None:
        super().__init__(inner._log_path)
        self.ports, self.texts = ports, dict.fromkeys(ports, "")

    def ended(self) -> dict[ProcessKey, Ending]:
        for name, port in self.ports.items():
            try:
                self.texts[name] = scraped(port)
            except OSError:
                continue
        return super().ended()


class WatchedTrainer(ForkedTrainer):
    ports: dict[str, int]

    def _make_launcher(self, *arguments: Any) -> Watched:
        self.launcher = Watched(super()._make_launcher(*arguments), self.ports)
        return self.launcher


def test_every_process_of_a_run_tells_what_the_dashboard_asks_for(tmp_path: Path) -> None:
    ports = free_ports(3)
    job = trainer(tmp_path, "digits", epochs=12, batch_size=64, num_workers=1, num_servers=1, port=ports[0])
    job.__class__ = WatchedTrainer
    job.ports = dict(zip(("driver", "server", "worker"), ports, strict=True))
    result = job.fit()
    assert result.error is None
    names = {name: set(re.findall(r"^(pserver_\w+)[ {]", text, re.M)) for name, text in job.launcher.texts.items()}
    asked = {name for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]
             for name in re.findall(r"pserver_\w+", target["expr"])}  # fmt: skip
    assert asked == {name for found in names.values() for name in found if not name.endswith("_created")}
    assert all("pserver_run" in name for name in names["driver"]) and f'{RUN.name}{{name="comm/step_s"}}' in job.launcher.texts["driver"]
    for port in job.ports.values():
        with pytest.raises(OSError, match="refused"):
            scraped(port)
