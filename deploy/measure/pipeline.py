"""Whether stages hold each other up: because there are few micro-batches, or because one stage has more to do. Pure."""

import statistics
from collections.abc import Mapping

from deploy.measure.exchange import Finding
from deploy.measure.text import seconds
from deploy.measure.window import FELT, Window
from deploy.predict.floors import bubble

SMALL = 1 / 8
"""Part of a step that stages of equal length wait for each other with as many micro-batches as are advised."""
_PART = "pipeline bubble"


def of_pipeline(window: Window, path: Mapping[str, float]) -> Finding | None:
    """Of a rank that is split: what its stages lose by waiting for each other, if that is felt and more than anything else but compute."""
    step_s = window.steps["step_s"]
    compute_s = {stage: _mean(window, stage, "compute") for stage in sorted({worker % window.num_stages for worker in window.ranks})}
    if len(compute_s) < 2:
        return None
    first, busiest = min(compute_s), max(compute_s, key=lambda stage: compute_s[stage])
    bubble_s = max(0.0, compute_s[first] + _mean(window, first, _PART) - compute_s[busiest])  # the first stage begins first and ends last
    uneven_s = compute_s[busiest] - statistics.fmean(compute_s.values())
    lost_s, other_s = sorted((bubble_s, uneven_s), reverse=True)
    other_s = max(other_s, *(value for part, value in path.items() if part not in ("compute", _PART)))
    if lost_s < FELT * step_s or lost_s <= other_s:
        return None
    margin = min(lost_s / other_s if other_s else lost_s / step_s / FELT, lost_s / step_s / FELT)
    if uneven_s > bubble_s:
        others = statistics.fmean(value for stage, value in compute_s.items() if stage != busiest)
        evidence = f"{seconds(compute_s[busiest])}, others {seconds(others)}: move blocks (pipeline.balance)"
        return Finding(f"stage {busiest}'s compute", evidence, margin)
    return Finding(_PART, f"{bubble_s / step_s:.0%}{_advice(window)}", margin)


def _mean(window: Window, stage: int, part: str) -> float:
    """Of that stage of every rank."""
    return statistics.fmean(window.part_s(worker, part) for worker in window.ranks if worker % window.num_stages == stage)


def _advice(window: Window) -> str:
    """Empty if more micro-batches would do little, or a rank has no samples for them."""
    wanted = 1
    while bubble(window.num_stages, wanted) > SMALL:
        wanted *= 2
    samples = max(means["samples"] for means in window.ranks.values())
    return f": raise micro_batches to {wanted}" if window.micro_batches < wanted <= samples else f" with {window.micro_batches} micro-batches"
