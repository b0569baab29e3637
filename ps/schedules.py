"""Learning rate as a function of the version: the number of steps committed before. Pure."""

import math
from dataclasses import replace

from ps.config import OptimizerConfig, ScheduleConfig


def learning_rate(
    optimizer: OptimizerConfig,
    schedule: ScheduleConfig,
    version: int,
    total_steps: int,
    steps_per_epoch: int = 1,
    *,
    group: int = 0,
    rate_factor: float = 1.0,
) -> float:
    """Rate at which a parameter group is updated in the step computed from `version`.

    The group's full rate times `schedule_factor` times `rate_factor` (what decisions made of it, as on a plateau).
    """
    return optimizer.settings(group).lr * schedule_factor(schedule, version, total_steps, steps_per_epoch) * rate_factor


def schedule_factor(schedule: ScheduleConfig, version: int, total_steps: int, steps_per_epoch: int = 1) -> float:
    """Fraction of the full rate in the step computed from `version`, as the classes of `torch.optim.lr_scheduler` have it.

    Warm-up over n steps: f(0) (version + 1) / n. Then f(t), where t counts steps, or whole epochs, from the end of the
    warm-up, T of them to the end of the run (as `SequentialLR` does with the schedule behind a warm-up):

    constant      1
    step          gamma ^ floor(t / every)                                             StepLR
    multi_step    gamma ^ (number of milestones <= t)                                  MultiStepLR
    exponential   gamma ^ t                                                            ExponentialLR
    linear        1 - (1 - min_factor) t / T                                           LinearLR
    cosine        min_factor + (1 - min_factor) (1 + cos(pi t / T)) / 2                CosineAnnealingLR
                  with t_0: the same in periods of t_0, t_0 t_mult, t_0 t_mult^2, ...  CosineAnnealingWarmRestarts
    one_cycle     from 1 / div_factor up to 1 in the first pct_start of T, then        OneCycleLR
                  down to 1 / (div_factor final_div_factor)
    """
    warmup = schedule.warmup_steps + schedule.warmup_epochs * steps_per_epoch
    units = steps_per_epoch if schedule.unit == "epoch" else 1
    length = max(-(-(total_steps - warmup) // units), 1)
    if version < warmup:
        return _after_warmup(schedule, 0, length) * (version + 1) / warmup
    return _after_warmup(schedule, (version - warmup) // units, length)


def _after_warmup(schedule: ScheduleConfig, t: int, length: int) -> float:
    match schedule.name:
        case "constant":
            return 1.0
        case "step":
            return float(schedule.value("gamma") ** (t // schedule.value("every")))
        case "multi_step":
            return float(schedule.value("gamma") ** sum(t >= milestone for milestone in schedule.value("milestones")))
        case "exponential":
            return float(schedule.value("gamma") ** t)
        case "linear":
            return _between(1.0, schedule.value("min_factor"), min(t / length, 1.0), "linear")
        case "cosine":
            return _between(1.0, schedule.value("min_factor"), _done_in_period(schedule, t, length), "cos")
        case "one_cycle":
            return _one_cycle(schedule, t, length)


def _done_in_period(schedule: ScheduleConfig, t: int, length: int) -> float:
    """Fraction of the current period of a cosine that is over."""
    period = schedule.value("t_0")
    if period is None:
        return min(t / length, 1.0)
    while t >= period:
        t -= period
        period *= schedule.value("t_mult")
        if schedule.value("t_mult") == 1:
            t %= period
    return float(t / period)


def _one_cycle(schedule: ScheduleConfig, t: int, length: int) -> float:
    """Up until step pct_start T - 1, down until step T - 1, after which the last rate stays."""
    anneal = schedule.value("anneal")
    first = 1.0 / schedule.value("div_factor")
    top, last = schedule.value("pct_start") * length - 1.0, length - 1.0
    t = min(t, length - 1)
    if t <= top:
        return _between(first, 1.0, t / top if top else 1.0, anneal)
    return _between(1.0, first / schedule.value("final_div_factor"), (t - top) / (last - top), anneal)


def _between(start: float, end: float, done: float, shape: str) -> float:
    """From `start` to `end` in a straight line or in half a cosine."""
    left = (1 + math.cos(math.pi * done)) / 2 if shape == "cos" else 1 - done
    return end + (start - end) * left


def scaled_lr(lr: float, rule: str, global_batch: int, reference_batch_size: int) -> float:
    """The batch rule: a global batch k times the reference makes the rate sqrt(k) times ("sqrt") or k times ("linear") as high.

    Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014 (sqrt); Malladi et al., "On the SDEs
    and scaling rules for adaptive gradient algorithms", 2022 (sqrt for adam and rmsprop); Goyal et al., "Accurate, large
    minibatch SGD", 2017 (linear, with a warm-up).
    """
    times = global_batch / reference_batch_size
    return lr * {"none": 1.0, "sqrt": math.sqrt(times), "linear": times}[rule]


def scaled_for_batch(config: OptimizerConfig, global_batch: int) -> tuple[OptimizerConfig, str | None]:
    """`config` with the rates that its batch rule gives for `global_batch` samples per step, and no rule left.

    Also what was done, to be printed; None if nothing changes. Servers see the result only.
    """
    rule, reference = config.lr_scaling, config.reference_batch_size
    if reference is None:
        return config, None
    lr = config.settings().lr
    scaled = scaled_lr(lr, rule, global_batch, reference)
    groups = tuple(g if g.lr is None else replace(g, lr=scaled_lr(g.lr, rule, global_batch, reference)) for g in config.groups)
    resolved = replace(config, lr=scaled, groups=groups, lr_scaling="none", reference_batch_size=None)
    if global_batch == reference:
        return resolved, None
    return resolved, f"global batch {global_batch} = {global_batch / reference:g} x {reference}: lr {lr:g} -> {scaled:g} ({rule})"
