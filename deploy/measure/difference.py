"""What changed between two runs: configuration, versions, seconds, bytes, curves. Pure."""

import statistics
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from deploy.measure.recorded import Recorded, Series, how_ended
from deploy.measure.table import Table, left_out
from deploy.measure.text import seconds, size
from deploy.measure.verdict import verdict
from deploy.measure.window import BETWEEN, SPANS, TRAFFIC

NOT_COMPARED = ("run.name", "run.storage_path")
"""Every run has its own."""
WARM_UP = 0.1
"""Part of the steps that is left out at the beginning of each run: processes start, memory is touched for the first time."""
FELT = 0.02
"""Part of the step below which a span's change is not mentioned."""


def difference(first: Recorded, second: Recorded) -> str:
    """The sentences and the tables, as text."""
    names = [recorded.run.name for recorded in (first, second)]
    if names[0] == names[1]:
        names = [str(recorded.run.path) for recorded in (first, second)]
    tables = [make(first, second, names) for make in (_config, _seconds, _bytes, _curves)]
    return "\n".join([*conclusions(first, second, names), *(table.plain() for table in tables if table.rows)])


def conclusions(first: Recorded, second: Recorded, names: Sequence[str]) -> list[str]:
    """How they ended if they did not finish, whose step is shorter, by which spans, whether that is more than noise, what was simulated, and
    whether the results are the same."""
    said = [f"{name} {how_ended(recorded)}" for name, recorded in zip(names, (first, second), strict=True) if recorded.status != "finished"]
    one, other = steady_steps(first.series.step_s), steady_steps(second.series.step_s)
    if one and other:
        said.append(_times(first, second, names, one, other))
        limits = [str(verdict(recorded.window)) for recorded in (first, second)]
        said += [f"{name} is limited by {limit}" for name, limit in zip(names, limits, strict=True)]
    else:
        said.append(f"no step to compare in {' and '.join(name for name, steps in zip(names, (one, other), strict=True) if not steps)}")
    simulated = [(recorded.summary or {}).get("simulated") for recorded in (first, second)]
    if simulated[0] != simulated[1]:
        said += [f"{name} was {text or 'not simulated'}" for name, text in zip(names, simulated, strict=True)]
    hashes = [(recorded.summary or {}).get("params_sha256") for recorded in (first, second)]
    if all(hashes):
        said.append(f"the final parameters are {'equal, bit for bit' if hashes[0] == hashes[1] else 'different'}")
    return said


def steady_steps(values: Sequence[float]) -> list[float]:
    """Of the steps that workers have reported, those after the warm-up."""
    known = [value for value in values if value]
    return known[max(1, int(WARM_UP * len(known))) :] if len(known) > 1 else known


