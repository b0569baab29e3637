"""The tables at the end of a run: where the seconds and the bytes went."""

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.measure.text import counted, seconds, size
from deploy.measure.verdict import verdict
from deploy.measure.window import BETWEEN, SPANS, TRAFFIC, Window


@dataclass(frozen=True)
class Table:
    """Rows of text, ready to be drawn; the first column names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def transposed(self) -> "Table":
        """The same with a column for every row."""
        return Table(
            self.title,
            ["", *(row[0] for row in self.rows)],
            [list(cells) for cells in zip(self.columns[1:], *(row[1:] for row in self.rows), strict=True)],
        )

    @property
    def upright(self) -> "Table":
        """The same, or transposed if it is wider than it is high."""
        return self if len(self.columns) <= 1 + len(self.rows) else self.transposed()

    @property
    def width(self) -> int:
        """Of the longest line of `plain`, without the title."""
        return max(map(len, self.plain().splitlines()[1:]))

    def plain(self) -> str:
        """For files and pipes: the first column to the left, the others to the right."""
        lines = [list(self.columns), *map(list, self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        texts = []
        for first, *others in lines:
            cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            texts.append("  ".join([first.ljust(widths[0]), *cells]))
        return "\n".join([self.title, *(f"  {text}".rstrip() for text in texts)])


def tables(window: Window) -> list[Table]:
    """Seconds by worker, bytes by shard; nothing if no worker has told of a step."""
    return ([_workers(window)] if window.ranks else []) + ([_shards(window)] if window.bytes else [])


def closing_line(window: Window) -> str:
    """The verdict over the whole run."""
    found = verdict(window)
    shares = ", ".join(f"{part} {share:.0%}" for part, share in sorted(found.shares.items(), key=lambda item: -item[1]) if share >= 0.01)
    if not found.resource:
        return without_verdict(window)
    steps = f"{counted(window.num_steps, 'step')} of {seconds(window.steps['step_s'])}, exposed comm {window.exposed_share:.0%}"
    return f"{steps}{left_out(window)} | bottleneck: {found} | slowest rank: {shares}"


def without_verdict(window: Window) -> str:
    """Why there is nothing to say about the time of a step."""
    if not window.recoveries:
        return "no worker has told of a step"
    ended = counted(len(window.recoveries), "step")
    return f"a process came back in every step that has ended: {ended}, {seconds(sum(window.recoveries.values()))} in all"


def left_out(window: Window) -> str:
    """In brackets, the steps in which a process came back; nothing if there is none."""
    if not window.recoveries:
        return ""
    return f" (without {counted(len(window.recoveries), 'step')} in which a process came back, {seconds(sum(window.recoveries.values()))} in all)"


def _workers(window: Window) -> Table:
    used = [name for name in (*SPANS, *BETWEEN) if any(means[name] for means in window.ranks.values())]
    names = ("step_s", *(name for name in used if name in SPANS), "exposed_s", *(name for name in used if name in BETWEEN))
    rows = [[f"worker {rank}", *(seconds(means[name]) for name in names)] for rank, means in sorted(window.ranks.items())]
    columns = ["", *(name.removesuffix("_s").replace("_", " ") for name in names)]
    if window.num_stages > 1:
        ends = [[size(means["passed_bytes"]), size(window.peak_bytes.get(rank, 0))] for rank, means in sorted(window.ranks.items())]
        title = "Seconds per step, bytes per step to other stages, and peak memory, by worker"
        return Table(title, [*columns, "passed", "peak"], [[*row, *end] for row, end in zip(rows, ends, strict=True)])
    return Table("Seconds per step, by worker", columns, rows)


def _shards(window: Window) -> Table:
    columns = ["", "pushed", "pulled", "wire up", "wire down", "up", "down", "sum", "apply", "wait"]
    sums = dict.fromkeys(TRAFFIC, 0.0)
    rows = []
    for shard, totals in sorted(window.bytes.items()):
        means = window.shards[shard]
        sums = {name: sums[name] + totals[name] for name in TRAFFIC}
        spans = [seconds(means[name]) for name in ("push_s", "pull_s", "aggregate_s", "apply_s", "wait_s")]
        rows.append([f"shard {shard}", *(size(totals[name]) for name in TRAFFIC), *spans])
    rows.append(["total", *(size(sums[name]) for name in TRAFFIC), *[""] * 5])
    return Table(f"Bytes over {counted(window.num_all, 'step')} and seconds per step, by shard", columns, rows)
