"""The report's figures as plotly takes them: plain dicts. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deploy.measure.ledger_file import LedgerStep
from deploy.measure.recorded import Recorded, Series, Tensor
from deploy.measure.text import seconds, size
from deploy.measure.window import SPANS, Window
from deploy.report.figure import BYTES, Figure, binned, binning, colour_of
from deploy.report.links import link_use
from deploy.report.words import turning_point

USUAL, FAR = 0.98, 2.0
"""Part of the steps that a figure of their time must show, and how many times as long others are that it does not."""
MAX_MARKS = 5
"""Recoveries that say how long they took."""
MAX_BARS = 24
"""Workers in the Gantt chart, and tensors."""
COLOURS = {
    "data_wait_s": "#b07aa1",
    "forward_s": "#4e79a7",
    "backward_s": "#2f5d8a",
    "bubble_s": "#d7b5a6",
    "copy_s": "#76b7b2",
    "encode_s": "#59a14f",
    "send_s": "#edc948",
    "barrier_wait_s": "#e15759",
    "apply_s": "#f28e2b",
    "receive_s": "#ff9da7",
    "install_s": "#9c755f",
    "checkpoint_s": "#d4a6c8",
    "ledger_s": "#5f6b6d",
    "other_s": "#8a8f98",
}
_SERVER_PARTS = {"contributions": "#86bcb6", "wait for the last rank": "#e15759", "last sums and updates": "#f28e2b"}


def figures(recorded: Recorded) -> list[Figure]:
    """Those for which the run has figures, in the page's order."""
    window, series = recorded.window, recorded.series
    found = []
    if step := recorded.typical_step():
        found.append(gantt(step))
    if any(series.step_s):
        found.append(time_per_step(series, window.recoveries))
        found.append(link_use(series, window))
    if series.traffic:
        found.append(traffic_matrix(series))
    if series.waits:
        found.append(barrier_waits(series, window))
    if recorded.tensors:
        found.append(tensors(recorded.tensors))
    if recorded.history:
        found.append(losses(recorded.history))
    return found


def gantt(step: LedgerStep) -> Figure:
    """Bars from the beginning of the first worker's step on, in milliseconds."""
    workers = step.workers[:MAX_BARS]
    origin = min(row.time_s - row.step_s for row in step.workers)
    bars: dict[tuple[str, str], dict[str, list[Any]]] = {}

    def bar(name: str, colour: str, who: str, start_s: float, length_s: float) -> None:
        its = bars.setdefault((name, colour), {"y": [], "base": [], "x": []})
        its["y"].append(who)
        its["base"].append(round(start_s * 1e3, 3))
        its["x"].append(round(length_s * 1e3, 3))

    for worker in workers:
        at = worker.time_s - worker.step_s - origin
        for span in SPANS:
            length_s = max(0.0, getattr(worker, span))
            bar(_words(span), COLOURS[span], f"worker {worker.rank}", at, length_s)
            at += length_s
    for server in step.servers[:MAX_BARS]:
        if server.first_s is None or server.complete_s is None:
            continue
        wait_s = min(server.wait_s, server.first_s - server.complete_s)
        at = server.time_s - server.first_s - origin
        for (part, colour), length_s in zip(
            _SERVER_PARTS.items(), (server.first_s - server.complete_s - wait_s, wait_s, server.complete_s), strict=True
        ):
            bar(part, colour, f"server {server.shard}", at, length_s)
            at += length_s
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "marker": {"color": colour},
            "hovertemplate": "%{y}, " + name + ": %{x} ms<extra></extra>",
            **its,
        }
        for (name, colour), its in bars.items()
        if any(its["x"])
    ]
    left_out = len(step.workers) - len(workers)
    note = "A step of median length. The order of a worker's spans within the step is fixed: their lengths are measured, their places are not. "
    return Figure(
        "gantt",
        f"One step: step {step.step}",
        note + "Servers' bars stand where they were measured." + (f" {left_out} more workers are not drawn." if left_out else ""),
        traces,
        {
            "barmode": "overlay",
            "height": 140 + 34 * len({who for its in bars.values() for who in its["y"]}),
            "xaxis": {"title": {"text": "ms"}},
            "yaxis": {"autorange": "reversed", "type": "category"},
        },
    )


def time_per_step(series: Series, recoveries: Mapping[int, float]) -> Figure:
    """Spans of the mean rank, stacked."""
    known = [number for number, length_s in enumerate(series.step_s) if length_s]
    steps = binned([series.steps[number] for number in known])
    traces = [
        {
            "type": "scatter",
            "mode": "none",
            "stackgroup": "spans",
            "name": _words(span),
            "fillcolor": COLOURS[span],
            "x": steps,
            "y": [round(value * 1e3, 3) for value in binned([values[number] for number in known])],
        }
        for span, values in series.spans.items()
        if any(values)
    ]
    layout: dict[str, Any] = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "ms"}, "rangemode": "tozero"}}
    note = "Where the mean worker's time went."
    lengths_s = binned([series.step_s[number] for number in known])
    if max(lengths_s) > FAR * _usual(lengths_s):
        layout["yaxis"]["range"] = [0, 1.2e3 * _usual(lengths_s)]
        note += f" The longest steps, up to {seconds(max(lengths_s))}, do not fit."
    if recoveries:
        shown = sorted(recoveries, key=lambda step: -recoveries[step])[:MAX_MARKS]
        note += " Dotted: steps in which a process came back, which are drawn without their time; the longest ones say how long they were."
        layout["shapes"] = [_mark(step) for step in recoveries]
        layout["annotations"] = [_label(step, seconds(recoveries[step]), series.steps, row) for row, step in enumerate(shown)]
    return Figure("time", "Time per step", note + binning(series), traces, layout)


