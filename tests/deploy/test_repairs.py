"""Careless use that a run survives, or that is refused by name."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.config.source import overlay
from deploy.console import Console
from ps.control import Control, Machine
from ps.errors import PserverError
from ps.weights import save_weights


class ClosedPipe(io.StringIO):
    """Standard output whose reader has gone."""

    tried = 0

    def write(self, text: str) -> int:
        self.tried += 1
        raise BrokenPipeError


def test_a_reader_that_goes_away_costs_the_lines_and_not_the_run() -> None:
    pipe = ClosedPipe()
    console = Console(quiet=False, stderr=False, file=pipe)
    console.line("first")
    tried = pipe.tried
    console.line("second")
    assert pipe.tried == tried > 0, "nothing is written to it again"


def test_a_key_without_a_value_is_taken_out() -> None:
    tables: dict[str, Any] = {"train": {"batch_size": 32}}
    assert overlay(tables, "train.batch_size=") == "train.batch_size"
    assert tables == {"train": {}}


def test_weights_that_cannot_be_written_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "last.safetensors").mkdir()
    with pytest.raises(PserverError, match=r"last.safetensors cannot be written: .* free space there"):
        save_weights(tmp_path / "last.safetensors", {"w": torch.zeros(1)}, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]


def test_a_process_away_from_the_driver_is_named_with_its_host_even_if_it_is_the_only_one() -> None:
    control = Control(num_workers=2, num_servers=1, home="head")
    control.register("worker", 1, machine=Machine("two", {}))
    assert control.on_host("worker", 1) == " on two"
