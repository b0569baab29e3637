import io
import math
import re

import pytest

from deploy.console import Console, plot
from deploy.measure.table import Table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


METRICS = {"epoch": 2, "loss": 0.51234, "samples_per_s": 1234.5, "lr": 0.001}


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")


def test_without_a_terminal_progress_is_a_line_now_and_then() -> None:
    file, clock = io.StringIO(), Clock()
    with Console(quiet=False, stderr=False, file=file, clock=clock) as console:
        console.start(total_steps=100, epochs=3)
        console.progress(1, METRICS)
        clock.now_s = 11.0
        console.progress(50, METRICS)
        console.progress(51, METRICS)
        console.epoch(1, {"train_loss": 0.5, "validation_loss": 0.25})
    assert file.getvalue().splitlines() == [
        "epoch 2/3 | step 50/100 | loss 0.5123  samples/s 1234  lr 0.001",
        "epoch 1/3 | train_loss 0.5  validation_loss 0.25",
    ]


def test_on_a_terminal_a_bar_shows_step_and_numbers_and_goes_away_at_the_end() -> None:
    file = Terminal()
    console = Console(quiet=False, stderr=False, file=file)
    console.start(total_steps=100, epochs=3)
    console.progress(50, METRICS)
    console.line("above the bar [not markup]")
    console.close()
    console.close()
    text = file.getvalue()
    assert "50/100" in text
    assert "loss 0.5123" in text
    assert "above the bar [not markup]" in text


def test_quiet_shows_nothing() -> None:
    for file in (Terminal(), io.StringIO()):
        with Console(quiet=True, stderr=False, file=file) as console:
            console.start(total_steps=1, epochs=1)
            console.progress(1, METRICS)
            console.line("text")
            console.table(Table("title", ["a"], [["b"]]))
            console.curve("loss", [1.0, 2.0])
        assert file.getvalue() == ""


def test_stderr_leaves_stdout_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(quiet=False, stderr=True) as console:
        console.line("text")
    assert capsys.readouterr() == ("", "text\n")


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()])
def test_a_table_shows_every_cell(file: io.StringIO) -> None:
    with Console(quiet=False, stderr=False, file=file) as console:
        console.table(Table("Seconds", ["", "compute"], [["worker 0", "0.30 s"]]))
    assert all(cell in file.getvalue() for cell in ("Seconds", "compute", "worker 0", "0.30 s"))


def test_long_lines_are_not_folded() -> None:
    file = io.StringIO()
    with Console(quiet=False, stderr=False, file=file) as console:
        console.line("x" * 500)
    assert file.getvalue() == "x" * 500 + "\n"


def test_a_plot_falls_from_its_largest_to_its_smallest_value() -> None:
    first, *rows = plot("loss", [4.0, 2.0, 1.0]).splitlines()
    assert first == "loss"
    assert rows[0] == "  4 |█"
    assert rows[-1] == "  1 |██▁"


@pytest.mark.parametrize("values", [[1.0, 1.0], [math.nan, 1.0, math.inf], [math.nan, math.nan], list(map(float, range(1000)))])
def test_any_values_can_be_plotted(values: list[float]) -> None:
    assert all(len(line) < 80 for line in plot("loss", values).splitlines())
    assert plot("loss", values, unicode=False).isascii()


def test_one_value_makes_no_curve() -> None:
    file = io.StringIO()
    with Console(quiet=False, stderr=False, file=file) as console:
        console.curve("loss", [1.0])
    assert file.getvalue() == ""


def test_a_table_too_wide_for_the_terminal_is_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    wide = Table("Seconds", ["", *(f"column {number}" for number in range(9))], [["worker 0", *"123456789"], ["worker 1", *"abcdefghi"]])
    screen = Terminal()
    Console(quiet=False, stderr=False, file=screen).table(wide)
    lines = [line.split() for line in re.sub("\x1b[^a-zA-Z]*[a-zA-Z]", "", screen.getvalue()).splitlines()]
    assert ["column", "8", "9", "i"] in lines
