"""A small regression learned by real servers and members, and by plain torch: the same batches, step by step."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from ps.config import OptimizerConfig, ScheduleConfig
from ps.plan import Plan
from tests.ps.cluster import Member, cluster, exchange, in_threads, start
from workers.sampler import part_of

STEPS = 20
BATCH = 7
"""Divisible by no number of workers above 1."""

Weights = dict[str, torch.Tensor]
OnGradients = Callable[[nn.Module], object]
"""Called between backward and the optimizer."""

# every rule, each with the settings that change its formula, beside the class of torch that it must equal
OPTIMIZERS: dict[str, tuple[OptimizerConfig, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": (OptimizerConfig(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd with weight decay": (OptimizerConfig(lr=0.1, weight_decay=0.01), lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01)),
    "momentum": (OptimizerConfig(lr=0.05, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    # the first velocity is the whole gradient, dampened or not
    "dampening": (OptimizerConfig(lr=0.1, momentum=0.9, dampening=0.5), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5)),
    "nesterov": (
        OptimizerConfig(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "adam": (OptimizerConfig(name="adam", lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01)),
    "adam with its keys": (
        OptimizerConfig(name="adam", lr=0.01, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1, amsgrad=True),
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1, amsgrad=True),
    ),
    "adamw": (OptimizerConfig(name="adamw", lr=0.01), lambda p: torch.optim.AdamW(p, lr=0.01)),
    "adamw with its keys": (
        OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.2, amsgrad=True),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.2, amsgrad=True),
    ),
    "rmsprop": (OptimizerConfig(name="rmsprop", lr=0.003), lambda p: torch.optim.RMSprop(p, lr=0.003, alpha=0.9)),
    "rmsprop with its keys": (
        OptimizerConfig(name="rmsprop", lr=0.003, rho=0.8, momentum=0.5, centered=True, weight_decay=0.1, eps=1e-3),
        lambda p: torch.optim.RMSprop(p, lr=0.003, alpha=0.8, momentum=0.5, centered=True, weight_decay=0.1, eps=1e-3),
    ),
    "rmsprop with momentum": (
        OptimizerConfig(name="rmsprop", lr=0.003, momentum=0.5),
        lambda p: torch.optim.RMSprop(p, lr=0.003, alpha=0.9, momentum=0.5),
    ),
    "adagrad": (OptimizerConfig(name="adagrad", lr=0.05), lambda p: torch.optim.Adagrad(p, lr=0.05)),
    "adagrad with weight decay": (
        OptimizerConfig(name="adagrad", lr=0.05, weight_decay=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=0.1),
    ),
}
EMA = OptimizerConfig(lr=0.5, momentum=0.9, momentum_form="ema")
"""Has no class in torch."""


def model() -> nn.Module:
    """Its second matrix is cut into two chunks, of which two servers get one each."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 96), nn.Tanh(), nn.Linear(96, 90), nn.Tanh(), nn.Linear(90, 2)).double()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 6, generator=random, dtype=torch.float64)
    return x, torch.stack([torch.sin(x.sum(1)), x.square().mean(1)], 1)


def loss(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(network(x), y)


def learn(member: Member, num_workers: int, steps: int) -> None:
    start(member)
    for step in range(steps):
        part = part_of(BATCH, num_workers, member.rank)
        x, y = (tensor[part] for tensor in batch(step))
        member.bound.model.zero_grad(set_to_none=True)
        value = loss(member.bound.model, x, y)
        value.backward()
        member.bound.gather(len(x), divide=False, sums=(float(value.detach()) * len(x), len(x), len(x), float(member.rank == 0)))
        exchange(member, step, len(x), present=member.bound.is_present)
        member.bound.install(step + 1)


def served(
    optimizer: OptimizerConfig,
    num_workers: int,
    *,
    num_servers: int = 2,
    schedule: ScheduleConfig | None = None,
    steps: int = STEPS,
    steps_per_epoch: int = 5,
) -> Weights:
    """Weights after `steps` steps on real servers."""
    plan = Plan(steps_per_epoch=steps_per_epoch, total_steps=steps)
    with cluster(num_workers, num_servers, optimizer=optimizer, schedule=schedule, plan=plan) as servers:
        members = [servers.member(rank, model()) for rank in range(num_workers)]
        in_threads([lambda m=member: learn(m, num_workers, steps) for member in members])
        return servers.weights(steps)


def plain(
    optimizer: torch.optim.Optimizer,
    network: nn.Module,
    *,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    steps: int = STEPS,
    steps_per_epoch: int = 1,
    on_gradients: OnGradients = lambda _: None,
) -> Weights:
    """Weights after the same steps in a torch loop; the scheduler steps once per `steps_per_epoch`."""
    for step in range(steps):
        optimizer.zero_grad()
        loss(network, *batch(step)).backward()
        on_gradients(network)
        optimizer.step()
        if scheduler and (step + 1) % steps_per_epoch == 0:
            scheduler.step()
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def assert_same_after_moving(found: Weights, expected: Weights) -> None:
    """Equal to 1e-10, after having moved by much more than that."""
    first = model().state_dict()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= 1e-10, name
        assert (tensor - first[name]).abs().max() >= 1e-3, name
