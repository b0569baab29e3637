"""What a run's figures say, in sentences. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deploy.measure.recorded import Recorded, how_ended
from deploy.measure.table import left_out, without_verdict
from deploy.measure.text import counted, seconds, size
from deploy.measure.verdict import verdict
from deploy.measure.window import TRAFFIC, Window
from deploy.predict.changes import Change, Outlook

REMEDIES = {
    "data loading": "load ahead with train.data_workers, or make the data cheaper to load",
    "compute": "use more workers on processors of their own, lower precision (train.autocast), or a smaller batch",
    "copies and encoding": "fewer steps with more samples each (train.accumulate), shared memory (workers and servers on one host), a push format "
    "that is cheaper to make, a faster bus to the device",
    "transfers": "send fewer bytes (comm.push_format, comm.pull_format), use more servers on links of their own, or more compute per step",
    "pipeline bubble": "cut steps into more micro-batches (pipeline.micro_batches), or split the model more evenly (pipeline.balance)",
    "apply": "use more servers on cores of their own",
    "bookkeeping": "make steps longer: a larger batch for each worker",
}
"""What shortens a part of the step, by its name in PARTS."""
UNSURE = " That is not sure: something else comes close, or there are few steps."
NUM_WHAT_IFS = 3
WORTH_MORE = 0.75
"""Part of the steps that remains with twice the batch; 0.5 is the best, 1 the worst: at the noise scale it is this."""


def outcome(recorded: Recorded) -> str:
    """How the run ended and what it reached."""
    return f"The run {how_ended(recorded)}."


def headline(window: Window) -> str:
    """The verdict; or why there is none."""
    if not window.steps["step_s"]:
        why = without_verdict(window)
        return f"{why[0].upper()}{why[1:]}. So there is nothing to say about the time of one."
    found = verdict(window)
    return (
        f"A step takes {seconds(window.steps['step_s'])}{left_out(window)}; "
        f"in {window.exposed_share:.0%} of it communication is not hidden behind compute. What limits it: {found}.{'' if found.is_sure else UNSURE}"
    )


def what_ifs(window: Window) -> list[str]:
    """The changes that could shorten the step most, each with the most that it can bring: a part of the slowest rank's step that is gone."""
    step_s = window.steps["step_s"]
    if not step_s:
        return []
    ranks: dict[int, float] = {}
    for (rank, _), value in window.excess.items():
        ranks[rank] = ranks.get(rank, 0.0) + value
    possible = [(value, f"without any {part}", REMEDIES[part]) for part, value in window.path.items()]
    if len(window.ranks) > 1:
        possible += [(value, f"with {window.name(rank)} as quick as the others", "see what else runs on its host") for rank, value in ranks.items()]
    largest = sorted(possible, key=lambda item: -item[0])[:NUM_WHAT_IFS]
    return [
        f"{what[0].upper()}{what[1:]} a step would take at least {seconds(max(0.0, step_s - value))} in place of {seconds(step_s)} "
        f"({min(1.0, value / step_s):.0%} less at most): {remedy}."
        for value, what, remedy in largest
        if value >= 0.01 * step_s
    ]


def outlook(found: Outlook | str | None, window: Window) -> list[str]:
    """The best changes with the steps that the model of the step predicts, and ring all-reduce beside them; or why there is no prediction."""
    if found is None or isinstance(found, str):
        return [f"No prediction: {found}."] if found else []
    said = [_change(change, found.step_s) for change in found.changes] or [
        "No single change that the model of the step knows would shorten it by as much as 2%."
    ]
    if found.floor_s:
        compute_s = max(window.part_s(rank, "compute") for rank in window.ranks)
        floor = f"The bytes alone need {seconds(found.floor_s)} on these links, the slowest rank's compute {seconds(compute_s)}"
        said.append(f"{floor}: the longer of the two is {max(found.floor_s, compute_s) / found.step_s:.0%} of the step.")
    if len(window.ranks) > 1:
        said.append(_beside_ring(found))
    return said


def _change(change: Change, step_s: float) -> str:
    instead = f"in place of {seconds(step_s)} ({1 - change.same_samples_s / step_s:.0%} less)"
    if change.samples == 1:
        return f"{change.what}: a step of about {seconds(change.step_s)} {instead}."
    return (
        f"{change.what}: a step of about {seconds(change.step_s)} with {change.samples:g} times the samples, {seconds(change.same_samples_s)} for as "
        f"many as now {instead}. It learns from larger batches: see optimizer.lr_scaling."
    )


def _beside_ring(found: Outlook) -> str:
    if found.ring_s is None:
        return "Plain DDP: on one host there are no links to reckon with; pserver compare measures both."
    quicker = "it would be faster" if found.ring_s < 0.95 * found.step_s else "it would not be faster"
    return (
        f"Plain DDP: {seconds(found.ring_s)} at best, by ring all-reduce on these links beside the same compute: "
        f"{quicker} than the {seconds(found.step_s)} here."
    )


def noise(window: Window) -> str:
    """The gradient noise scale, and what more workers would do."""
    scale = window.noise.scale
    batch = sum(means["samples"] for means in window.ranks.values())
    if scale is None or not batch:
        return ""
    fewer = (1 + scale / (2 * batch)) / (1 + scale / batch)
    advice = "more workers help" if fewer < WORTH_MORE else "more workers help little" if fewer < 0.9 else "fewer will do too"
    return (
        f"The gradient noise scale is about {scale:.2g} samples, from the norms of {counted(window.noise.num_steps, 'step')}; all workers "
        f"together have {batch:.4g} in a step. Twice the workers, each with as many samples as now, would need {fewer:.0%} of the steps "
        f"for the same loss: {advice}."
    )


def turning_point(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row with the lowest validation loss, if a later one is higher: from there on the model learns its training data by heart."""
    rows = [row for row in history if isinstance(loss := row.get("validation_loss"), int | float) and math.isfinite(loss)]
    if not rows:
        return None
    best = min(rows, key=lambda row: row["validation_loss"])
    return best if rows[-1]["validation_loss"] > best["validation_loss"] else None


def curves(history: Sequence[Mapping[str, Any]]) -> str:
    """What the losses say."""
    rows = [row for row in history if isinstance(row.get("validation_loss"), int | float)]
    if not rows:
        return "There was no validation." if history else "No epoch has ended."
    best = turning_point(history)
    if len(rows) == 1:
        return "There was one validation: where its loss turns up cannot be seen."
    if best is None:
        return "Validation loss was lowest at the end: more epochs may help."
    return (
        f"Validation loss turns up after epoch {best['epoch']}, where it is {best['validation_loss']:.4g}; "
        f"at the end it is {rows[-1]['validation_loss']:.4g}. "
        "Early stopping ([early_stopping]) ends there and keeps those weights."
    )


def traffic(recorded: Recorded) -> str:
    """Bytes of the run."""
    window = recorded.window
    pushed, pulled, up, down = (sum(sums[name] for sums in recorded.series.traffic.values()) for name in TRAFFIC)
    moved = f"{size(pushed)} pushed and {size(pulled)} pulled in {counted(window.num_all, 'step')}"
    return f"{moved}; {size(up)} up and {size(down)} down on the workers' connections, with headers and what was sent again."


def recoveries(summary: Mapping[str, Any] | None) -> list[str]:
    """A sentence per death."""
    return [
        f"{death['process']} {death['reason']} at step {death['step']}; "
        + (
            f"its successor was there after {seconds(death['back_after_s'])}"
            if death["back_after_s"] is not None
            else "no successor was back before the end"
        )
        + "."
        for death in (summary or {}).get("failures", ())
    ]
