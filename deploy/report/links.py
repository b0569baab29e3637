"""The report's figure of how much links carry. Pure."""

import itertools
from collections.abc import Sequence
from typing import Any

from deploy.measure.recorded import Series
from deploy.measure.window import Window
from deploy.report.figure import BYTES, Figure, binned, binning, colour_of, rounded

_ONE_RANK = "#8a8f98"


def link_use(series: Series, window: Window) -> Figure:
    """Payload over the time from one step's end to the next, where that is known: what leaves hosts, or all of it if nothing does. Of workers,
    the one with the thinnest link."""
    away = {shard: 1 - window.shards[shard]["local"] for shard in (*series.ingress, *series.egress)}
    is_used = any(away.values())
    known = [number for number, length_s in enumerate(series.step_s) if length_s]
    steps, lengths_s = (binned([values[number] for number in known]) for values in (series.steps, series.step_s))
    traces: list[dict[str, Any]] = []

    def line(name: str, of: str, dash: str, values: Sequence[int], part: float = 1.0) -> None:
        sizes = binned([values[number] for number in known])
        rates = rounded([part * num_bytes / length_s for num_bytes, length_s in zip(sizes, lengths_s, strict=True)])
        traces.append({"type": "scatter", "mode": "lines", "name": name, "x": steps, "y": rates, "line": {"color": of, "dash": dash}})

    def limit(name: str, of: str, rate: float) -> None:
        ends = {"x": [steps[0], steps[-1]], "y": [rate] * 2}
        traces.append({"type": "scatter", "mode": "lines", "name": f"{name}'s link", **ends, "line": {"color": of, "dash": "dash"}})

    for way, ways, dash in (("in", series.ingress, "solid"), ("out", series.egress, "dot")):
        for shard, values in sorted(ways.items()):
            line(f"shard {shard} {way}", colour_of(shard), dash, values, away[shard] if is_used else 1.0)
    for shard, rate in sorted(window.links.items()):
        if rate:
            limit(f"shard {shard}", colour_of(shard), rate)
    thinnest = {rank: rate for rank, rate in window.rank_links.items() if rate and rate == window.rank_link and is_used}
    for rank, rate in itertools.islice(thinnest.items(), 1):
        line(f"{window.name(rank)} up", _ONE_RANK, "solid", series.up[rank])
        line(f"{window.name(rank)} down", _ONE_RANK, "dot", series.down[rank])
        limit(window.name(rank), _ONE_RANK, rate)
    layout = {"xaxis": {"title": {"text": "step"}}, "yaxis": {**BYTES, "ticksuffix": "B/s", "rangemode": "tozero"}}
    what = "Payload of each shard" + (" and of the worker with the thinnest link" if thinnest else "")
    what += "" if is_used else ", none of which leaves its host,"
    what += " but for workers on its own host," if is_used and min(away.values()) < 1 else ""
    note = f"{what} over the length of the step, both ways; dashes: the rate its link is shaped to, where that is known."
    return Figure("links", "Link use", note + binning(series), traces, layout)
