"""A sweep on one page: what it says in words, plots over its axes, the table."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.config import to_toml
from deploy.files import write_atomic
from deploy.report.figure import Figure
from deploy.report.page import render
from deploy.sweep.grid import Axis, points_of
from deploy.sweep.results import Row
from deploy.sweep.run import Sweep
from deploy.sweep.words import findings, table, values

_TITLES = {
    "samples_per_s": ("Samples per second", "Of all workers together."),
    "step_ms": ("Milliseconds of a step", "Median over the run, without its first steps."),
    "exposed_share": ("Exposed communication", "Part of the step in which communication is not hidden behind compute."),
    "accuracy": ("Validation accuracy", "At the end of the run."),
    "steps_to_target": ("Steps to the target", "Points that never reach it are left out."),
    "gap": ("Generalisation gap", "Validation loss less training loss, both of the final weights in eval mode."),
    "rise": (
        "Flatness",
        "How much the validation loss rises when every weight w is set to w(1 + 0.1 ξ), ξ normal; mean of 8 seeds. Small: the minimum is flat.",
    ),
}


def write_page(wanted: Sweep, rows: Sequence[Row]) -> Path:
    """`sweep.html` in the sweep's folder, anew; says so if not all points are there yet."""
    path = wanted.folder / "sweep.html"
    said = findings(wanted.axes, rows, wanted.target) or ["No point has taken a step."]
    if len(rows) < (num := len(points_of(wanted.axes))):
        said.insert(0, f"{len(rows)} of {num} points so far: the same command goes on with the others")
    text = render(
        "sweep.html.j2",
        figures(wanted.axes, rows),
        name=f"Sweep {wanted.folder.name}",
        path=wanted.folder,
        status="failed" if any(row.error for row in rows) else "finished",
        findings=said,
        tables=[table(wanted.axes, rows)],
        config=to_toml(wanted.base),
    )
    write_atomic(path, text.encode())
    return path


def figures(axes: Sequence[Axis], rows: Sequence[Row]) -> list[Figure]:
    """One for everything that was measured at two points or more; a line for each combination of the other axes.
    Numbers rise along a plot, in whatever order the grid has them."""
    several = [axis for axis in axes if len(axis.values) > 1]
    if not several:
        return []
    x = next((axis for axis in several if axis.name == "batch"), several[0])
    ticks = sorted(x.values) if all(isinstance(value, (int, float)) for value in x.values) else x.values
    others = [axis.name for axis in several if axis is not x]
    found = []
    for key, (title, note) in _TITLES.items():
        lines: dict[str, dict[str, list[Any]]] = {}
        for row in sorted(rows, key=lambda row: ticks.index(row.point[x.name])):
            if (value := values(row)[key]) is not None and math.isfinite(value):
                name = " ".join(f"{other}={row.point[other]}" for other in others) or title
                line = lines.setdefault(name, {"x": [], "y": []})
                line["x"].append(str(row.point[x.name]))
                line["y"].append(value)
        if sum(len(line["x"]) for line in lines.values()) >= 2:
            traces = [{"type": "scatter", "mode": "lines+markers", "name": name, **line} for name, line in lines.items()]
            order = {"title": {"text": x.name}, "type": "category", "categoryorder": "array", "categoryarray": [str(value) for value in ticks]}
            found.append(
                Figure(
                    key,
                    title,
                    note,
                    traces,
                    {"xaxis": order, "yaxis": {"rangemode": "normal" if key == "accuracy" else "tozero"}, "showlegend": len(traces) > 1},
                )
            )
    return found
