"""report.html: what it says of whole, failed and repaired runs, and that a browser draws all of it."""

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deploy.cli.main import main
from deploy.measure.ledger_file import LedgerStep
from deploy.measure.recorded import read_run
from deploy.measure.verdict import log_line
from deploy.measure.window import Window
from deploy.report import words
from deploy.report.figures import figures
from deploy.report.page import page, write_report
from deploy.rundir import RunDirectory
from ps.ledger import WorkerRow
from tests.deploy.ledgers import MB, history_of, step_of, write_run
from tests.deploy.reported import DEATH, by_key

ODD = "</script><script>console.error('run')</script>"


def text_of(run: RunDirectory) -> str:
    """The page as it is read, without its scripts."""
    body = re.sub(r"(?s)<(script|style).*?</\1>", "", page(read_run(run)))
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_the_page_says_how_it_ended_what_limits_it_and_what_would_help(whole_run: RunDirectory) -> None:
    text = text_of(whole_run)
    for said in (
        "The run has finished after 12 steps",
        "simulated: 3 workers and 2 servers on 5 hosts",
        "What limits it: compute 50.0 ms of 0.10 s",
        "Without any compute a step would take at least",
        "in place of 0.10 s (50% less at most)",
        "worker 1 was killed by SIGKILL at step 3; its successor was there after 4.00 s.",
        "Validation loss turns up after epoch 2, where it is 0.5; at the end it is 0.8.",
        "108.0 MB pushed and 108.0 MB pulled in 12 steps",
        "torch 2.",
        "num_workers = 3",
        "params_sha256 5b6b5b0b",
    ):
        assert said in text


def recovering(step: LedgerStep) -> LedgerStep:
    """The same with rank 1 killed and back after 4 s."""
    rows = {0: {"step_s": 4.1, "barrier_wait_s": 4.0}, 1: {"rejoined": True}}
    return replace(step, workers=[replace(row, **rows.get(row.rank, {})) for row in step.workers])  # type: ignore[arg-type]


def test_a_step_in_which_a_process_came_back_is_in_the_bytes_but_in_no_mean(tmp_path: Path) -> None:
    steps = [recovering(step_of(step)) if step == 3 else step_of(step) for step in range(12)]
    run = write_run(tmp_path, "back", steps, status="finished", wall_s=6.0, failures=[DEATH])
    text, drawn = text_of(run), by_key(run)
    assert "A step takes 0.10 s (without 1 step in which a process came back, 4.10 s in all)" in text
    assert "What limits it: compute 50.0 ms of 0.10 s" in text
    assert "72.0 MB pushed and 72.0 MB pulled in 12 steps" in text and "Bytes over 12 steps" in text
    assert drawn["waits"].traces[0]["y"] == pytest.approx([10.0])
    time = drawn["time"]
    assert time.traces[0]["x"] == [step for step in range(12) if step != 3]
    assert (time.layout["shapes"][0]["x0"], time.layout["annotations"][0]["text"]) == (3, "4.10 s")
    assert by_key(run)["gantt"].title != "One step: step 3"
    assert (run.read_summary() or {})["comm"]["steps"] == 12


def test_a_line_of_the_log_says_that_it_knows_steps_with_recoveries_only() -> None:
    window = Window()
    window.add(3, recovering(step_of(3)).rows)
    assert log_line(4, window) == "step 4 | a process came back in 1 step"


@pytest.mark.parametrize(
    ("validation", "said"),
    [
        pytest.param((0.9, 0.5, 0.8), "turns up after epoch 2", id="it turns up"),
        pytest.param((0.9, 0.5, 0.4), "was lowest at the end", id="it falls to the end"),
        pytest.param((0.9,), "There was one validation", id="one validation"),
        pytest.param((), "No epoch has ended.", id="no epoch"),
    ],
)
def test_the_losses_are_put_into_words(validation: tuple[float, ...], said: str) -> None:
    assert said in words.curves(history_of(*validation))


def test_without_validation_the_page_says_so() -> None:
    assert words.curves([{"epoch": 1, "step": 4, "train_loss": 1.0}]) == "There was no validation."
    assert words.turning_point([{"epoch": 1, "step": 4, "validation_loss": None}]) is None


def test_a_slow_rank_is_among_what_would_help(tmp_path: Path) -> None:
    def slowed(row: WorkerRow) -> WorkerRow:
        return (
            replace(row, forward_s=0.0, backward_s=0.25, step_s=0.3) if row.rank == 1 else replace(row, barrier_wait_s=0.2, step_s=0.3, waits_for=1)
        )

    steps = [replace(step, workers=[slowed(row) for row in step.workers]) for step in map(step_of, range(5))]
    said = words.what_ifs(read_run(write_run(tmp_path, "slow", steps)).window)
    assert "With rank 1 as quick as the others a step would take at least 0.09 s in place of 0.30 s" in " ".join(said)


