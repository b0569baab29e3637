"""`pserver top`: follows a ledger that grows, says how a run stands, ends with it."""

import io
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from deploy.cli.main import main
from deploy.measure.ledger_file import LedgerTail
from deploy.rundir import RunDirectory
from deploy.top import Top, watch
from ps.errors import ConfigError
from tests.deploy.ledgers import BEGIN_S, history_of, step_of, write_run


@pytest.fixture
def lines(tmp_path: Path) -> list[bytes]:
    """Of a ledger of twenty steps."""
    return write_run(tmp_path, "source", [step_of(step) for step in range(20)]).comm.read_bytes().splitlines(keepends=True)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """One that goes on and has no step yet."""
    return write_run(tmp_path, "living", [])


def shown(top: Top) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(top.view(None), soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_tail_gives_every_line_once_and_never_half_of_one(tmp_path: Path, lines: list[bytes]) -> None:
    ledger = tmp_path / "comm.jsonl"
    tail = LedgerTail(ledger, last_bytes=1 << 20)
    assert tail.poll() == []
    whole = b"".join(lines)
    found, at = [], 0
    for size in (len(lines[0]) + 10, 5, len(whole)):
        with ledger.open("ab") as file:
            file.write(whole[at : at + size])
        at += size
        found.append([step.step for step in tail.poll()])
    assert found == [[0], [], list(range(1, 20))]


def test_of_a_long_ledger_only_the_end_is_read(tmp_path: Path, lines: list[bytes]) -> None:
    ledger = tmp_path / "comm.jsonl"
    ledger.write_bytes(b"".join(lines))
    tail = LedgerTail(ledger, last_bytes=len(lines[-1]) + len(lines[-2]) + 7)
    assert [step.step for step in tail.poll()] == [18, 19]


def test_a_ledger_that_a_resumed_run_has_cut_is_read_anew(tmp_path: Path, lines: list[bytes]) -> None:
    ledger = tmp_path / "comm.jsonl"
    ledger.write_bytes(b"".join(lines) + b'{"step"')
    tail = LedgerTail(ledger, last_bytes=1 << 20)
    assert len(tail.poll()) == 20
    ledger.write_bytes(b"".join(lines[:5]))
    assert [step.step for step in tail.poll()] == [0, 1, 2, 3, 4]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    ledger = tmp_path / "comm.jsonl"
    ledger.write_text("{}\n")
    with pytest.raises(ConfigError, match="is no line of the ledger"):
        LedgerTail(ledger, last_bytes=100).poll()


def test_a_run_that_goes_on_is_shown_with_its_rates_and_its_bottleneck(run: RunDirectory, lines: list[bytes]) -> None:
    top = Top(run, clock=lambda: BEGIN_S + 2.5)
    run.comm.write_bytes(b"".join(lines))
    run.append_metrics(history_of(0.5)[0])
    assert top.poll()
    text = shown(top)
    assert "run living | goes on | 10 steps/s, 640 samples/s | loss 0.1" in text
    assert "epoch 1, step 4 | train_loss 2  validation_loss 0.5" in text
    assert "step 20 | 0.10 s | exposed comm 50% | bottleneck: compute" in text
    assert "worker 1" in text and "shard 1" in text


@pytest.mark.parametrize(("steps", "silent_s"), [(0, 60.0), (20, 58.0)], ids=["before the first step", "later"])
def test_a_run_that_stands_still_is_named(steps: int, silent_s: float, run: RunDirectory, lines: list[bytes]) -> None:
    now_s = BEGIN_S
    top = Top(run, clock=lambda: now_s)
    run.comm.write_bytes(b"".join(lines[:steps]))
    top.poll()
    now_s = BEGIN_S + 60.0
    assert f"no step for {silent_s:.2f} s: pserver doctor --run living says who waits for whom" in shown(top)


def test_a_step_that_only_servers_have_told_of_has_not_ended(run: RunDirectory, lines: list[bytes]) -> None:
    told = json.loads(lines[-1])
    told["rows"] = [row for row in told["rows"] if row["kind"] == "server"]
    run.comm.write_bytes(b"".join([*lines[:-1], json.dumps(told).encode(), b"\n"]))
    top = Top(run, clock=lambda: BEGIN_S + 2.5)
    top.poll()
    assert "step 19 | 0.10 s" in shown(top)


def test_a_run_that_failed_before_a_worker_told_of_a_step_says_so(run: RunDirectory, lines: list[bytes]) -> None:
    told = json.loads(lines[0])
    told["rows"] = [row for row in told["rows"] if row["kind"] == "server"]
    run.comm.write_text(json.dumps(told) + "\n")
    run.write_summary({"status": "failed", "error_type": "NonFinite", "error": "loss is nan at step 1 on rank 0"})
    top = Top(run)
    assert not top.poll()
    assert "run living | failed\nNonFinite: loss is nan at step 1 on rank 0\nno worker has told of a step\n" in shown(top)


def test_a_run_whose_driver_was_killed_is_not_watched_any_longer(run: RunDirectory, lines: list[bytes], dead_pid: int) -> None:
    run.comm.write_bytes(b"".join(lines))
    (run.path / ".lock").write_text(f"{dead_pid} on {socket.gethostname()}")
    top = Top(run, clock=lambda: BEGIN_S + 60.0)
    assert not top.poll()
    assert "run living | its driver was killed: the last step ended 58.00 s ago | " in shown(top)


def test_on_a_terminal_it_is_drawn_until_the_run_ends(run: RunDirectory, lines: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    done: list[Callable[[], object]] = [
        lambda: run.comm.write_bytes(b"".join(lines[:10])),
        lambda: run.comm.write_bytes(b"".join(lines)),
        lambda: run.write_summary({"status": "failed", "error_type": "WorkerFailed", "error": "rank 0: boom"}),
    ]
    console = Console(file=io.StringIO(), force_terminal=True, width=90, height=60)
    watch(run, console, pause=lambda _: done.pop(0)() and None)
    assert done == []
    assert isinstance(console.file, io.StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    assert "step 10 |" in text and "step 20 |" in text
    last = text.rpartition("run living")[2]
    assert re.match(r" \| failed \| [^\n]*\n *WorkerFailed: rank 0: boom\b", last)
    assert re.search(r"barrier wait +10.0 ms +0\s", last)  # turned, since the terminal is narrow


def test_elsewhere_it_is_printed_once(run: RunDirectory, lines: list[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    run.comm.write_bytes(b"".join(lines))
    with pytest.raises(SystemExit) as ended:
        main(["top", str(run.path)])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("run living | no step for") and "\x1b" not in text
    assert "Seconds per step, by worker" in text
