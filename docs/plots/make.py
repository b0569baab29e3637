"""Makes the plots of docs/optimisation.md: `make docs`, or `python docs/plots/make.py [NAME ...]`. About a minute."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from runs import FlatTask, Valley, descend
from torch import Tensor

from ps.config import OptimizerConfig, ScheduleConfig
from ps.decisions import Decider, EarlyStoppingConfig, PlateauConfig
from ps.schedules import scaled_lr, schedule_factor
from workers.data import TensorData
from workers.tasks.digits import Digits
from workers.tasks.logistic import Logistic

FOLDER = Path(__file__).parent
STYLE = {
    "svg.fonttype": "none",  # text stays text: small files
    "svg.hashsalt": "pserver",  # the same bytes every time
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
    "path.simplify_threshold": 0.5,
    "axes.prop_cycle": matplotlib.cycler(color=["#1f5fa8", "#d1632a", "#2f8f5b", "#8a4fb0", "#b58a12", "#c2306b", "#4b4b4b"]),
}
VALLEY = Valley()
START = (-4.0, 1.2)


def learning_rates() -> Figure:
    figure, all_axes = pyplot.subplots(1, 3, figsize=(9, 2.7), sharey=True)
    for axes, lr, steps, words in zip(all_axes, (0.005, 0.07, 0.104), (30, 30, 8), ("too small", "fits", "above 2 / largest curvature"), strict=True):
        _draw_path(axes, descend(OptimizerConfig(lr=lr), VALLEY.gradient, START, steps))
        axes.set_title(f"lr = {lr}: {words}")
    return figure


def methods() -> Figure:
    rules = {
        "sgd": OptimizerConfig(lr=0.07),
        "momentum 0.9": OptimizerConfig(lr=0.01, momentum=0.9),
        "nesterov 0.9": OptimizerConfig(lr=0.01, momentum=0.9, nesterov=True),
        "adagrad": OptimizerConfig(name="adagrad", lr=1.0),
        "rmsprop": OptimizerConfig(name="rmsprop", lr=0.15),
        "adam": OptimizerConfig(name="adam", lr=0.3),
    }
    figure, all_axes = pyplot.subplots(2, 3, figsize=(9, 4.9), sharex=True, sharey=True)
    for axes, (name, rule) in zip(all_axes.flat, rules.items(), strict=True):
        _draw_path(axes, descend(rule, VALLEY.gradient, START, 30))
        axes.set_title(f"{name}, lr = {rule.lr:g}")
    return figure


def _draw_path(axes: Axes, path: Tensor) -> None:
    for level in np.geomspace(0.3, 100, 5):  # w^T A w / 2 = level is an ellipse
        long, short = (2 * np.sqrt(2 * level / curvature) for curvature in (1, VALLEY.ratio))
        axes.add_patch(Ellipse((0, 0), long, short, angle=np.degrees(VALLEY.angle), fill=False, color="#c4ccd6", linewidth=0.8))
    axes.plot(*path.T, marker="o", markersize=2.6, linewidth=1.0)
    axes.plot(0, 0, marker="+", color="#d1632a", markersize=10, markeredgewidth=1.8)
    axes.set(xlim=(-4.7, 2.2), ylim=(-3.2, 3.2), xticks=[], yticks=[])


def saddle() -> Figure:
    """x^2/2 - y^2/2 + y^4/4: a saddle in the origin, minima at y = 1 and -1 with value -1/4."""

    def gradient(w: Tensor) -> Tensor:
        return torch.stack([w[0], w[1] ** 3 - w[1]])

    rules = {
        "sgd, lr 0.1": OptimizerConfig(lr=0.1),
        "momentum 0.9, lr 0.1": OptimizerConfig(lr=0.1, momentum=0.9),
        "rmsprop, lr 0.02": OptimizerConfig(name="rmsprop", lr=0.02),
        "adam, lr 0.1": OptimizerConfig(name="adam", lr=0.1),
    }
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.1))
    x, y = np.meshgrid(np.linspace(-1.0, 1.7, 30), np.linspace(-0.5, 1.6, 30))
    left.contour(x, y, x**2 / 2 - y**2 / 2 + y**4 / 4, levels=np.linspace(-0.24, 1.2, 13), colors="#c4ccd6", linewidths=0.8, linestyles="solid")
    for name, rule in rules.items():
        path = descend(rule, gradient, (1.5, 1e-4), 150)
        left.plot(*path.T, linewidth=1.2, label=name)
        right.plot(path[:, 0] ** 2 / 2 - path[:, 1] ** 2 / 2 + path[:, 1] ** 4 / 4, label=name)
    left.plot(0, 0, marker="x", color="#4b4b4b")
    left.annotate("saddle", (0, 0), (-0.33, -0.3))
    left.plot(0, 1, marker="+", color="#4b4b4b")
    left.annotate("minimum", (0, 1), (-0.7, 1.2))
    left.set(xlabel="x", ylabel="y")
    right.set(xlabel="step", ylabel="value", title="the plateau is the saddle")
    right.legend()
    return figure


def schedules() -> Figure:
    shown = {
        "constant, warmup_steps = 100": ScheduleConfig(warmup_steps=100),
        "step, every = 300, gamma = 0.3": ScheduleConfig(name="step", every=300, gamma=0.3),
        "multi_step, [400, 800], gamma = 0.3": ScheduleConfig(name="multi_step", milestones=(400, 800), gamma=0.3),
        "exponential, gamma = 0.997": ScheduleConfig(name="exponential", gamma=0.997),
        "linear, min_factor = 0.1": ScheduleConfig(name="linear", min_factor=0.1),
        "cosine, warmup_steps = 100": ScheduleConfig(name="cosine", warmup_steps=100),
        "cosine, t_0 = 150, t_mult = 2": ScheduleConfig(name="cosine", t_0=150, t_mult=2),
        "one_cycle": ScheduleConfig(name="one_cycle"),
    }
    figure, all_axes = pyplot.subplots(2, 4, figsize=(10, 3.6), sharex=True, sharey=True)
    steps = np.arange(0, 1000, 2)
    for axes, (name, schedule) in zip(all_axes.flat, shown.items(), strict=True):
        axes.plot(steps, [schedule_factor(schedule, int(t), 1000) for t in steps])
        axes.set_title(name, fontsize=8)
    figure.supxlabel("step of 1000", fontsize=9)
    figure.supylabel("rate / optimizer.lr", fontsize=9)
    return figure


def convex() -> Figure:
    """All scans in every step: nothing but the rule differs."""
    steps = 400
    problem = FlatTask(Logistic(l2=0.02), torch.float64)
    newton = _newton(problem, steps=8)
    least = problem.loss(newton[-1], problem.train_data).item()
    rules = {
        "sgd, lr 1": OptimizerConfig(lr=1.0),
        "momentum 0.9, lr 0.3": OptimizerConfig(lr=0.3, momentum=0.9),
        "nesterov 0.9, lr 0.3": OptimizerConfig(lr=0.3, momentum=0.9, nesterov=True),
        "adagrad, lr 0.3": OptimizerConfig(name="adagrad", lr=0.3),
        "rmsprop, lr 0.01": OptimizerConfig(name="rmsprop", lr=0.01),
        "adam, lr 0.05": OptimizerConfig(name="adam", lr=0.05),
    }
    paths = {name: descend(rule, problem.gradient, problem.start, steps) for name, rule in rules.items()} | {"Newton": newton}
    figure, axes = pyplot.subplots(figsize=(7.2, 3.4))
    for name, path in paths.items():
        every = 1 if name == "Newton" else 4
        above = [problem.loss(weights, problem.train_data).item() - least for weights in path[::every]]
        axes.semilogy(np.arange(len(above)) * every, np.maximum(above, 1e-14), label=name)
    axes.set(xlabel="step", ylabel="loss above its minimum", ylim=(1e-12, 10))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


def _newton(problem: FlatTask, steps: int) -> Tensor:
    weights, path = problem.start, [problem.start]
    for _ in range(steps):
        hessian = torch.autograd.functional.hessian(lambda w: _logistic_loss(problem, w), weights)
        assert isinstance(hessian, Tensor)
        weights = weights - torch.linalg.solve(hessian, problem.gradient(weights))
        path.append(weights)
    return torch.stack(path)


def _logistic_loss(problem: FlatTask, weights: Tensor) -> Tensor:
    assert isinstance(problem.task, Logistic)
    pixels, digits = problem.train_data.tensors
    scores = pixels @ weights[:640].view(10, 64).T + weights[640:]
    return torch.nn.functional.cross_entropy(scores, digits) + problem.task.l2 / 2 * weights.square().sum()


@dataclass(frozen=True)
class MislabelledDigits(Digits):
    """A fifth of the scans have a random label: there is something to be learned by heart that does not carry over."""

    def train_data(self) -> TensorData:
        return _mislabelled(super().train_data(), seed=0)

    def validation_data(self) -> TensorData:
        return _mislabelled(super().validation_data(), seed=1)


def _mislabelled(data: TensorData, seed: int) -> TensorData:
    pixels, digits = data.tensors
    rng = np.random.default_rng(seed)
    wrong = torch.from_numpy(rng.random(len(digits)) < 0.2)
    return TensorData(pixels, torch.where(wrong, torch.from_numpy(rng.integers(0, 10, len(digits))), digits))


def early_stopping() -> Figure:
    patience = 10
    history = FlatTask(MislabelledDigits(hidden=64)).fit(OptimizerConfig(lr=0.05, momentum=0.9), batch=64, epochs=60)
    decider = Decider(EarlyStoppingConfig(patience=patience), PlateauConfig())
    decisions = [decider.decide(e, {"validation_loss": loss}, validated=True) for e, loss in enumerate(history.validation) if e]
    end = next(d.version for d in decisions if d.stop)
    best = max(d.version for d in decisions if d.is_best and d.version <= end)
    figure, axes = pyplot.subplots(figsize=(6.6, 3.1))
    axes.plot(history.train, label="training loss")
    axes.plot(history.validation, label="validation loss")
    for epoch, words, style, height in ((best, "best: these weights are kept", ":", 2.2), (end, f"the run ends (patience = {patience})", "--", 1.95)):
        axes.axvline(epoch, linestyle=style, color="#4b4b4b", linewidth=1)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.annotate(words, (epoch, height), xytext=(5, 0), textcoords="offset points", va="center", bbox=box)
    axes.set(xlabel="epoch", ylabel="loss", ylim=(0, 2.4))
    axes.legend(loc="lower left")
    return figure


def batch_sizes() -> Figure:
    reference, epochs = 32, 10
    batches = [8, 16, 32, 64, 128, 256, 512]
    figure, all_axes = pyplot.subplots(1, 2, figsize=(9, 3.1), sharey=True)
    problem = FlatTask(Digits(hidden=64))
    for axes, base in zip(all_axes, (OptimizerConfig(lr=0.1), OptimizerConfig(name="adam", lr=0.002)), strict=True):
        assert base.lr is not None
        for rule in ("none", "sqrt", "linear"):
            rates = [scaled_lr(base.lr, rule, batch, reference) for batch in batches]
            losses = [
                np.mean([problem.fit(OptimizerConfig(name=base.name, lr=lr), batch=batch, epochs=epochs, seed=seed).train[-1] for seed in range(3)])
                for batch, lr in zip(batches, rates, strict=True)
            ]
            axes.loglog(batches, losses, marker="o", markersize=3.5, label=f'lr_scaling = "{rule}"')
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.minorticks_off()
        axes.axvline(reference, linestyle=":", color="#4b4b4b", linewidth=1)
        axes.set(xlabel="global batch", title=f"{base.name}, lr = {base.lr:g} at a batch of {reference}")
    all_axes[0].set_ylabel(f"training loss after {epochs} epochs")
    all_axes[1].legend(frameon=True, framealpha=1, edgecolor="none")
    return figure


def noise() -> Figure:
    """Many one-dimensional runs at once: one element each. Both minima are equally deep, one is ten times as narrow."""

    def value(w: Tensor) -> Tensor:
        return 0.02 * w**2 - torch.exp(-(((w + 1) / 0.12) ** 2)) - torch.exp(-(((w - 1) / 1.0) ** 2))

    def noisy_gradient(w: Tensor) -> Tensor:
        leaf = w.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(leaf).sum(), leaf)
        return gradient + torch.randn(w.shape, generator=generator, dtype=w.dtype)

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.1))
    w = torch.linspace(-3, 3, 400, dtype=torch.float64)
    left.plot(w, value(w))
    left.annotate("narrow", (-1, -1), (-2.1, -0.8))
    left.annotate("wide", (1, -0.95), (1.7, -0.8))
    left.set(xlabel="weight", ylabel="loss")
    rates = np.geomspace(0.001, 0.2, 14)
    for start, words in ((-1.0, "narrow"), (1.0, "wide")):
        generator = torch.Generator().manual_seed(0)
        ends = [descend(OptimizerConfig(lr=lr), noisy_gradient, torch.full((500,), start), 400)[-1] for lr in rates]
        right.semilogx(rates, [float((end > -0.6).double().mean()) for end in ends], marker="o", markersize=3.5, label=f"start in the {words} one")
    right.set(xlabel="learning rate", ylabel="fraction in the wide one", title="after 400 steps with gradient noise 1")
    right.legend()
    return figure


PLOTS: dict[str, Callable[[], Figure]] = {
    "learning-rate": learning_rates,
    "methods": methods,
    "saddle": saddle,
    "schedules": schedules,
    "convex": convex,
    "early-stopping": early_stopping,
    "batch-size": batch_sizes,
    "noise": noise,
}


def main(names: list[str]) -> None:
    matplotlib.use("svg")
    torch.set_num_threads(1)
    with pyplot.rc_context(STYLE):
        for name in names or PLOTS:
            figure = PLOTS[name]()
            figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
            pyplot.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])