def _usual(lengths_s: Sequence[float]) -> float:
    """What all but a few of them are no longer than."""
    return sorted(lengths_s)[round(USUAL * (len(lengths_s) - 1))]


def _mark(step: float) -> dict[str, Any]:
    """A dotted line across the figure."""
    return {"type": "line", "x0": step, "x1": step, "yref": "paper", "y0": 0, "y1": 1, "line": {"dash": "dot", "color": "#e15759"}}


def _label(step: float, text: str, steps: Sequence[float], row: int = 0) -> dict[str, Any]:
    """Beside its mark, on the side where there is more room; `row`: from the top."""
    side = "left" if step < (steps[0] + steps[-1]) / 2 else "right"
    return {"x": step, "y": 1 - 0.07 * row, "yref": "paper", "yanchor": "top", "xanchor": side, "showarrow": False, "text": text}


def traffic_matrix(series: Series) -> Figure:
    """Worker by shard, bytes of the run, both ways together."""
    ranks, shards = sorted({rank for rank, _ in series.traffic}), sorted({shard for _, shard in series.traffic})
    sums = [[series.traffic.get((rank, shard), {}) for shard in shards] for rank in ranks]
    total = [[its.get("push_bytes", 0) + its.get("pull_bytes", 0) for its in row] for row in sums]
    small = len(ranks) * len(shards) <= 64
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": [f"shard {shard}" for shard in shards],
        "y": [f"worker {rank}" for rank in ranks],
        "z": total,
        "customdata": [[[its.get("push_bytes", 0), its.get("pull_bytes", 0)] for its in row] for row in sums],
        "hovertemplate": "%{y}, %{x}: pushed %{customdata[0]:.4~s}B, pulled %{customdata[1]:.4~s}B<extra></extra>",
        "zmin": 0,
        "zmax": max(map(max, total)),
        "colorbar": BYTES,
    }
    if small:
        trace |= {"texttemplate": "%{z:.3~s}B", "xgap": 2, "ygap": 2}
    layout = {"height": 160 + 32 * min(len(ranks), MAX_BARS), "yaxis": {"autorange": "reversed", "type": "category"}, "xaxis": {"type": "category"}}
    return Figure("traffic", "Traffic, worker by shard", "Payload of the whole run, pushed and pulled together.", [trace], layout)


def barrier_waits(series: Series, window: Window) -> Figure:
    """Who waited, and for whom, in milliseconds per step."""
    ranks = sorted({rank for rank, _ in series.waits})
    traces = []
    for waited_for in sorted({other for _, other in series.waits}):
        means = [round(series.waits.get((rank, waited_for), 0.0) / window.num_steps * 1e3, 3) for rank in ranks]
        colour = {"color": colour_of(waited_for)}
        traces.append({"type": "bar", "name": f"for {window.name(waited_for)}", "x": list(map(window.name, ranks)), "y": means, "marker": colour})
    axes = {"yaxis": {"title": {"text": "ms per step"}, "rangemode": "tozero"}, "xaxis": {"type": "category"}}
    layout = {"barmode": "stack", "bargap": 0.4, "showlegend": True, **axes}
    return Figure("waits", "Waits in the barrier", "How long each rank waited per step when it had pushed everything, and for whom.", traces, layout)


def tensors(found: Sequence[Tensor]) -> Figure:
    """The largest tensors."""
    shown = found[:MAX_BARS]
    total = sum(tensor.num_bytes for tensor in found) or 1
    trace = {
        "type": "bar",
        "orientation": "h",
        "y": [tensor.name for tensor in shown],
        "x": [tensor.num_bytes for tensor in shown],
        "customdata": [["×".join(map(str, tensor.shape)) or "scalar", tensor.num_bytes / total] for tensor in shown],
        "hovertemplate": "%{y} (%{customdata[0]}): %{x:.4~s}B, %{customdata[1]:.1%} of the model<extra></extra>",
        "marker": {"color": colour_of(0)},
    }
    rest = sum(tensor.num_bytes for tensor in found[MAX_BARS:])
    note = "Size of each tensor: an exact push, and the answer to it, move as much per step and worker; frozen tensors do not travel."
    note += f" {len(found) - len(shown)} smaller ones, {size(rest)} together, are not drawn." if rest else ""
    layout = {
        "height": 140 + 26 * len(shown),
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True},
        "xaxis": BYTES,
    }
    return Figure("tensors", "Bytes by tensor", note, [trace], layout)


def losses(history: Sequence[dict[str, Any]]) -> Figure:
    """Both losses, and where validation turns up; of an own loop, what it has reported."""
    names = [name for name in ("train_loss", "validation_loss") if any(name in row for row in history)]
    names = names or sorted({name for row in history for name in row} - {"epoch", "step", "time_s", "digest"})
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(history) < 60 else "lines",
            "name": name.replace("_", " "),
            "x": [row["step"] for row in history if _is_number(row.get(name))],
            "y": [row[name] for row in history if _is_number(row.get(name))],
            "line": {"color": colour_of(number)},
        }
        for number, name in enumerate(names)
    ]
    layout: dict[str, Any] = {"xaxis": {"title": {"text": "step"}, "rangemode": "tozero"}, "yaxis": {"title": {"text": "loss"}}}
    if best := turning_point(history):
        layout["shapes"] = [_mark(best["step"])]
        layout["annotations"] = [_label(best["step"], f"epoch {best['epoch']}: validation turns up", [0, history[-1]["step"]])]
    return Figure("losses", "Losses", "Exact means over all samples of the phase.", traces, layout)


def _is_number(value: Any) -> bool:
    """Losses that have become infinite cannot be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def _words(span: str) -> str:
    return span.removesuffix("_s").replace("_", " ")