def test_a_run_that_failed_before_its_first_step_has_a_page_without_figures(tmp_path: Path) -> None:
    run = write_run(tmp_path, "failed", [], status="failed", error="rank 0: boom", error_type="WorkerFailed", wall_s=1.0)
    text = text_of(run)
    assert "The run has failed after 0 steps and 1.00 s: WorkerFailed: rank 0: boom." in text
    assert "No worker has told of a step" in text
    assert figures(read_run(run)) == []


def test_a_run_that_failed_in_a_step_that_only_servers_have_told_of_has_no_empty_tables(tmp_path: Path) -> None:
    steps = [replace(step, workers=[], servers=[replace(row, waits_for=0) for row in step.servers]) for step in map(step_of, range(2))]
    run = write_run(tmp_path, "failed", steps, status="failed", error="loss is nan", error_type="NonFinite", wall_s=1.0)
    text = text_of(run)
    assert "Seconds per step" not in text and "Bytes over" not in text


def test_a_step_that_only_servers_have_told_of_counts_neither_in_the_report_nor_in_the_summary(tmp_path: Path) -> None:
    steps = [step_of(0), step_of(1), replace(step_of(2), workers=[])]
    run = write_run(tmp_path, "failed", steps, status="failed", error="server 0 was killed", error_type="ProcessDied", wall_s=1.0)
    summary = run.read_summary()
    assert summary and summary["comm"]["steps"] == 2
    text = text_of(run)
    assert "The run has failed after 2 steps" in text and "Bytes over 2 steps" in text


def test_a_run_whose_driver_was_killed_is_shown_as_far_as_its_ledger_goes(tmp_path: Path) -> None:
    run = write_run(tmp_path, "killed", [step_of(step) for step in range(3)])
    run.metrics.write_text('{"epoch":1,"step":2,"train_loss":1.0}\n{"epoch":2,"st')
    assert "goes on, or its driver was killed (3 steps in its ledger)." in text_of(run)
    assert [row["epoch"] for row in read_run(run).history] == [1]


def test_nothing_that_a_run_has_written_becomes_html(tmp_path: Path) -> None:
    run = write_run(tmp_path, "odd", [step_of(0)], history=[{"epoch": 1, "step": 1, ODD: 1.0}], status="failed", error=ODD, wall_s=1.0)
    run.write_config(f"# {ODD}")
    save_file({ODD: torch.zeros(2)}, run.weights("last"))
    assert ODD not in page(read_run(run))


def test_the_command_writes_the_newest_runs_report(
    whole_run: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "runs").symlink_to(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["report"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "runs/whole/report.html\n"
    assert whole_run.report.stat().st_size > MB  # plotly is in it


@pytest.mark.parametrize("damaged", ["summary", "metrics"])
def test_a_damaged_file_is_named(damaged: str, whole_run: RunDirectory) -> None:
    getattr(whole_run, damaged).write_text("[]\n" if damaged == "summary" else "7\n")
    with pytest.raises(Exception, match=f"{damaged}.jsonl? is damaged"):
        read_run(whole_run)


@pytest.mark.chromium
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("scheme", "ink"), [(0, "rgb(230, 233, 239)"), (1, "rgb(29, 35, 48)")], ids=["dark", "light"])
def test_a_browser_draws_every_figure_without_a_word_of_complaint(scheme: int, ink: str, whole_run: RunDirectory, tmp_path: Path) -> None:
    """With odd names, which must not run; in the reader's colours."""
    save_file({ODD: torch.zeros(2)}, whole_run.weights("last"))
    document, said = opened(write_report(whole_run), f"--blink-settings=preferredColorScheme={scheme}", tmp_path)
    assert said == []
    drawn = by_key(whole_run)
    assert len(drawn) == 7
    for key in drawn:
        figure = document.partition(f'id="{key}"')[2].partition("<h2")[0]
        assert 'class="main-svg"' in figure
        assert f"fill: {ink}" in figure
    assert_fetches_nothing(document)


@pytest.mark.chromium
@pytest.mark.timeout(180)
def test_a_browser_shows_a_failed_run_without_a_word_of_complaint(tmp_path: Path) -> None:
    run = write_run(tmp_path, "failed", [], status="failed", error=ODD, error_type="WorkerFailed", wall_s=1.0)
    document, said = opened(write_report(run), "--blink-settings=preferredColorScheme=1", tmp_path)
    assert said == []
    assert "console.error" in document  # as text


def opened(file: Path, option: str, home: Path) -> tuple[str, list[str]]:
    """The document after its scripts have run, and what they have said on the console; the browser's own pages are not ours."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=10000", option]
    command = ["chromium", *options, f"--user-data-dir={home / 'browser'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=150)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line and "source: chrome://" not in line]


def assert_fetches_nothing(document: str) -> None:
    """Everything is on the page itself."""
    markup = re.sub(r"(?s)<script.*?</script>", "", document)
    assert not re.findall(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["'](?!data:)""", markup)
