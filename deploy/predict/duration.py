"""How long training takes to what a run has reached, with other batches and steps: how many steps times how long each is. Pure.

Batches of B samples need 1 + N/B times as many steps as gradients without noise would, N the noise scale (McCandlish et al., 2018; every batch with
the learning rate that suits it), so that the run's own number of steps tells that of other batches.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deploy.measure.recorded import Recorded
from deploy.measure.target import steps_to
from deploy.measure.text import counted, seconds
from deploy.predict.simulate import Prediction
from ps.errors import ConfigError

SAME = 0.01
"""Relative difference of two batches that are the same, but for the last one of an epoch."""


@dataclass(frozen=True, kw_only=True)
class Duration:
    """To a value of a metric."""

    metric: str
    value: float
    run_steps: int
    """After which the run had reached it."""
    run_batch: float
    """Samples of all workers in a step of the run, as `batch` of a predicted one."""
    batch: float
    noise_scale: float | None
    """None: the run has not shown it, and its batch is as good as the predicted one."""
    steps: float
    seconds: float

    def to_dict(self) -> Mapping[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def text(self) -> str:
        """One line."""
        known = "" if self.noise_scale is None else f", noise scale {self.noise_scale:.2g}"
        run = f"the run: {counted(self.run_steps, 'step')} of {self.run_batch:.4g} samples{known}"
        return f"{self.metric} {self.value:g}: {self.steps:.0f} steps of {self.batch:.4g} samples ({run}), {seconds(self.seconds)} without validation"


def duration(recorded: Recorded, step: Prediction, metric: str, value: float) -> Duration:
    """Of steps like `step`. Raises ConfigError if the run did not reach the value, or if its batch was another one and no noise scale is known."""
    run_steps = steps_to(recorded.history, metric, value)
    if run_steps is None:
        found = [row[metric] for row in recorded.history if row.get(metric) is not None]
        reached = f"from {min(found):.4g} to {max(found):.4g} in it" if found else f"not among {', '.join(_metrics(recorded)) or 'its metrics'}"
        raise ConfigError(f"--target {metric}={value:g}: {recorded.run.name} has not reached it, {metric} is {reached}")
    window = recorded.window
    noise_scale, run_batch, batch = window.noise.scale, sum(means["samples"] for means in window.ranks.values()), step.num_samples
    if noise_scale is None and abs(batch / run_batch - 1) > SAME:
        raise ConfigError(
            f"--target for {batch:.4g} samples in a step where {recorded.run.name} had {run_batch:.4g}: its ledger has no noise scale, which takes "
            "two workers and some dozens of steps; plan with as many samples, by --batch and --workers"
        )
    steps = run_steps * (1.0 if noise_scale is None else (1 + noise_scale / batch) / (1 + noise_scale / run_batch))
    return Duration(
        metric=metric, value=value, run_steps=run_steps, run_batch=run_batch, batch=batch, noise_scale=noise_scale, steps=steps,
        seconds=steps * step.step_s,
    )  # fmt: skip


def _metrics(recorded: Recorded) -> list[str]:
    return sorted({name for row in recorded.history for name in row} - {"epoch", "step", "time_s", "digest"})
