"""Settings of the recipe: what belongs where, what is refused and how, and the batch rule."""

from typing import Any

import numpy as np
import pytest

from deploy.config import Config, ScalingConfig, TaskConfig, apply_batch_rule
from ps.config import GroupConfig, OptimizerConfig, ScheduleConfig, from_json, to_json
from ps.errors import ConfigError
from ps.layout import Layout, TensorSpec
from ps.plan import Plan
from ps.schedules import scaled_for_batch, scaled_lr
from ps.store import Store
from ps.update import Updater
from workers.config import TrainConfig


@pytest.mark.parametrize(
    ("cls", "values", "expected"),
    [
        (
            OptimizerConfig,
            {"beta1": 0.9},
            'optimizer.beta1 = 0.9 does not belong to optimizer.name = "sgd": leave it out, or set name = "adam" or "adamw"',
        ),
        (OptimizerConfig, {"name": "adam", "momentum": 0.0}, 'or set name = "sgd" or "rmsprop"'),
        (OptimizerConfig, {"name": "adagrad", "rho": 0.9}, 'optimizer.rho = 0.9 does not belong to optimizer.name = "adagrad"'),
        (OptimizerConfig, {"name": "rmsprop", "nesterov": False}, "optimizer.nesterov = False does not belong"),
        (OptimizerConfig, {"nesterov": True}, "optimizer.nesterov = true with momentum = 0.0 and dampening = 0.0: set momentum above 0"),
        (OptimizerConfig, {"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "leave dampening out"),
        (OptimizerConfig, {"momentum_form": "ema", "momentum": 0.9, "nesterov": True}, 'or set momentum_form = "torch"'),
        (OptimizerConfig, {"momentum_form": "ema", "momentum": 0.9, "dampening": 0.9}, "has a dampening of its own"),
        (OptimizerConfig, {"dampening": 1.1}, "optimizer.dampening = 1.1 is out of range: 0 <= value <= 1"),
        (OptimizerConfig, {"clip_value": 0.0}, "optimizer.clip_value = 0.0 is out of range: > 0"),
        (OptimizerConfig, {"name": "rmsprop", "rho": 1.0}, "optimizer.rho = 1.0 is out of range"),
        (OptimizerConfig, {"lr_scaling": "sqrt"}, "optimizer.reference_batch_size = None: set lr_scaling"),
        (OptimizerConfig, {"reference_batch_size": 64}, 'optimizer.lr_scaling = "none" with optimizer.reference_batch_size = 64'),
        (GroupConfig, {"pattern": "*.bias", "lr": 0.1, "lr_factor": 2.0}, r"optimizer.groups (*.bias): lr and lr_factor exclude each other"),
        (GroupConfig, {"pattern": ("a", "b"), "weight_decay": -1.0}, "optimizer.groups (a, b): weight_decay = -1.0 is out of range: >= 0"),
        (GroupConfig, {"pattern": "a", "lr_factor": 0.0}, "lr_factor = 0.0 is out of range: > 0"),
        (GroupConfig, {"pattern": ""}, "a group has no pattern"),
        (GroupConfig, {"pattern": ()}, "a group has no pattern"),
        (ScheduleConfig, {"name": "step"}, 'schedule.every is missing: schedule.name = "step" needs it'),
        (ScheduleConfig, {"name": "multi_step"}, "schedule.milestones is missing"),
        (ScheduleConfig, {"name": "exponential"}, "schedule.gamma is missing"),
        (ScheduleConfig, {"gamma": 0.1}, 'schedule.gamma = 0.1 does not belong to schedule.name = "constant"'),
        (ScheduleConfig, {"name": "cosine", "every": 3}, 'leave it out, or set name = "step"'),
        (ScheduleConfig, {"name": "cosine", "t_mult": 2}, "schedule.t_mult = 2 without schedule.t_0"),
        (ScheduleConfig, {"name": "multi_step", "milestones": (3, 3)}, "each >= 1 and above the one before"),
        (ScheduleConfig, {"name": "multi_step", "milestones": (0, 3)}, "each >= 1"),
        (ScheduleConfig, {"name": "multi_step", "milestones": ()}, "at least one"),
        (ScheduleConfig, {"name": "one_cycle", "div_factor": 0.5}, "schedule.div_factor = 0.5 is out of range: >= 1"),
        (
            ScheduleConfig,
            {"warmup_epochs": 2},
            'schedule.warmup_epochs with schedule.unit = "step": use schedule.warmup_steps, or set unit = "epoch"',
        ),
        (ScheduleConfig, {"warmup_steps": 2, "unit": "epoch"}, "use schedule.warmup_epochs"),
    ],
)
def test_what_does_not_belong_is_refused_with_the_remedy(cls: type, values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        cls(**values)
    assert expected in str(caught.value)


def test_settings_travel_as_json() -> None:
    groups = (GroupConfig(pattern=("*.bias", "norm.*"), weight_decay=0.0), GroupConfig(pattern="head.*", lr_factor=0.1))
    optimizer = OptimizerConfig(name="adamw", groups=groups, lr_scaling="sqrt", reference_batch_size=64)
    schedule = ScheduleConfig(name="multi_step", milestones=(1, 2), unit="epoch")
    assert from_json(OptimizerConfig, to_json(optimizer)) == optimizer
    assert from_json(ScheduleConfig, to_json(schedule)) == schedule


def test_a_misspelt_key_of_a_group_is_refused() -> None:
    with pytest.raises(ValueError, match="wd"):
        from_json(OptimizerConfig, '{"groups": [{"pattern": "a", "wd": 0.1}]}')


def test_a_group_has_the_optimizers_settings_but_for_its_own() -> None:
    groups = (GroupConfig(pattern="a", lr=0.3), GroupConfig(pattern="b", lr_factor=0.5, weight_decay=0.0))
    config = OptimizerConfig(name="adamw", beta2=0.9, groups=groups)
    found = [(s.lr, s.weight_decay, s.beta2) for s in map(config.settings, range(3))]
    assert found == [(0.001, 0.01, 0.9), (0.3, 0.01, 0.9), (0.0005, 0.0, 0.9)]


@pytest.mark.parametrize(("rule", "expected"), [("none", 0.1), ("sqrt", 0.2), ("linear", 0.4)])
def test_the_rate_grows_with_the_batch_by_the_rule(rule: str, expected: float) -> None:
    assert scaled_lr(0.1, rule, 256, 64) == pytest.approx(expected)


def test_the_batch_rule_scales_every_rate_once_and_says_so() -> None:
    groups = (GroupConfig(pattern="a", lr=0.3), GroupConfig(pattern="b", lr_factor=0.5))
    config = OptimizerConfig(lr=0.1, lr_scaling="sqrt", reference_batch_size=64, groups=groups)
    scaled, text = scaled_for_batch(config, 256)
    assert text == "global batch 256 = 4 x 64: lr 0.1 -> 0.2 (sqrt)"
    assert [scaled.settings(group).lr for group in range(3)] == pytest.approx([0.2, 0.6, 0.1])
    assert scaled_for_batch(scaled, 256) == (scaled, None)


def test_a_server_refuses_a_batch_rule_that_nobody_has_carried_out() -> None:
    layout = Layout([TensorSpec(name="w", shape=(1,), dtype="float32")], 1)
    store = Store(np.zeros(Store.size_bytes(layout.shards[0], slots=0, num_norms=0), np.uint8), layout.shards[0], slots=0, num_norms=0, key=bytes(32))
    config = OptimizerConfig(lr_scaling="sqrt", reference_batch_size=64)
    with pytest.raises(ConfigError, match="is the driver's: give servers the scaled optimizer.lr"):
        Updater(layout, store, config, ScheduleConfig(), Plan(steps_per_epoch=1, total_steps=1))


def test_the_batch_rule_is_silent_at_the_reference_and_scales_down_below_it() -> None:
    config = OptimizerConfig(name="adam", lr_scaling="linear", reference_batch_size=64)
    at, text = scaled_for_batch(config, 64)
    assert text is None and at.settings().lr == 0.001
    below, text = scaled_for_batch(config, 32)
    assert text == "global batch 32 = 0.5 x 64: lr 0.001 -> 0.0005 (linear)"
    assert below.settings().lr == 0.0005


@pytest.mark.parametrize(
    ("train", "global_batch"),
    [(TrainConfig(batch_size=8, accumulate=3), 96), (TrainConfig(global_batch_size=100), 100)],
)
def test_a_runs_global_batch_counts_workers_and_accumulation(train: TrainConfig, global_batch: int) -> None:
    optimizer = OptimizerConfig(lr=0.1, lr_scaling="linear", reference_batch_size=1)
    config = Config(task=TaskConfig(name="digits"), train=train, optimizer=optimizer, scaling=ScalingConfig(num_workers=4))
    resolved, text = apply_batch_rule(config)
    assert resolved.optimizer.lr == pytest.approx(0.1 * global_batch)
    assert text is not None and text.startswith(f"global batch {global_batch} = {global_batch} x 1: lr 0.1 -> ")
