"""A metric's value to reach, and the step at which a run has reached it. Pure."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ps.errors import ConfigError


def parse_target(text: str) -> tuple[str, float]:
    """Metric and value of "validation_accuracy=0.95". Raises ConfigError."""
    metric, _, value = text.partition("=")
    try:
        return metric, float(value)
    except ValueError as error:
        raise ConfigError(f"--target {text}: write METRIC=VALUE, for example validation_accuracy=0.95") from error


def steps_to(history: Iterable[Mapping[str, Any]], metric: str, target: float) -> int | None:
    """Step of the first line of metrics.jsonl that reaches the target; None if none does. A loss reaches it from above, all else from below."""
    falls = metric.endswith("loss")
    for row in history:
        value = row.get(metric)
        if value is not None and math.isfinite(value) and (value <= target if falls else value >= target):
            return int(row["step"])
    return None
