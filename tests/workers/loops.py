"""Loops of users who get it wrong, and of one who does not; two ranks, ten samples, batches of two."""

import sys

import torch
from torch import nn

from workers.context import Context
from workers.optimizer import DistributedOptimizer

DATA = torch.arange(20.0).view(10, 2) / 20


def model() -> nn.Linear:
    """Not from torch's own generator, which the threads of a test share."""
    made = nn.Linear(2, 1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(0.5)
    return made


def started(ctx: Context) -> DistributedOptimizer:
    ctx.sampler(len(DATA))
    return ctx.optimizer(model())


def right(ctx: Context) -> None:
    sampler = ctx.sampler(len(DATA))
    net = model()
    opt = ctx.optimizer(net)
    for step in ctx.steps():
        opt.zero_grad()
        net(DATA[torch.from_numpy(sampler(step))]).square().mean().backward()
        opt.step(weight=len(sampler(step)))
        if (step + 1) % sampler.steps_per_epoch == 0 and ctx.report({"seen": float(step)}, weight=1 + ctx.rank):
            break
    ctx.rng(0)


def _uneven(ctx: Context, *, early: bool) -> None:
    """A rank without samples in a step does a backward there, of what must not be pushed."""
    sampler = ctx.sampler(len(DATA))
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0.25)
    opt = ctx.optimizer(net)
    for step in ctx.steps():
        indices = torch.from_numpy(sampler(step))
        if early:
            opt.zero_grad(weight=len(indices))
        else:
            opt.zero_grad()
        data = DATA[indices] if len(indices) else DATA * float("inf")
        net(data).square().mean().backward()
        opt.step(weight=len(indices))


def tells_weights_first(ctx: Context) -> None:
    _uneven(ctx, early=True)


def tells_weights_last(ctx: Context) -> None:
    _uneven(ctx, early=False)


def two_backwards_in_a_step(ctx: Context) -> None:
    opt = started(ctx)
    for step in ctx.steps():
        opt.zero_grad(weight=1)
        for _ in range(1 + (step == 3)):
            opt._model(DATA[:2]).mean().backward()
        opt.step(weight=1)


def stops_where_the_driver_says(ctx: Context) -> None:
    opt = started(ctx)
    for _ in ctx.steps():
        opt.step(weight=0)
        ctx.report({"a": 1.0})


def steps_although_the_run_ends(ctx: Context) -> None:
    opt = started(ctx)
    while True:
        opt.step(weight=0)
        ctx.report({})


def different_metrics(ctx: Context) -> None:
    opt = started(ctx)
    for step in ctx.steps():
        opt.step(weight=0)
        if step == 4:
            ctx.report({"both": float(ctx.rank), **({"mine": 7.0} if ctx.rank == 0 else {})}, weight=1 + ctx.rank)


def only_rank_0_reports(ctx: Context) -> None:
    opt = started(ctx)
    for step in ctx.steps():
        opt.step(weight=0)
        if ctx.rank == 0 and step == 1:
            ctx.report({"a": 1.0})


def only_rank_0_reports_at_the_end(ctx: Context) -> None:
    opt = started(ctx)
    for _ in ctx.steps():
        opt.step(weight=0)
    if ctx.rank == 0:
        ctx.report({"a": 1.0})


def rank_1_leaves_early(ctx: Context) -> None:
    opt = started(ctx)
    for step in ctx.steps():
        if ctx.rank == 1 and step == 3:
            break
        opt.step(weight=0)


def rank_1_leaves_while_rank_0_reports(ctx: Context) -> None:
    opt = started(ctx)
    for step in ctx.steps():
        if step == 3:
            if ctx.rank == 1:
                break
            ctx.report({"a": 1.0})
        opt.step(weight=0)


def reports_twice(ctx: Context) -> None:
    opt = started(ctx)
    for _ in ctx.steps():
        opt.step(weight=0)
        ctx.report({"a": 1.0})
        ctx.report({"b": 1.0})


def reports_a_reserved_name(ctx: Context) -> None:
    started(ctx)
    ctx.report({"step": 1.0})


def reports_no_weight(ctx: Context) -> None:
    started(ctx)
    ctx.report({"a": 1.0}, weight=float("nan"))


def reports_a_number(ctx: Context) -> None:
    started(ctx)
    ctx.report(1.0)  # type: ignore[arg-type]


def reports_a_list(ctx: Context) -> None:
    started(ctx)
    ctx.report({"a": torch.ones(2)})  # type: ignore[dict-item]


def optimizes_parameters(ctx: Context) -> None:
    ctx.sampler(len(DATA))
    ctx.optimizer(model().parameters())  # type: ignore[arg-type]


def samples_the_data(ctx: Context) -> None:
    ctx.sampler(DATA)  # type: ignore[arg-type]


def reports_first(ctx: Context) -> None:
    ctx.report({"a": 1.0})


def two_optimizers(ctx: Context) -> None:
    started(ctx)
    ctx.optimizer(model())


def two_samplers(ctx: Context) -> None:
    ctx.sampler(10)
    ctx.sampler(10)
    ctx.sampler(5)


def no_data(ctx: Context) -> None:
    ctx.sampler(0)


def half(ctx: Context) -> None:
    ctx.sampler(10)
    ctx.optimizer(nn.Linear(2, 1).half())


def no_length(ctx: Context) -> None:
    ctx.optimizer(model())


def steps_first(ctx: Context) -> None:
    for _ in ctx.steps():
        pass


def another_model(ctx: Context) -> None:
    ctx.sampler(len(DATA))
    made = model()
    with torch.no_grad():
        made.bias += ctx.rank
    ctx.optimizer(made)


def other_data(ctx: Context) -> None:
    ctx.sampler(len(DATA) * (1 + ctx.rank))
    ctx.optimizer(model())


def steps_twice(ctx: Context) -> None:
    opt = started(ctx)
    for _ in ctx.steps():
        opt.step(weight=0)
        opt.step(weight=0)


def rank_1_steps_twice(ctx: Context) -> None:
    opt = started(ctx)
    for _ in ctx.steps():
        opt.step(weight=0)
        if ctx.rank == 1:
            opt.step(weight=0)


def never_steps(ctx: Context) -> None:
    started(ctx)
    for _ in ctx.steps():
        pass


def steps_after_the_last(ctx: Context) -> None:
    opt = started(ctx)
    for _ in ctx.steps():
        opt.step(weight=0)
    opt.step(weight=0)


def returns_at_once(ctx: Context) -> None:
    pass


def exits(ctx: Context) -> None:
    sys.exit(3)


def without_argument() -> None:
    pass


def yields(ctx: Context):  # type: ignore[no-untyped-def]
    yield ctx


async def waits(ctx: Context) -> None:
    pass


NUMBER = 3
