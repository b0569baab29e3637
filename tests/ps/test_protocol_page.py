"""The program in docs/protocol.md, which knows the protocol file only, trains with a real server."""

import ast
import re
import sys
from pathlib import Path

import pytest

from ps.config import OptimizerConfig
from tests.ps.cluster import TOKEN, cluster
from tests.test_imports import imported

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def test_a_client_from_the_protocol_file_alone_trains(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert set(imported(program)) == {"grpc", "hmac", "numpy", "protos", "queue", "sys", "xxhash"}
    with cluster(1, 1, optimizer=OptimizerConfig(lr=0.5)) as servers:
        (address,) = servers.addresses
        monkeypatch.setattr(sys, "argv", ["client", address.data, address.control, servers.settings.run_id, TOKEN])
        names: dict[str, object] = {}
        exec(compile(program, "docs/protocol.md", "exec"), names)
        for channel in ("data_channel", "control_channel"):
            names[channel].close()  # type: ignore[attr-defined]
    version, _, weights = capsys.readouterr().out.partition(" ")
    assert version == "20" and ast.literal_eval(weights) == pytest.approx([3.0, -1.0, 0.5], abs=1e-5)
