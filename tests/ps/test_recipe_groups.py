"""Parameter groups by name, and clipping by value: on servers as in a torch loop."""

import numpy as np
import pytest
import torch
from torch import nn

from ps.config import GroupConfig, OptimizerConfig, ScheduleConfig
from ps.errors import ConfigError, ModelMismatch, NonFinite
from ps.groups import assign_groups
from ps.layout import Layout, Run, TensorSpec
from ps.norms import StepFactor, decide
from ps.plan import Plan
from ps.store import Store
from ps.update import Updater
from tests.ps.recipe import assert_same_after_moving, model, plain, served
from workers.binding import specs_of

NAMES = ["body.0.weight", "body.0.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"]


def groups(*patterns: str | tuple[str, ...]) -> list[GroupConfig]:
    return [GroupConfig(pattern=pattern) for pattern in patterns]


def test_the_first_group_that_matches_is_a_parameters_group() -> None:
    assigned = assign_groups(NAMES, groups(("*.bias", "norm.*"), "head.*"))
    assert list(assigned.values()) == [0, 1, 1, 1, 2, 1]


def test_without_groups_all_are_in_group_0() -> None:
    assert set(assign_groups(NAMES, ()).values()) == {0}


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [
        ("*.baes", "did you mean"),
        ("body.0.wieght", "did you mean body.0.weight"),
        ("head.weight.*", "did you mean head.weight"),
        ("NORM.*", "its parameters are body.0.weight, body.0.bias, norm.weight, norm.bias, head.weight and 1 more"),
        ("qqqq", "its parameters are body.0.weight"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_names(pattern: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match="optimizer.groups: pattern '.*' matches no parameter of the model") as caught:
        assign_groups(NAMES, groups("*.bias", ("head.*", pattern)))
    assert repr(pattern) in str(caught.value) and remedy in str(caught.value)


def test_specs_carry_the_group_of_what_the_optimizer_updates() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[0].bias.requires_grad_(False)
    specs = {spec.name: spec.group for spec in specs_of(network, groups("*.bias", "*"))}
    assert (specs["0.weight"], specs["0.bias"], specs["1.bias"], specs["1.weight"]) == (2, 0, 1, 2)
    assert specs["1.running_mean"] == specs["1.num_batches_tracked"] == 0


def updater_of(config: OptimizerConfig, *specs: TensorSpec) -> Updater:
    layout = Layout(specs, 1)
    shard = layout.shards[0]
    store = Store(np.zeros(Store.size_bytes(shard, slots=0, num_norms=0), np.uint8), shard, slots=0, num_norms=0, key=bytes(32))
    return Updater(layout, store, config, ScheduleConfig(), Plan(steps_per_epoch=1, total_steps=1))


def test_a_group_that_the_server_does_not_know_is_refused() -> None:
    tensor = TensorSpec(name="w", shape=(1,), dtype="float32", group=2)
    updater_of(OptimizerConfig(groups=tuple(groups("a", "b"))), tensor)
    with pytest.raises(ModelMismatch, match="tensor w is in parameter group 2, the server's optimizer has 1"):
        updater_of(OptimizerConfig(groups=tuple(groups("a"))), tensor)


def parts(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The biases, the last matrix, and the rest."""
    named = dict(network.named_parameters())
    biases = [p for name, p in named.items() if name.endswith("bias")]
    return biases, [named["4.weight"]], [p for name, p in named.items() if name in ("0.weight", "2.weight")]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_two_workers_with_groups_equal_torch_with_param_groups(name: str) -> None:
    own = (GroupConfig(pattern="*.bias", weight_decay=0.0), GroupConfig(pattern=("4.*", "[45].weight"), lr_factor=0.5))
    config = OptimizerConfig(name=name, lr=0.02, weight_decay=0.1, groups=own)  # type: ignore[arg-type]
    network = model()
    biases, head, rest = parts(network)
    kind = torch.optim.SGD if name == "sgd" else torch.optim.AdamW
    theirs = kind([{"params": biases, "weight_decay": 0.0}, {"params": head, "lr": 0.01}, {"params": rest}], lr=0.02, weight_decay=0.1)
    assert_same_after_moving(served(config, 2), plain(theirs, network))


CLIPPED = {
    "value": (OptimizerConfig(lr=2.0, clip_value=0.002), lambda p: nn.utils.clip_grad_value_(p, 0.002)),
    # value first, then the norm of what is left, whichever way the keys are written
    "value and norm": (
        OptimizerConfig(lr=2.0, max_grad_norm=0.02, clip_value=0.002),
        lambda p: (nn.utils.clip_grad_value_(p, 0.002), nn.utils.clip_grad_norm_(p, 0.02)),
    ),
    "value, weight decay and groups": (
        OptimizerConfig(lr=2.0, weight_decay=0.01, clip_value=0.002, groups=(GroupConfig(pattern="0.*"),)),
        lambda p: nn.utils.clip_grad_value_(p, 0.002),
    ),
}


@pytest.mark.parametrize("name", CLIPPED)
def test_clipping_by_value_equals_torchs_in_one_process(name: str) -> None:
    config, clip = CLIPPED[name]
    network = model()
    clipped: list[bool] = []

    def on_gradients(network: nn.Module) -> None:
        before = [p.grad.clone() for p in network.parameters()]
        clip(list(network.parameters()))
        clipped.append(any(not torch.equal(a, p.grad) for a, p in zip(before, network.parameters(), strict=True)))

    theirs = torch.optim.SGD(network.parameters(), lr=config.settings().lr, weight_decay=config.settings().weight_decay)
    expected = plain(theirs, network, on_gradients=on_gradients)
    assert_same_after_moving(served(config, 2), expected)
    assert any(clipped)


def mean_of(config: OptimizerConfig, gradient: list[float]) -> tuple[np.ndarray, StepFactor]:
    """The mean of two samples' gradients as an updater leaves it, and the decision that its norms lead to."""
    updater = updater_of(config, TensorSpec(name="w", shape=(len(gradient),), dtype="float64"))
    sums = np.zeros(64)
    sums[: len(gradient)] = 2 * np.array(gradient)
    updater.to_mean(0, Run(0, 1), sums.view(np.uint8), 2.0)
    norms = updater.squares(Run(0, 1), sums.view(np.uint8))
    return sums[: len(gradient)], decide(norms, config.max_grad_norm, skip_nonfinite=config.nonfinite == "skip")


def test_the_norm_is_taken_of_what_clipping_by_value_left() -> None:
    mean, decision = mean_of(OptimizerConfig(clip_value=3.0, max_grad_norm=1.0), [4.0, -40.0])
    assert mean.tolist() == [3.0, -3.0]
    assert decision.factor == pytest.approx(1 / (18**0.5 + 1e-6))


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_clipping_does_not_hide_what_is_not_finite(bad: float) -> None:
    assert mean_of(OptimizerConfig(clip_value=1.0, nonfinite="skip"), [5.0, bad])[1].skip
    assert not mean_of(OptimizerConfig(clip_value=1.0, nonfinite="skip"), [5.0, 1e300])[1].skip
    with pytest.raises(NonFinite, match="mean gradient of w is not finite"):
        mean_of(OptimizerConfig(clip_value=1.0), [5.0, bad])
