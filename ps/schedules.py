"""Learning rate as a function of the version: the number of steps committed before."""

import math

from ps.config import OptimizerConfig, ScheduleConfig

DEFAULT_LR = {"sgd": 0.01, "adam": 0.001}


def learning_rate(optimizer: OptimizerConfig, schedule: ScheduleConfig, version: int, total_steps: int) -> float:
    """Rate of the step computed from `version`.

    Warm-up of n steps: lr (version + 1) / n. Then constant, or, with p the fraction of the steps after
    warm-up that are done, lr (f + (1 - f) (1 + cos(pi p)) / 2) for f = `min_factor`.
    """
    full = optimizer.lr if optimizer.lr is not None else DEFAULT_LR[optimizer.name]
    if version < schedule.warmup_steps:
        return full * (version + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return full
    done = (version - schedule.warmup_steps) / max(total_steps - schedule.warmup_steps, 1)
    cosine = (1 + math.cos(math.pi * min(done, 1.0))) / 2
    return full * (schedule.min_factor + (1 - schedule.min_factor) * cosine)
