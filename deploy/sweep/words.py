"""A sweep's table, and what it says in words. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deploy.measure.table import Table
from deploy.measure.text import counted, seconds, size
from deploy.sweep.grid import Axis
from deploy.sweep.results import Row

_HOSTS = "Simulated: links and hosts are virtual ones of this machine, whose cores they share"
_STREAMS = "Simulated WITHOUT virtual hosts: TOKEN BUCKETS in pserver's own streams in place of links"
ACCURACY_NOISE = 0.005
"""Differences of an accuracy below this are called none."""


def table(axes: Sequence[Axis], rows: Sequence[Row]) -> Table:
    """A line per point."""
    first = next((row.samples_per_s for row in rows if row.samples_per_s), None)
    names = sorted({name for row in rows for name in row.metrics if name.startswith("validation_") and name != "validation_loss"})
    columns: dict[str, Callable[[Row], str]] = {
        "step": lambda row: seconds(row.step_s) if row.step_s else "-",
        "samples/s": lambda row: _number(row.samples_per_s),
        "speed-up": lambda row: _number(row.samples_per_s / first) if row.samples_per_s and first else "-",
        "exposed": lambda row: "-" if row.exposed_share is None else f"{row.exposed_share:.0%}",
        "pushed": lambda row: "-" if row.push_bytes is None else size(row.push_bytes),
        **{name.removeprefix("validation_"): _metric(name) for name in names},
    }
    if any(row.gap is not None for row in rows):
        columns |= {
            "steps to target": lambda row: "-" if row.steps_to_target is None else str(row.steps_to_target),
            "loss": lambda row: _number(row.train_loss),
            "validation loss": lambda row: _number(row.validation_loss),
            "gap": lambda row: _number(row.gap),
            "rise": lambda row: _number(row.rise),
        }
    columns["bottleneck"] = lambda row: f"failed: {row.error}" if row.error else row.bottleneck
    head = [axis.name for axis in axes]
    lines = [[*(str(row.point[name]) for name in head), *(text(row) for text in columns.values())] for row in rows]
    return Table(counted(len(rows), "point"), [*head, *columns], lines)


def findings(axes: Sequence[Axis], rows: Sequence[Row], target: tuple[str, float] | None) -> list[str]:
    """The fastest point, what failed, what was simulated, and whether the batch rule helped."""
    found = []
    fast = [row for row in rows if row.samples_per_s]
    if fast:
        best = max(fast, key=lambda row: row.samples_per_s or 0.0)
        found.append(f"Fastest: {_name(best)}, {_number(best.samples_per_s)} samples/s; what limits it: {best.bottleneck}")
    if failed := [row for row in rows if row.error]:
        found.append(f"{counted(len(failed), 'point')} failed, the first one {_name(failed[0])}: {failed[0].error}")
    if simulated := [row.simulated for row in rows if row.simulated]:
        found.append(_HOSTS if all(text.startswith("simulated: ") for text in simulated) else _STREAMS)
    rules = next((axis for axis in axes if axis.name == "lr_scaling"), None)
    return found + (_batch_rule(rows, target) if rules and {"none", "sqrt"} <= set(rules.values) else [])


def _batch_rule(rows: Sequence[Row], target: tuple[str, float] | None) -> list[str]:
    """Rule sqrt beside none, at points that differ in nothing else."""
    whole = [row for row in rows if not row.error]
    plain, scaled = ([row for row in whole if row.point["lr_scaling"] == rule] for rule in ("none", "sqrt"))
    pairs = [(row, other) for row in plain for other in scaled if _rest(row) == _rest(other)]
    lines = [_compared(row, other, target) for row, other in pairs]
    votes = [_vote(row, other, target) for row, other in pairs]
    if not votes:
        return []
    better, worse = sum(vote > 0 for vote in votes), sum(vote < 0 for vote in votes)
    even = len(votes) - better - worse
    verdict = "helped" if better > worse else "did harm" if worse > better else "made no difference that counts"
    what = "batch size" if len({row.point.get("batch") for row, _ in pairs}) == len(pairs) else "comparison"
    return [f"√k {verdict}: better at {better}, worse at {worse}, the same at {even} of {counted(len(votes), what)}", *lines]


def _vote(plain: Row, scaled: Row, target: tuple[str, float] | None) -> int:
    """1: the rule was better, -1: worse. Steps to the target decide, then accuracy, then the loss."""
    if target and plain.steps_to_target != scaled.steps_to_target:
        return 1 if (scaled.steps_to_target or math.inf) < (plain.steps_to_target or math.inf) else -1
    one, other = (row.metrics.get("validation_accuracy") for row in (plain, scaled))
    if one is not None and other is not None:
        return 0 if abs(other - one) < ACCURACY_NOISE else 1 if other > one else -1
    before, after = plain.validation_loss, scaled.validation_loss
    if before is None or after is None or abs(after - before) < 0.01 * abs(before):
        return 0
    return 1 if after < before else -1


def _compared(plain: Row, scaled: Row, target: tuple[str, float] | None) -> str:
    parts = []
    if target:
        steps = ["not reached" if row.steps_to_target is None else f"after {counted(row.steps_to_target, 'step')}" for row in (plain, scaled)]
        parts.append(f"{target[0]} {target[1]:g} {steps[0]}, with √k {steps[1]}")
    what: list[tuple[str, Callable[[Row], float | None]]] = [
        ("accuracy", lambda row: row.metrics.get("validation_accuracy")),
        ("gap", lambda row: row.gap),
        ("rise", lambda row: row.rise),
    ]
    for name, value in what:
        if value(plain) is not None and value(scaled) is not None:
            parts.append(f"{name} {_number(value(plain))}, with √k {_number(value(scaled))}")
    rest = " ".join(f"{key}={value}" for key, value in _rest(plain).items()) or "this batch"
    return f"{rest}: {'; '.join(parts)}"


def _rest(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row.point.items() if key != "lr_scaling"}


def _name(row: Row) -> str:
    return " ".join(f"{key}={value}" for key, value in row.point.items()) or "the config as it is"


def _metric(name: str) -> Callable[[Row], str]:
    return lambda row: _number(row.metrics.get(name))


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.4g}"


def values(row: Row) -> Mapping[str, float | None]:
    """Everything of a row that can be drawn, by name."""
    return {
        "samples_per_s": row.samples_per_s,
        "step_ms": None if row.step_s is None else row.step_s * 1e3,
        "exposed_share": row.exposed_share,
        "accuracy": row.metrics.get("validation_accuracy"),
        "steps_to_target": row.steps_to_target,
        "gap": row.gap,
        "rise": row.rise,
    }
