"""Benchmarks: rows judge, and the network's contenders meet on virtual hosts. Figures are for `make bench-network`."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.main import get_command

from benchmarks import growth
from benchmarks.harness import Row
from benchmarks.peers.stubs import Stubs
from benchmarks.recovery import back_at
from benchmarks.workload import Workload, parse_size
from deploy.cli.verbs import app
from deploy.predict.inputs import Wishes
from deploy.virtual import owner
from ps.config import CommConfig
from ps.plan import Plan
from tests.ps.cluster import TOKEN, cluster

ROOT = Path(__file__).parents[1]


def test_a_ratio_beyond_its_limit_or_below_what_can_be_fails() -> None:
    assert Row("m", ours=1.05, peer=1.0, must=1.1, least=1.03).ok
    assert not Row("m", ours=1.2, peer=1.0, must=1.1, least=1.03).ok
    assert not Row("m", ours=1.0, peer=1.0, must=1.1, least=1.03).ok


def test_sizes_are_decimal_or_binary() -> None:
    assert [parse_size("400MB"), parse_size("8MiB"), parse_size("1.5KB")] == [400_000_000, 8 << 20, 1500]


def test_tensors_in_place_of_the_perceptron_have_all_its_bytes() -> None:
    workload = Workload(contender="ours", gate="", tensors=3, model_bytes=1000)
    assert workload.sizes() == [84, 83, 83]
    assert [tensor.numel() for tensor in workload.model().parameters()] == workload.sizes()


@pytest.mark.parametrize(
    ("ends", "back"),
    [
        ([1.0, 2.0, 7.0, 7.1, 12.0], 7.0),  # the step that was on its way waits for the dead
        ([1.0, 2.0, 3.5, 8.0, 8.1], 8.0),  # it had pushed all of that one: the next step waits
    ],
)
def test_training_goes_on_with_the_first_step_that_the_dead_were_needed_for(ends: list[float], back: float) -> None:
    assert back_at(3.0, ends) == back


def test_the_page_of_scale_has_one_place_for_every_table() -> None:
    text = growth.PAGE.read_text()
    names = re.findall(r"<!-- (\w+): make plan-scale -->", text)
    assert len(names) == 8
    again = growth.filled(text, {name: f"| {name} |\n" for name in names}, "make plan-scale")
    assert all(f"<!-- {name}: make plan-scale -->\n| {name} |\n<!-- end -->" in again for name in names)
    with pytest.raises(ValueError, match="0 places for the table 'nosuch'"):
        growth.filled(text, {"nosuch": ""}, "make plan-scale")


def test_the_example_of_the_page_is_a_command_that_plans_the_rows_scenario() -> None:
    shown = growth.command(16, 16)
    assert shown in growth.PAGE.read_text()
    verb = get_command(app).commands["plan"]  # type: ignore[attr-defined]
    given = verb.make_context("plan", shlex.split(shown)[2:]).params
    wished = Wishes(**{name: value for name, value in given.items() if name in vars(growth.USUAL) and value is not None and value is not False})
    assert wished == replace(growth.USUAL, workers=16, servers=16)


@pytest.mark.root
def test_an_exchange_is_measured_between_hosts_that_are_gone_afterwards() -> None:
    tags = set(owner.known_tags())
    arguments = "--workers 1 --servers 1 --bandwidth 100mbit --model-bytes 64KB --tensors 2 --rounds 1 --steps 2 --no-peers --no-bf16"
    command = [sys.executable, "-m", "benchmarks.network", *arguments.split()]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    measures = json.loads(done.stdout.splitlines()[-1])
    names = ("plain TCP / M/B", "exchange / M/B", "exposed / communication, compute as long")
    assert set(measures) == {f"100mbit, 0.061 MiB: {name}" for name in names}
    assert all(set(row) == {"ours", "peer", "ratio", "must", "ok"} and row["ours"] > 0 for row in measures.values())
    assert not set(owner.known_tags()) - tags


def test_stub_workers_exchange_with_a_server_also_while_one_stands_still() -> None:
    with cluster(2, 1, comm=CommConfig(shared_memory=False), plan=Plan(steps_per_epoch=1000, total_steps=1_000_000)) as servers:
        at = servers.addresses[0]
        stub = {"data": at.data, "control": at.control, "run_id": servers.settings.run_id, "secret": TOKEN, "tls": None}
        stubs = Stubs(Workload(contender="stubs", gate="", workers=2, tensors=2, model_bytes=1 << 16, stub=stub))
        try:
            stubs.step()
            stubs.step_with_one_stopped()
        finally:
            stubs.close()
        reader = servers.reader()
        assert reader.version() == 2
        reader.close()