def _times(first: Recorded, second: Recorded, names: Sequence[str], one: Sequence[float], other: Sequence[float]) -> str:
    means = statistics.fmean(one), statistics.fmean(other)
    ratio = means[1] / means[0]
    lengths = [f"{seconds(mean)}{left_out(recorded.window)}" for mean, recorded in zip(means, (first, second), strict=True)]
    said = f"a step of {names[1]} takes {lengths[1]}, of {names[0]} {lengths[0]}: {_percent(ratio)}"
    if _overlap(one, other):
        return f"{said}, no more than steps of one run differ among themselves"
    spans = {span: other_s - one_s for span, (one_s, other_s) in _spans(first, second).items()}
    changed = sorted((span for span in spans if abs(spans[span]) >= FELT * means[0]), key=lambda span: -abs(spans[span]))[:3]
    return f"{said}; {', '.join(f'{_words(span)} {_signed(spans[span])}' for span in changed)}" if changed else said


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the middle halves of the two have a length in common."""
    if min(len(one), len(other)) < 4:
        return True
    (low, _, high), (other_low, _, other_high) = statistics.quantiles(one), statistics.quantiles(other)
    return low <= other_high and other_low <= high


def _spans(first: Recorded, second: Recorded, names: Sequence[str] = SPANS) -> dict[str, tuple[float, float]]:
    """Seconds per step of the mean rank, after the warm-up."""

    def mean(recorded: Recorded, span: str) -> float:
        series = recorded.series
        values = series.spans.get(span) or series.between[span]
        known = [value for value, step_s in zip(values, series.step_s, strict=True) if step_s]
        kept = known[-len(steady_steps(series.step_s)) :]
        return statistics.fmean(kept) if kept else 0.0

    return {span: (mean(first, span), mean(second, span)) for span in names}


def _config(first: Recorded, second: Recorded, names: Sequence[str]) -> Table:
    flat = [_flat(tomllib.loads(recorded.config_text)) for recorded in (first, second)]
    flat = [
        keys | {f"version of {name}": text for name, text in (r.summary or {}).get("versions", {}).items()}
        for keys, r in zip(flat, (first, second), strict=True)
    ]
    changed = [key for key in sorted({*flat[0], *flat[1]}) if flat[0].get(key) != flat[1].get(key) and key not in NOT_COMPARED]
    if not (first.summary and second.summary):
        changed = [key for key in changed if not key.startswith("version of ")]
    return Table("Configuration", ["", *names], [[key, *(str(keys.get(key, "not set")) for keys in flat)] for key in changed])


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in section.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _seconds(first: Recorded, second: Recorded, names: Sequence[str]) -> Table:
    one, other = steady_steps(first.series.step_s), steady_steps(second.series.step_s)
    if not (one and other):
        return Table("", [], [])
    values = {"step_s": (statistics.fmean(one), statistics.fmean(other))} | _spans(first, second) | _spans(first, second, BETWEEN)
    rows = [
        [_words(name), seconds(one_s), seconds(other_s), _signed(other_s - one_s), _percent(other_s / one_s) if one_s else ""]
        for name, (one_s, other_s) in values.items()
        if one_s or other_s
    ]
    return Table("Seconds per step of the mean worker, without the first tenth of the steps", ["", *names, "change", ""], rows)


def _bytes(first: Recorded, second: Recorded, names: Sequence[str]) -> Table:
    if not (first.series.rows and second.series.rows):
        return Table("", [], [])
    both = [_bytes_per_step(recorded.series) for recorded in (first, second)]
    rows = []
    for name in TRAFFIC:
        one, other = (its[name] for its in both)
        if one or other:
            label = name.removesuffix("_bytes").replace("_", " ")
            rows.append([label, size(one), size(other), _percent(other / one) if one else ""])
    return Table("Bytes per step of all workers (wire: on links, with headers and, once, what joining takes)", ["", *names, ""], rows)


def _bytes_per_step(series: Series) -> dict[str, float]:
    """By each rank's own steps: of the last one of a run that failed, some ranks have told and some have not."""
    return {name: sum(its[name] / series.rows[rank] for (rank, _), its in series.traffic.items()) for name in TRAFFIC}


def _curves(first: Recorded, second: Recorded, names: Sequence[str]) -> Table:
    """The metrics of the last epoch that both have, and the best and last ones of each."""
    by_step = [{row["step"]: row for row in recorded.history} for recorded in (first, second)]
    common = max(by_step[0].keys() & by_step[1].keys(), default=None)
    rows = []
    if common is not None:
        rows += [[f"{name} at step {common}", *values] for name, values in _metrics([its[common] for its in by_step])]
    if first.history and second.history:
        lasts = [recorded.history[-1] for recorded in (first, second)]
        if any(row["step"] != common for row in lasts):
            rows += [[f"{name} at the end", *values] for name, values in _metrics(lasts)]
        lowest = [[row["validation_loss"] for row in r.history if row.get("validation_loss") is not None] for r in (first, second)]
        if all(lowest):
            rows.append(["lowest validation_loss", *(f"{min(values):.4g}" for values in lowest)])
    return Table("Metrics", ["", *names], rows)


def _metrics(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    names = [name for name in rows[0] if name in rows[1] and name not in ("epoch", "step", "time_s", "digest")]
    return [(name, ["not finite" if row[name] is None else f"{row[name]:.4g}" for row in rows]) for name in names]


def _words(span: str) -> str:
    return span.removesuffix("_s").replace("_", " ")


def _signed(value_s: float) -> str:
    return f"{'-' if value_s < 0 else '+'}{seconds(abs(value_s))}" if value_s else "0"


def _percent(ratio: float) -> str:
    return f"{round(ratio - 1, 2) + 0.0:+.0%}"  # never -0%
