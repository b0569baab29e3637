"""What a sweep has found, point by point, in a folder that outlives it; and what is read out of one run."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deploy.files import append_line
from deploy.measure.recorded import Recorded
from deploy.measure.verdict import verdict
from ps.errors import ConfigError

WARM_UP = 2
"""Steps of a run whose length does not count, if it has more."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One point; None where there is no such figure."""

    point: Mapping[str, Any]
    """Values by axis."""
    run: str
    """Name of its run directory."""
    error: str | None = None
    """Why its run failed; None if it finished."""
    reference_batch_size: int | None = None
    """Samples of a step that the batch rule has counted from; None: the grid gave it no rule."""
    simulated: str | None = None
    steps: int = 0
    step_s: float | None = None
    """Median."""
    samples_per_s: float | None = None
    exposed_share: float | None = None
    bottleneck: str = ""
    push_bytes: float | None = None
    """Payload of all workers in a step."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """At the end of the run."""
    steps_to_target: int | None = None
    train_loss: float | None = None
    """Of the final weights, as the three that follow."""
    validation_loss: float | None = None
    gap: float | None = None
    rise: float | None = None


class Results:
    """`results.jsonl` in the sweep's folder: one line per point that has ended, the last one counts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "results.jsonl"

    def read(self) -> dict[str, Row]:
        """Rows by the key of their points. A last line that was cut off does not count. Raises ConfigError."""
        found: dict[str, Row] = {}
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                row = Row(**json.loads(line))
                found[json.dumps(dict(sorted(row.point.items())))] = row
            except (ValueError, TypeError, AttributeError) as error:
                if number == len(lines) and not line.endswith("\n"):
                    break
                raise ConfigError(f"{self._path}, line {number} is no result of a sweep: remove the line, or the folder") from error
        return found

    def add(self, row: Row) -> None:
        """A cut line of a sweep that was killed is ended first."""
        if self._path.exists() and not (text := self._path.read_bytes()).endswith(b"\n") and text:
            self._path.write_bytes(text[: text.rfind(b"\n") + 1])
        append_line(self._path, asdict(row))


def measured(recorded: Recorded) -> dict[str, Any]:
    """Fields of a Row from a finished run."""
    window = recorded.window
    lengths = [length for length in recorded.series.step_s if length]
    step_s = statistics.median(lengths[WARM_UP:] or lengths) if lengths else None
    samples = sum(means["samples"] for means in window.ranks.values())
    return {
        "steps": window.num_all,
        "step_s": step_s,
        "samples_per_s": samples / step_s if step_s else None,
        "exposed_share": window.exposed_share,
        "bottleneck": str(verdict(window)),
        "push_bytes": sum(means["push_bytes"] for means in window.shards.values()),
        "metrics": dict((recorded.summary or {}).get("metrics", {})),
        "simulated": (recorded.summary or {}).get("simulated"),
    }
