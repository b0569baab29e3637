"""The optimizer of an own loop: what it pushes, and what it refuses because it could not act."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ps.errors import ConfigError
from workers.optimizer import DistributedOptimizer


class Rig:
    """A model with a frozen and an unused parameter, and an optimizer whose servers subtract the gradient."""

    def __init__(self) -> None:
        self.model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1), "frozen": nn.Linear(2, 1).requires_grad_(False)})
        self.pushed: list[tuple[float, bool]] = []
        self.opt = DistributedOptimizer(self.model, lambda weight, divide: self.pushed.append((weight, divide)), self._step)

    def _step(self, weight: float) -> None:
        assert self.pushed[-1][0] == weight
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.data = parameter.data - parameter.grad  # as landed memory is installed

    def backward(self, x: float = 1.0) -> None:
        self.model["used"](torch.full((3, 2), x)).mean().backward()

    def step(self) -> None:
        self.opt.zero_grad()
        self.backward()
        self.opt.step(weight=3)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_steps_of_a_plain_loop_push_their_weights(rig: Rig) -> None:
    for _ in range(3):
        rig.step()
    rig.opt.zero_grad()
    rig.opt.step(weight=0)
    assert rig.pushed == [(3.0, False)] * 3 + [(0.0, False)]


def test_several_backwards_add_up(rig: Rig) -> None:
    rig.opt.zero_grad()
    for x in (1.0, 2.0, 3.0):
        rig.backward(x)
    rig.opt.step(weight=9, divide=True)
    assert rig.pushed == [(9.0, True)]


def test_zero_grad_may_follow_the_step(rig: Rig) -> None:
    for _ in range(2):
        rig.backward()
        rig.opt.step(weight=3)
        rig.opt.zero_grad()
    assert len(rig.pushed) == 2


def test_evaluation_and_moves_to_the_same_place_are_no_changes(rig: Rig) -> None:
    rig.step()
    with torch.no_grad():
        rig.model.eval()["used"](torch.ones(1, 2))
    rig.model.train().cpu()
    rig.model.state_dict()
    rig.step()
    assert len(rig.pushed) == 2


def clip_norm(rig: Rig) -> None:
    torch.nn.utils.clip_grad_norm_(rig.model.parameters(), 1e-3)


def clip_value(rig: Rig) -> None:
    torch.nn.utils.clip_grad_value_(rig.model.parameters(), 1e-3)


def replaces(rig: Rig) -> None:
    rig.model["used"].weight.grad = torch.zeros(1, 2)


def drops(rig: Rig) -> None:
    rig.model["used"].weight.grad = None


def invents(rig: Rig) -> None:
    rig.model["unused"].weight.grad = torch.zeros(1, 2)


@pytest.mark.parametrize("change", [clip_norm, clip_value, replaces, drops, invents])
def test_gradients_changed_after_backward_are_refused(rig: Rig, change: Callable[[Rig], None]) -> None:
    rig.backward()
    change(rig)
    with pytest.raises(ConfigError, match="gradient of .* was changed after backward.* optimizer.max_grad_norm or optimizer.clip_value"):
        rig.opt.step(weight=3)
    assert not rig.pushed


@pytest.mark.parametrize("change", [clip_norm, clip_value, replaces])
def test_gradients_changed_between_two_backwards_are_refused(rig: Rig, change: Callable[[Rig], None]) -> None:
    rig.backward()
    change(rig)
    with pytest.raises(ConfigError, match="was changed after backward"):
        rig.backward()


def test_gradients_that_were_there_before_are_refused() -> None:
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    opt = DistributedOptimizer(model, lambda weight, divide: None, lambda weight: None)
    with pytest.raises(ConfigError, match="begin every step with opt.zero_grad"):
        opt.step(weight=1)


def test_a_step_without_zero_grad_is_refused(rig: Rig) -> None:
    rig.step()
    with pytest.raises(ConfigError, match="the gradients are those of the step before: begin every step with opt.zero_grad"):
        rig.opt.step(weight=3)
    with pytest.raises(ConfigError, match="would add to the gradients of the step before: begin every step with opt.zero_grad"):
        rig.backward()
    assert len(rig.pushed) == 1


def test_a_weight_without_gradients_is_refused(rig: Rig) -> None:
    with pytest.raises(ConfigError, match=r"opt.step\(weight=1\) without any gradient: .* weight=0 without samples"):
        rig.opt.step()


def test_a_weight_that_is_told_before_backward_is_pushed_once(rig: Rig) -> None:
    rig.opt.zero_grad(weight=3)
    assert rig.pushed == [(3.0, False)], "gradients may leave from here on"
    rig.backward()
    rig.opt.step(weight=3)
    assert rig.pushed == [(3.0, False)]


@pytest.mark.parametrize(
    ("follows", "message"),
    [
        (lambda opt: opt.step(weight=4), r"opt.step\(weight=4, divide=False\) follows"),
        (lambda opt: opt.step(weight=3, divide=True), r"opt.step\(weight=3, divide=True\) follows"),
        (lambda opt: opt.zero_grad(), r"opt.zero_grad\(\) follows"),
        (lambda opt: opt.zero_grad(weight=3), r"opt.zero_grad\(\) follows"),
    ],
)
def test_what_follows_must_be_what_was_told_before_backward(rig: Rig, follows: Callable[[Any], object], message: str) -> None:
    rig.opt.zero_grad(weight=3)
    rig.backward()
    with pytest.raises(
        ConfigError, match=rf"opt.zero_grad\(weight=3\) has let gradients leave, and {message}: one backward and opt.step\(weight=3\) must"
    ):
        follows(rig.opt)


def test_gradients_that_have_left_may_not_be_clipped(rig: Rig) -> None:
    rig.opt.zero_grad(weight=3)
    rig.backward()
    clip_norm(rig)
    with pytest.raises(ConfigError, match="was changed after backward.* optimizer.max_grad_norm"):
        rig.opt.step(weight=3)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_out_of_range_are_refused(rig: Rig, weight: float) -> None:
    rig.backward()
    with pytest.raises(ConfigError, match="is out of range: finite and >= 0"):
        rig.opt.step(weight=weight)


def clamps(model: Any) -> None:
    with torch.no_grad():
        model["used"].weight.clamp_(-1e-3, 1e-3)


def loads(model: Any) -> None:
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})


def converts(model: Any) -> None:
    model.double()


@pytest.mark.parametrize("change", [clamps, loads, converts])
def test_parameters_changed_by_others_are_refused(rig: Rig, change: Callable[[Any], None]) -> None:
    rig.step()
    rig.opt.zero_grad()
    change(rig.model)
    with pytest.raises(ConfigError, match=r"parameter .* was changed after ctx.optimizer\(model\), but the servers hold it"):
        rig.opt.step(weight=0)


def test_a_frozen_parameter_that_is_thawed_later_is_refused(rig: Rig) -> None:
    rig.model["frozen"].requires_grad_(True)
    rig.model["frozen"](torch.ones(1, 2)).sum().backward()
    rig.backward()
    with pytest.raises(ConfigError, match="frozen.weight was frozen when ctx.optimizer"):
        rig.opt.step(weight=1)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda opt: torch.optim.lr_scheduler.StepLR(opt, 1),
        lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10),
        lambda opt: torch.optim.lr_scheduler.ReduceLROnPlateau(opt),
        lambda opt: torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, 10),
    ],
)
def test_schedulers_are_refused_with_the_section_to_use(rig: Rig, schedule: Callable[[Any], object]) -> None:
    with pytest.raises(ConfigError, match=r"set the rate by the \[schedule\] section"):
        schedule(rig.opt)


def test_a_gradient_scaler_is_refused(rig: Rig) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(rig.model["used"](torch.ones(1, 2)).sum()).backward()
    with pytest.raises(ConfigError, match="in place of a GradScaler use bfloat16"):
        scaler.step(rig.opt)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda opt: opt.param_groups, "no parameter groups"),
        (lambda opt: opt.add_param_group({"params": []}), r"\[\[optimizer.groups\]\]"),
        (lambda opt: opt.state_dict(), "model.state_dict"),
        (lambda opt: opt.load_state_dict({}), "train.init = FILE.safetensors"),
        (lambda opt: opt.zero_grad(set_to_none=False), "leave the argument out"),
        (lambda opt: opt.zero_grad(False), "leave the argument out"),
        (lambda opt: opt.step(lambda: 1.0), "closure"),
    ],
)
def test_what_has_no_effect_here_is_refused_with_the_remedy(rig: Rig, use: Callable[[Any], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        use(rig.opt)


def test_what_torch_keeps_in_an_optimizer_is_said_to_be_on_the_servers(rig: Rig) -> None:
    assert isinstance(rig.opt, torch.optim.Optimizer)
    assert repr(rig.opt) == "DistributedOptimizer(4 parameters, updated on the servers)"
    with pytest.raises(AttributeError, match="no defaults: it lives on the servers"):
        _ = rig.opt.defaults
