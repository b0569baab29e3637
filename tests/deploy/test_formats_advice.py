"""When the log says that a push format does not pay."""

from pathlib import Path

import pytest

from deploy.measure.formats import format_advice
from deploy.measure.window import Window
from ps.ledger import ShardTraffic, WorkerRow
from tests.deploy.forked import train

MB = 1_000_000


def window(*, encode_s: float, push_bytes: int, push_s: float = 0.1, link: float | None = None, local: bool = False) -> Window:
    """Two ranks, two shards, three steps; times and bytes are of a rank and a shard."""
    made = Window()
    shards = [ShardTraffic(shard=s, push_bytes=push_bytes, push_s=push_s, encode_s=encode_s, local=local) for s in (0, 1)]
    for step in range(3):
        made.add(step, [WorkerRow(rank=rank, step=step, time_s=0.0, step_s=1.0, shards=shards, link_bytes_per_s=link) for rank in (0, 1)])
    return made


@pytest.mark.parametrize(
    ("options", "pays"),
    [
        # 40 MB saved at 200 MB/s: 0.2 s
        ({"encode_s": 0.09, "push_bytes": 10 * MB}, True),
        ({"encode_s": 0.11, "push_bytes": 10 * MB}, False),
        ({"encode_s": 0.3, "push_bytes": 10 * MB, "link": 12.5 * MB}, True),
        ({"encode_s": 0.3, "push_bytes": 10 * MB, "push_s": 1.0}, True),
        ({"encode_s": 0.001, "push_bytes": 31 * MB}, False),
    ],
)
def test_a_format_pays_if_the_bytes_that_it_saves_would_take_longer_than_encoding(options: dict[str, float], pays: bool) -> None:
    assert (format_advice(window(**options), "int8", [30 * MB] * 2) is None) == pays  # type: ignore[arg-type]


def test_the_sentence_has_the_figures() -> None:
    assert format_advice(window(encode_s=0.3, push_bytes=10 * MB), "int8", [30 * MB] * 2) == (
        'comm.push_format = "int8" does not pay on this link: a rank spends 0.60 s per step on encoding, the 40.0 MB that it saves '
        'would take 0.20 s at 200.0 MB/s: use "fp32"'
    )


def test_on_the_servers_host_nothing_is_saved() -> None:
    assert format_advice(window(encode_s=0.001, push_bytes=10 * MB, local=True), "int8", [30 * MB] * 2) == (
        'comm.push_format = "int8" does not pay on this link: a rank spends 2.0 ms per step on encoding, on one host it saves nothing: use "fp32"'
    )


def test_exact_pushes_and_empty_windows_need_no_advice() -> None:
    assert format_advice(window(encode_s=9.0, push_bytes=10 * MB), "fp32", [30 * MB] * 2) is None
    assert format_advice(Window(), "int8", [30 * MB] * 2) is None


def test_a_run_says_it_once(tmp_path: Path) -> None:
    result = train(tmp_path, "digits", epochs=3, batch_size=128, push_format="int8")
    assert result.error is None
    assert (result.path / "logs" / "driver.log").read_text().count('comm.push_format = "int8" does not pay on this link') == 1
