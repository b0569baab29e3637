"""The programs in docs/protocol.md, which know the protocol file only: one trains with a real server, one deals chunks as servers do."""

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import pserver_pb2 as pb
from ps.config import OptimizerConfig
from ps.layout import DTYPES, Layout, Rule, TensorSpec
from tests.ps.cluster import TOKEN, cluster
from tests.test_imports import imported

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
LAYOUT, CLIENT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
RULES = [pb.RULE_OPTIMIZER, pb.RULE_MEAN, pb.RULE_SUM, pb.RULE_EQUAL, pb.RULE_FROZEN]
TENSORS = st.lists(
    st.tuples(st.lists(st.integers(0, 200), max_size=3), st.sampled_from(sorted(DTYPES)), st.sampled_from(RULES), st.integers(0, 2)),
    min_size=1,
    max_size=8,
)


def test_a_client_from_the_protocol_file_alone_trains(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(imported(CLIENT)) == {"grpc", "hmac", "numpy", "protos", "queue", "sys", "xxhash"}
    with cluster(1, 1, optimizer=OptimizerConfig(lr=0.5)) as servers:
        (address,) = servers.addresses
        monkeypatch.setattr(sys, "argv", ["client", address.data, address.control, servers.settings.run_id, TOKEN])
        names: dict[str, object] = {}
        exec(compile(CLIENT, "docs/protocol.md", "exec"), names)
        for channel in ("data_channel", "control_channel"):
            names[channel].close()  # type: ignore[attr-defined]
    version, _, weights = capsys.readouterr().out.partition(" ")
    assert version == "20" and ast.literal_eval(weights) == pytest.approx([3.0, -1.0, 0.5], abs=1e-5)


@given(TENSORS, st.integers(1, 5))
def test_the_layout_is_what_the_page_says(fields: list[tuple[list[int], str, "pb.Rule", int]], num_servers: int) -> None:
    names: dict[str, Any] = {}
    exec(compile(LAYOUT, "docs/protocol.md", "exec"), names)
    tensors = [pb.Tensor(name=f"t{i}", shape=shape, dtype=dtype, rule=rule, group=group) for i, (shape, dtype, rule, group) in enumerate(fields)]
    specs = [TensorSpec(name=t.name, shape=tuple(t.shape), dtype=t.dtype, rule=Rule(t.rule), group=t.group) for t in tensors]
    layout = Layout(specs, num_servers)
    found = [[(int(layout.chunk_tensor[c]), int(layout.chunk_start[c])) for c in shard.chunks] for shard in layout.shards]
    assert found == [[(place, first) for place, first, _ in shard] for shard in names["chunks_of_shards"](tensors, num_servers)]
