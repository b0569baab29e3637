"""Your own training loop: `pserver run examples/own-loop.toml`, or `pserver run CONFIG.toml --loop examples/own_loop.py:train`.

The function runs in every worker. It is a plain torch loop but for `ctx`: the optimizer's step is that of all workers together.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from workers.context import Context


def train(ctx: Context) -> None:
    images, labels = load_digits(return_X_y=True)
    x, y = (torch.from_numpy(images).float() / 16).to(ctx.device), torch.from_numpy(labels).to(ctx.device)
    train_x, train_y, test_x, test_y = x[:1437], y[:1437], x[1437:], y[1437:]

    torch.manual_seed(ctx.seed)  # the same model on every worker
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(ctx.device)
    sampler = ctx.sampler(len(train_x))  # deals samples by the [train] section
    optimizer = ctx.optimizer(model)  # set by [optimizer] and [schedule]; it lives on the servers

    for step in ctx.steps():
        batch = torch.from_numpy(sampler(step))
        optimizer.zero_grad()
        if len(batch):
            nn.functional.cross_entropy(model(train_x[batch]), train_y[batch]).backward()
        optimizer.step(weight=len(batch))
        if (step + 1) % sampler.steps_per_epoch == 0:
            mine = slice(ctx.rank, None, ctx.num_workers)  # every worker validates its part
            with torch.no_grad():
                right = (model(test_x[mine]).argmax(1) == test_y[mine]).float().mean()
            if ctx.report({"accuracy": float(right)}, weight=len(test_y[mine])):
                break
