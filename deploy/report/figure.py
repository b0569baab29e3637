"""What every figure of the report is made of: plain dicts, as plotly takes them. Pure."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.measure.recorded import Series

MAX_POINTS = 400
"""Of a curve over steps: longer ones are means of neighbours."""
BYTES = {"tickformat": "~s", "ticksuffix": "B"}
"""An axis."""
_PALETTE = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#b07aa1", "#edc948", "#9c755f")


@dataclass(frozen=True)
class Figure:
    """One figure with its heading; `note` says how to read it."""

    key: str
    title: str
    note: str
    traces: list[dict[str, Any]]
    layout: dict[str, Any]


def colour_of(index: int) -> str:
    """The same for the same index."""
    return _PALETTE[index % len(_PALETTE)]


def binned(values: Sequence[float]) -> list[float]:
    """At most MAX_POINTS means of neighbours."""
    if len(values) <= MAX_POINTS:
        return list(values)
    edges = [len(values) * point // MAX_POINTS for point in range(MAX_POINTS + 1)]
    return [statistics.fmean(values[start:end]) for start, end in itertools.pairwise(edges)]


def binning(series: Series) -> str:
    """For the note of a figure over steps."""
    per_point = len(series.steps) / MAX_POINTS
    return f" Each point is the mean of about {per_point:.0f} steps." if per_point > 1 else ""


def rounded(values: Sequence[float]) -> list[float]:
    """As a page needs them."""
    return [round(value, 4) for value in values]
