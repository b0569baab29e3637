"""Every optimizer: one process' weights on any number of workers, the same minimum, the same bits."""

import dataclasses

import pytest
import torch

from ps.config import OptimizerConfig, ScheduleConfig
from ps.optimizers import num_slots, update_rule
from ps.schedules import learning_rate
from tests.ps.recipe import EMA, OPTIMIZERS, STEPS, assert_same_after_moving, batch, loss, model, plain, served


@pytest.mark.parametrize(("name", "num_workers"), [*((name, 2) for name in OPTIMIZERS), ("adam", 1), ("adam", 4)])
def test_any_number_of_workers_equals_torch_in_one_process(name: str, num_workers: int) -> None:
    config, theirs = OPTIMIZERS[name]
    network = model()
    assert_same_after_moving(served(config, num_workers), plain(theirs(network.parameters()), network))


def test_the_moving_average_form_of_momentum_is_its_formula() -> None:
    network = model()
    velocity = [torch.zeros_like(p) for p in network.parameters()]
    for step in range(STEPS):
        network.zero_grad()
        loss(network, *batch(step)).backward()
        with torch.no_grad():
            for v, p in zip(velocity, network.parameters(), strict=True):
                v.mul_(0.9).add_(p.grad, alpha=0.1)
                p.sub_(v, alpha=0.5)
    assert_same_after_moving(served(EMA, 2), {n: p.detach() for n, p in network.named_parameters()})


def test_one_two_and_four_servers_give_the_same_bits() -> None:
    config, _ = OPTIMIZERS["rmsprop with its keys"]
    one, two, four = (served(config, 2, num_servers=n, steps=5) for n in (1, 2, 4))
    assert all(torch.equal(one[name], two[name]) and torch.equal(one[name], four[name]) for name in one)


RATES = {"sgd": 1.0, "adam": 0.03, "adamw": 0.03, "rmsprop": 0.03, "adagrad": 0.5}


RIDGE = 0.1


def problem() -> torch.Tensor:
    """Samples times their labels of -1 and 1, for a logistic regression with a ridge: strictly convex, one minimum."""
    random = torch.Generator().manual_seed(3)
    x = torch.randn(60, 8, generator=random, dtype=torch.float64)
    labels = torch.sign(x @ torch.randn(8, generator=random, dtype=torch.float64) + torch.randn(60, generator=random, dtype=torch.float64))
    return x * labels[:, None]


def gradient(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return -(torch.sigmoid(-(x @ w))[:, None] * x).mean(0) + RIDGE * w


def minimum_by_newton(x: torch.Tensor) -> torch.Tensor:
    w = torch.zeros(8, dtype=torch.float64)
    for _ in range(20):
        p = torch.sigmoid(x @ w)
        hessian = (x * (p * (1 - p))[:, None]).T @ x / len(x) + RIDGE * torch.eye(8, dtype=torch.float64)
        w = w - torch.linalg.solve(hessian, gradient(w, x))
    return w


@pytest.mark.parametrize("name", [*OPTIMIZERS, "ema"])
def test_every_optimizer_meets_the_same_minimum_of_a_convex_problem(name: str) -> None:
    config = OPTIMIZERS[name][0] if name != "ema" else EMA
    config = dataclasses.replace(config, lr=RATES[config.name] * (0.1 if config.momentum and name != "ema" else 1.0), weight_decay=0.0)
    x = problem()
    rule, schedule, steps = update_rule(config), ScheduleConfig(name="cosine"), 1500
    w = torch.zeros(8, dtype=torch.float64)
    slots = [torch.zeros_like(w) for _ in range(num_slots(config))]
    for step in range(steps):
        rule(w, gradient(w, x), slots, step, learning_rate(config, schedule, step, steps))
    torch.testing.assert_close(w, minimum_by_newton(x), atol=1e-6, rtol=0)


# what is not asked for has the value that torch gives it, but for what the table of the docs says
DEFAULTS = [
    (OptimizerConfig(name="adam"), torch.optim.Adam, {}),
    (OptimizerConfig(name="adamw"), torch.optim.AdamW, {}),
    (OptimizerConfig(name="adagrad"), torch.optim.Adagrad, {}),
    (OptimizerConfig(name="rmsprop"), torch.optim.RMSprop, {"lr": 0.001, "alpha": 0.9}),
    (OptimizerConfig(), torch.optim.SGD, {"lr": 0.01}),
]


@pytest.mark.parametrize(("config", "theirs", "differs"), DEFAULTS, ids=lambda value: getattr(value, "name", ""))
def test_defaults_are_torchs_where_not_said_otherwise(
    config: OptimizerConfig, theirs: type[torch.optim.Optimizer], differs: dict[str, float]
) -> None:
    values = theirs([torch.zeros(1)]).defaults | differs
    ours = dataclasses.asdict(config.settings()) | {"alpha": config.settings().rho, "betas": (config.settings().beta1, config.settings().beta2)}
    assert {key: ours[key] for key in values if key in ours} == {key: value for key, value in values.items() if key in ours}
