"""`pserver diff`: what changed, and what is only noise."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.cli.main import main
from deploy.config import Config, RunConfig, TaskConfig
from deploy.measure.difference import conclusions, difference, steady_steps
from deploy.measure.ledger_file import LedgerStep
from deploy.measure.recorded import Recorded, read_run
from ps.config import CommConfig
from tests.deploy.ledgers import history_of, step_of, write_run
from workers.config import TrainConfig


def config(storage: Path, **comm: str) -> Config:
    train = TrainConfig(batch_size=32)
    return Config(task=TaskConfig(name="digits"), train=train, comm=CommConfig(**comm), run=RunConfig(storage_path=str(storage)))  # type: ignore[arg-type]


def waiting(step: LedgerStep, extra_s: float) -> LedgerStep:
    """The same step with so much more time for the link, its bytes halved."""
    workers = [
        replace(
            row,
            step_s=row.step_s + extra_s,
            receive_s=row.receive_s + extra_s,
            shards=[replace(traffic, push_bytes=traffic.push_bytes // 2) for traffic in row.shards],
        )
        for row in step.workers
    ]
    return replace(step, workers=workers)


def recorded(storage: Path, name: str, extra_s: float = 0.0, *validation: float, sha: str = "a", **comm: str) -> Recorded:
    steps = [waiting(step_of(step), extra_s + step % 3 * 1e-3) for step in range(20)]
    history = history_of(*validation)
    made = write_run(storage, name, steps, history=history, config=config(storage, **comm), status="finished", wall_s=1.0, params_sha256=sha)
    return read_run(made)


def test_a_run_that_failed_is_told_as_such_and_its_bytes_are_per_step_that_has_ended(tmp_path: Path) -> None:
    whole = recorded(tmp_path, "whole")
    steps = [waiting(step_of(step), 0.0) for step in range(5)]
    steps[-1] = replace(steps[-1], workers=[])
    told = {"status": "failed", "error_type": "ProcessDied", "error": "server 0 was killed", "wall_s": 3.0}
    failed = read_run(write_run(tmp_path, "failed", steps, config=config(tmp_path), **told))
    text = difference(whole, failed)
    assert text.splitlines()[0] == "failed has failed after 4 steps and 3.00 s: ProcessDied: server 0 was killed"
    assert "push 3.0 MB 3.0 MB +0%" in " ".join(text.split())
    lost = read_run(write_run(tmp_path, "lost", steps, config=config(tmp_path)))
    assert difference(whole, lost).splitlines()[0] == "lost is without an end: it goes on, or its driver was killed (4 steps in its ledger)"


def test_what_changed_is_named_with_its_figures(tmp_path: Path) -> None:
    first, second = recorded(tmp_path, "one", 0.1, 0.9, 0.5), recorded(tmp_path, "two", 0.0, 0.9, 0.6, 0.4, sha="b", push_format="bf16")
    text = difference(first, second)
    words = " ".join(text.split())
    for said in (
        "a step of two takes 0.10 s, of one 0.20 s: -50%; receive -0.10 s",
        "one is limited by ",
        "the final parameters are different",
        "comm.push_format fp32 bf16",
        "receive 0.11 s 6.0 ms -0.10 s -94%",
        "push 3.0 MB 3.0 MB +0%",
        "validation_loss at step 8 0.5 0.6",
        "validation_loss at the end 0.5 0.4",
        "lowest validation_loss 0.5 0.4",
    ):
        assert said in words
    assert "run.name" not in text


def test_steps_that_differ_no_more_than_among_themselves_are_called_noise(tmp_path: Path) -> None:
    first, second = recorded(tmp_path, "one", 0.0), recorded(tmp_path, "two", 0.0005)
    said = conclusions(first, second, ["one", "two"])
    assert said[0].endswith("no more than steps of one run differ among themselves")
    assert said[-1] == "the final parameters are equal, bit for bit"


def test_the_same_run_differs_in_nothing(tmp_path: Path) -> None:
    run = recorded(tmp_path, "one", 0.0, 0.9)
    assert "Configuration" not in difference(run, run)


def test_a_run_that_failed_before_its_first_step_is_compared_as_far_as_it_goes(tmp_path: Path) -> None:
    failed = read_run(
        write_run(tmp_path, "failed", [], config=config(tmp_path, push_format="bf16"), status="failed", error="x", error_type="NonFinite", wall_s=1.0)
    )
    text = difference(recorded(tmp_path, "one", 0.0, 0.9), failed)
    assert text.splitlines()[:2] == ["failed has failed after 0 steps and 1.00 s: NonFinite: x", "no step to compare in failed"]
    assert "comm.push_format" in text and not any(title in text for title in ("Seconds", "Bytes per step", "Metrics"))


def test_a_last_step_that_not_all_ranks_have_told_of_makes_no_bytes_fewer(tmp_path: Path) -> None:
    steps = [step_of(step) for step in range(4)]
    whole, cut = (
        read_run(write_run(tmp_path, name, [*steps[:3], last]))
        for name, last in (("whole", steps[3]), ("cut", replace(steps[3], workers=steps[3].workers[:1])))
    )
    assert [line.split()[-1] for line in difference(whole, cut).splitlines() if line.split()[:1] in (["push"], ["pull"])] == ["+0%"] * 4


def test_versions_are_compared_only_where_both_are_known(tmp_path: Path) -> None:
    first = recorded(tmp_path, "one")
    killed = read_run(write_run(tmp_path, "killed", [step_of(0)], config=config(tmp_path)))
    assert "version of" not in difference(first, killed)
    assert first.summary
    older = replace(first, summary={**first.summary, "versions": {**first.summary["versions"], "torch": "2.8.0"}})
    assert "version of torch" in difference(first, older)


def test_the_beginning_of_a_run_is_left_out() -> None:
    assert steady_steps([9.0, 1.0, 2.0]) == [1.0, 2.0]
    assert steady_steps([9.0, *[1.0] * 39]) == [1.0] * 36
    assert steady_steps([9.0]) == [9.0]
    assert steady_steps([0.0]) == []


def test_the_command_compares_with_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    recorded(Path("runs"), "old")
    recorded(Path("runs"), "z-new", push_format="bf16")
    with pytest.raises(SystemExit) as ended:
        main(["diff", "old"])
    assert ended.value.code == 0
    assert "a step of z-new takes" in capsys.readouterr().out


def test_what_was_simulated_is_told_where_it_differs(tmp_path: Path) -> None:
    texts = {"one": "simulated: 2 hosts, 0.5 CPUs", "two": None, "three": None}
    one, two, three = (
        read_run(write_run(tmp_path, name, [step_of(step) for step in range(4)], status="finished", wall_s=1.0, simulated=text))
        for name, text in texts.items()
    )
    assert {"one was simulated: 2 hosts, 0.5 CPUs", "two was not simulated"} <= set(conclusions(one, two, ["one", "two"]))
    assert not any("simulated" in line for line in conclusions(two, three, ["two", "three"]))
