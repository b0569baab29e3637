"""What the driver decides from exact sums: the best version, when to stop, when to lower the rate. Pure.

A decision is made once, by one place, from numbers that do not depend on who was killed when; it is told to every
shard and every rank before the first step for which it holds.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ps.errors import ConfigError

Metrics = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """When the run ends before its last epoch, and which version counts as the best."""

    metric: str | None = None
    """What is watched: train_loss, validation_loss or validation_NAME of the task's metric NAME; of an own loop what it reports.
    None: validation_loss, or train_loss if there is no such."""
    mode: Literal["min", "max"] = "min"
    """Whether small (`min`) or large (`max`) values are good."""
    patience: int | None = None
    """Validations without improvement after which the run ends, >= 1. None: it never ends early."""
    min_delta: float = 0.0
    """An improvement must exceed it, >= 0."""
    restore_best: bool = True
    """A run that ended early has the best version's weights as its last ones."""

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"early_stopping.patience = {self.patience} is out of range: >= 1")
        if self.min_delta < 0:
            raise ValueError(f"early_stopping.min_delta = {self.min_delta} is out of range: >= 0")


@dataclass(frozen=True, kw_only=True)
class PlateauConfig:
    """The rate is multiplied by `factor` when a metric has stopped improving, as `torch.optim.lr_scheduler.ReduceLROnPlateau`
    does; on top of any schedule."""

    metric: str = "validation_loss"
    """What is watched: train_loss, validation_loss or validation_NAME of the task's metric NAME."""
    mode: Literal["min", "max"] = "min"
    """Whether small (`min`) or large (`max`) values are good."""
    patience: int | None = None
    """Validations without improvement that are tolerated, >= 0. None: the rate is never lowered."""
    factor: float = 0.1
    """What the rate is multiplied by, 0 < factor < 1."""
    threshold: float = 1e-4
    """Relative improvement that counts, >= 0: better than best * (1 -+ threshold)."""
    cooldown: int = 0
    """Validations after a reduction in which nothing is counted, >= 0."""
    min_factor: float = 0.0
    """Smallest product of all reductions, 0 <= min_factor < 1."""

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 0:
            raise ValueError(f"plateau.patience = {self.patience} is out of range: >= 0")
        if not 0 < self.factor < 1:
            raise ValueError(f"plateau.factor = {self.factor} is out of range: 0 < value < 1")
        if not 0 <= self.min_factor < 1:
            raise ValueError(f"plateau.min_factor = {self.min_factor} is out of range: 0 <= value < 1")
        for name in ("threshold", "cooldown"):
            if getattr(self, name) < 0:
                raise ValueError(f"plateau.{name} = {getattr(self, name)} is out of range: >= 0")


@dataclass(frozen=True)
class Decision:
    """How the run goes on from `version`, the first step for which it holds."""

    version: int
    stop: bool = False
    """No step follows."""
    is_best: bool = False
    """The parameters of `version` are the best so far."""
    rate_factor: float = 1.0
    """Multiplies the scheduled learning rate from here on."""


@dataclass
class Decider:
    """Takes the metrics of every decision point in order and decides. `log` is the record of what was decided."""

    early_stopping: EarlyStoppingConfig
    plateau: PlateauConfig
    log: list[Decision] = field(default_factory=list)
    best: float | None = None
    best_version: int | None = None
    _stale: int = 0
    _plateau_best: float | None = None
    _plateau_stale: int = 0
    _cooling: int = 0
    _rate_factor: float = 1.0

    def decide(self, version: int, metrics: Metrics, *, validated: bool) -> Decision:
        """The decision at `version`, asked again the one recorded; `validated`: a validation phase belongs to it.

        Raises ConfigError if a metric to be watched is not among those of a validation.
        """
        for made in self.log:
            if made.version == version:
                return made
        is_best = self._judge(version, metrics, validated=validated)
        self._lower_rate(metrics, validated=validated)
        patience = self.early_stopping.patience
        stop = patience is not None and self._stale >= patience
        decision = Decision(version, stop=stop, is_best=is_best, rate_factor=self._rate_factor)
        self.log.append(decision)
        return decision

    def _judge(self, version: int, metrics: Metrics, *, validated: bool) -> bool:
        config = self.early_stopping
        name = config.metric or next((name for name in ("validation_loss", "train_loss") if name in metrics), None)
        if name is None and validated and config.patience is not None:
            raise ConfigError(f"early_stopping.patience needs early_stopping.metric, one of: {', '.join(sorted(metrics))}")
        value = None if name is None else _watched("early_stopping", name, metrics, validated=validated)
        if value is None:
            return False
        sign = 1.0 if config.mode == "min" else -1.0
        if math.isfinite(value) and (self.best is None or sign * (self.best - value) > config.min_delta):
            self.best, self.best_version, self._stale = value, version, 0
            return True
        self._stale += 1
        return False

    def _lower_rate(self, metrics: Metrics, *, validated: bool) -> None:
        """The rule of ReduceLROnPlateau with `threshold_mode="rel"`."""
        config = self.plateau
        if config.patience is None:
            return
        value = _watched("plateau", config.metric, metrics, validated=validated)
        if value is None:
            return
        if self._plateau_best is None or self._improves(value, self._plateau_best):
            self._plateau_best, self._plateau_stale = value, 0
        else:
            self._plateau_stale += 1
        if self._cooling:
            self._cooling -= 1
            self._plateau_stale = 0
        if self._plateau_stale > config.patience:
            self._rate_factor = max(self._rate_factor * config.factor, config.min_factor)
            self._cooling, self._plateau_stale = config.cooldown, 0

    def _improves(self, value: float, best: float) -> bool:
        threshold = self.plateau.threshold
        return value < best * (1 - threshold) if self.plateau.mode == "min" else value > best * (1 + threshold)


def _watched(section: str, name: str, metrics: Metrics, *, validated: bool) -> float | None:
    """The metric's value; None where no validation has taken place."""
    if not validated:
        return None
    if name not in metrics:
        near = difflib.get_close_matches(name, metrics, n=1, cutoff=0.4)
        remedy = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(sorted(metrics))}"
        raise ConfigError(f"{section}.metric = {name!r} is none of this run's metrics: {remedy}")
    return metrics[name]
