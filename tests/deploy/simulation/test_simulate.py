"""`pserver simulate`: real runs on virtual hosts, and on streams that stand in for links."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.cli.main import main
from deploy.config import Config, TaskConfig
from deploy.interrupts import interruptible
from deploy.measure.ledger_file import read_ledger
from deploy.simulation import run
from deploy.simulation.inside import Inside
from deploy.virtual import owner
from deploy.virtual.remove import NAMESPACES
from ps.errors import ResourcesMissing, Stopped
from tests.deploy.forked import ForkedTrainer
from tests.waiting import until
from workers.config import TrainConfig

CONFIG = """
[task]
name = "digits"
hidden = 64
[train]
max_steps = {steps}
batch_size = 16
[run]
storage_path = "{storage}"
name = "{name}"
"""


def config_file(folder: Path, name: str, steps: int = 8) -> str:
    path = folder / f"{name}.toml"
    path.write_text(CONFIG.format(storage=folder / "runs", name=name, steps=steps))
    return str(path)


def simulated(folder: Path, name: str, *options: str) -> dict[str, Any]:
    """The summary of a simulated run."""
    with pytest.raises(SystemExit) as ended:
        main(["simulate", config_file(folder, name), *options])
    assert ended.value.code == 0
    return json.loads((folder / "runs" / name / "summary.json").read_text())


@pytest.mark.root
def test_the_same_bits_on_hosts_with_links_and_on_streams_in_place_of_links(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    links = ["--set", "scaling.num_stages=2", "--bandwidth", "50mbit", "--latency", "1ms", "--straggler", "rank=1,factor=3"]
    before = left_here()
    on_hosts = simulated(tmp_path, "hosts", *links, "--colocate", "--host", "worker-1:bandwidth=20mbit,cpus=2")
    assert on_hosts["simulated"].startswith("simulated: 4 workers (2 ranks x 2 stages) and 2 servers on 4 hosts (network namespaces")
    assert "links 50mbit, worker-1 20mbit; 1ms more one way" in on_hosts["simulated"]
    printed = capfd.readouterr().out.splitlines()
    assert printed[-3] == on_hosts["simulated"] and printed[-2] == on_hosts["verdict"] and "bottleneck: " in printed[-2]
    workers = [row for step in read_ledger(tmp_path / "runs" / "hosts" / "comm.jsonl") for row in step.workers]
    assert {(row.rank, traffic.shard) for row in workers for traffic in row.shards if traffic.local} == {(0, 0), (1, 1)}
    assert {row.link_bytes_per_s for row in workers if row.rank == 1} == {2.5e6}
    assert min(row.pacing.delay_s for row in workers if row.pacing) >= 0.002
    assert not left_here() - before

    def refuse() -> None:
        raise ResourcesMissing("a virtual cluster needs root")

    monkeypatch.setattr(run, "check_machine", refuse)
    monkeypatch.setattr(run, "SimulatedTrainer", ForkedTrainer)
    on_streams = simulated(tmp_path, "streams", *links)
    assert on_streams["simulated"].startswith("simulated WITHOUT virtual hosts, TOKEN BUCKETS in pserver's own streams in place of links: ")
    assert on_streams["simulated"].endswith("; a virtual cluster needs root")
    assert on_streams["params_sha256"] == on_hosts["params_sha256"]


@pytest.mark.root
def test_a_killed_command_leaves_no_process_and_no_host(tmp_path: Path) -> None:
    arguments = [config_file(tmp_path, "killed", 10_000), "--workers", "1", "--servers", "1", "--bandwidth", "1mbit"]
    command = [sys.executable, "-c", "from deploy.cli.main import main; main()", "simulate", *arguments]
    before = left_here()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout
        assert any(b"simulated: " in line for line in process.stdout)
        (namespaces,) = {name.rpartition("-")[0] for name in left_here() - before if name.endswith("-driver")}
        process.kill()
        rest = process.stdout.read()  # ends when nobody is left who could write
    assert process.returncode == -signal.SIGKILL and b"params_sha256" not in rest
    until(lambda: not any(name.startswith(namespaces) for name in left_here()), 10)
    assert not left_here() - before
    assert {path.name.rpartition("-")[2] for path in temporary.iterdir()} <= {"mark"}, "which the next start removes"


class HereOnly:
    """In place of a cluster: its driver interrupts who waits for it before it has told anything."""

    def popen(self, host: str, argv: Sequence[str], **streams: Any) -> subprocess.Popen[bytes]:
        program = "import os, signal, sys; sys.stdin.read(); os.kill(os.getppid(), signal.SIGINT); signal.pause()"
        return subprocess.Popen([sys.executable, "-c", program], stdin=streams["stdin"])


def test_an_interrupt_before_the_driver_has_begun_is_no_death_of_the_driver() -> None:
    config = Config(task=TaskConfig(name="digits"), train=TrainConfig(batch_size=1))
    inside = Inside(config=config, places={}, host_of=[], simulated="", launcher="process", address=None, quiet=True)
    with interruptible():
        outcome = run._child(HereOnly(), inside, {})  # type: ignore[arg-type]
    assert isinstance(outcome.error, Stopped) and str(outcome.error) == "interrupted before the run had begun"


@pytest.mark.root
def test_an_error_of_the_run_is_the_commands(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "runs" / "again"
    taken.mkdir(parents=True)
    (taken / "config.toml").touch()
    with pytest.raises(SystemExit) as ended:
        main(["simulate", config_file(tmp_path, "again")])
    assert ended.value.code == 2
    assert capfd.readouterr().err == f"error: {taken} exists: choose another run.name, or remove it\n"


def left_here() -> set[str]:
    """Namespaces of virtual clusters."""
    return {path.name for path in NAMESPACES.iterdir() if owner.owner_of(path.name) is not None} if NAMESPACES.is_dir() else set()
