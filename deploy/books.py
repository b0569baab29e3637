"""The books of a run: epochs, decisions, the weights worth keeping."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from deploy.checkpoints import Standing
from deploy.config import Config
from deploy.measure.text import counted
from deploy.rundir import RunDirectory
from ps.checkpoints.manifest import Manifest
from ps.checkpoints.parts import chain, layout_digests
from ps.control import Epoch
from ps.decisions import Decider, Decision
from ps.errors import ConfigError, PserverError
from ps.plan import Plan
from ps.reader import Reader
from ps.weights import load_weights, save_weights, sha256_of, tensors_of

log = logging.getLogger(__name__)

_NO_METRICS = ("epoch", "step", "time_s", "digest")


@dataclass
class Books:
    """What is known of a run, whichever way it ends. Written by one thread at a time: ranks wait while an epoch is entered."""

    config: Config
    rundir: RunDirectory
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row per decision point, as in metrics.jsonl."""
    best: dict[str, float] | None = None
    """version, epoch and metrics of the best epoch."""
    steps: int = 0
    steps_per_epoch: int = 1
    epochs: int = 0
    """Epochs that have ended."""
    stopped_early: bool = False
    restored_version: int | None = None
    """Version whose weights are the last ones, if the run ended early and the best were restored."""
    params_sha256: str | None = None
    buffers_sha256: str | None = None
    imbalance: float | None = None
    """Largest shard over the mean, in bytes."""

    def __post_init__(self) -> None:
        self._has_weight = False
        self._lacks_rows = False
        """Whether metrics.jsonl misses something."""
        self._decider = Decider(self.config.early_stopping, self.config.plateau)

    def enter(self, epoch: Epoch, reader: Reader, say: Callable[[str], None]) -> Decision:
        """Decides on an epoch that every rank has reported, tells every shard, and keeps the weights.

        Nothing of the next step is on its way before the ranks are answered, so the version can be pulled.
        """
        _, plan = reader.model
        self.steps_per_epoch = plan.steps_per_epoch
        if any(row["step"] == epoch.version for row in self.history):
            return self._again(epoch.version, plan, reader)
        layout, flat = reader.layout, reader.pull(epoch.version)
        row = {
            "epoch": -(-epoch.version // plan.steps_per_epoch),
            "step": epoch.version,
            "time_s": time.time(),
            **means(epoch, own_loop=plan.own_loop),
            "digest": chain(self.digest_chain, epoch.version, layout_digests(layout, flat)),
        }
        self._check_weight(epoch, plan)
        former = self._decider.log[-1].rate_factor if self._decider.log else 1.0
        decision = self._decider.decide(epoch.version, metrics_of(row), validated=plan.own_loop or plan.validates(epoch.version))
        reader.decide(decision.version, decision.rate_factor)
        self.history.append(row)
        if decision.is_best:
            self.best = _best(row)
        self.steps = max(self.steps, epoch.version)
        self.epochs = epoch.version // plan.steps_per_epoch
        self._carefully(say, lambda: self.rundir.append_metrics(row))
        self._carefully(say, lambda: self._keep(row, decision, tensors_of(layout, flat)))
        if decision.rate_factor != former:
            watched = self.config.plateau.metric
            say(f"epoch {row['epoch']}: {watched} has not improved: learning rate x {decision.rate_factor:g} from step {epoch.version} on")
        self.stopped_early = decision.stop and epoch.version < plan.total_steps
        if self.stopped_early:
            waited = counted(self.config.early_stopping.patience or 0, "validation")
            say(f"epoch {row['epoch']}: no improvement in {waited}, stopping early; the best is version {self._decider.best_version}")
        return decision

    def _again(self, version: int, plan: Plan, reader: Reader) -> Decision:
        """A resumed run has come to the report that was the last one in its checkpoint."""
        decision = next(made for made in self._decider.log if made.version == version)
        reader.decide(decision.version, decision.rate_factor)
        self.stopped_early = decision.stop and version < plan.total_steps
        return decision

    def resume(self, manifest: Manifest) -> None:
        """The books as they were at a checkpoint: what was decided follows from the rows."""
        plan = manifest.plan
        self.history = list(manifest.history)
        self.steps, self.epochs, self.steps_per_epoch = manifest.version, manifest.epoch, plan.steps_per_epoch
        self._has_weight = manifest.version >= plan.steps_per_epoch
        for row in self.history:
            version = int(row["step"])
            decision = self._decider.decide(version, metrics_of(row), validated=plan.own_loop or plan.validates(version))
            if decision.is_best:
                self.best = _best(row)

    def at(self, version: int) -> Standing:
        """The books as they are, or were, at `version`."""
        made = [decision for decision in self._decider.log if decision.version <= version]
        return Standing(
            history=[row for row in self.history if row["step"] <= version],
            decided=made[-1].version if made else -1,
            rate_factor=made[-1].rate_factor if made else 1.0,
            best=next((decision.version for decision in reversed(made) if decision.is_best), None),
        )

    @property
    def digest_chain(self) -> str:
        """Over all parameters and buffers at every row of the history."""
        return str(self.history[-1]["digest"]) if self.history else ""

    def _check_weight(self, epoch: Epoch, plan: Plan) -> None:
        """Raises ConfigError at the end of the first epoch if no sample has counted: nothing was learned."""
        self._has_weight |= epoch.training.get("weight") != 0
        if not self._has_weight and epoch.version >= min(plan.steps_per_epoch, plan.total_steps):
            what = "opt.step was called with weight=0" if plan.own_loop else "the task's loss() returned the weight 0"
            raise ConfigError(f"{what} on every worker in {counted(epoch.version, 'step')}: nothing is learned; give the number of samples")

    def ends_epoch(self, row: dict[str, Any]) -> bool:
        """Whether the row of `history` stands at the end of an epoch, not within it."""
        return bool(row["step"] == row["epoch"] * self.steps_per_epoch)

    def _carefully(self, say: Callable[[str], None], write: Callable[[], None]) -> None:
        """What cannot be written in mid-run may be at the next epoch, or is at the end: it ends no training."""
        try:
            write()
        except (OSError, PserverError) as error:
            self._lacks_rows |= isinstance(error, OSError)
            say(f"warning: training goes on, but {' '.join(str(error).split())}")

    def _keep(self, row: dict[str, Any], decision: Decision, tensors: Mapping[str, Tensor]) -> None:
        save_weights(self.rundir.weights("last"), tensors, decision.version)
        if decision.is_best:
            save_weights(self.rundir.weights("best"), tensors, decision.version)

    def close(self, version: int, reader: Reader) -> None:
        """The last version has landed everywhere: keeps it, or the best one if the run ended early."""
        layout, plan = reader.model
        flat = reader.pull(version)
        self.steps, self.epochs = version, version // plan.steps_per_epoch
        if self.stopped_early and self.config.early_stopping.restore_best and self._decider.best_version not in (None, version):
            self.restored_version = version = self._decider.best_version or version
            flat = load_weights(self.rundir.weights("best"), layout, version)
        self.params_sha256 = sha256_of(layout, flat, buffers=False)
        self.buffers_sha256 = sha256_of(layout, flat, buffers=True)
        save_weights(self.rundir.weights("last"), tensors_of(layout, flat), version)
        if self._lacks_rows:
            self.rundir.rewrite_metrics(self.history)


def _best(row: dict[str, Any]) -> dict[str, float]:
    return {"version": row["step"], "epoch": row["epoch"], **metrics_of(row)}


def metrics_of(row: dict[str, Any]) -> dict[str, float]:
    """The metrics of an epoch's row."""
    return {name: value for name, value in row.items() if name not in _NO_METRICS}


def means(epoch: Epoch, *, own_loop: bool = False) -> dict[str, float]:
    """Exact means over all samples of the phases: `train_loss`, `validation_loss`, `validation_NAME`. An own loop has those
    that it reports, under its names; NaN for one whose weights are all 0."""
    training, validation = epoch.training, epoch.validation
    found = {}
    if training.get("weight") and not own_loop:
        found["train_loss"] = training["loss"] / training["weight"]
    if validation.get("weight") and "loss" in validation:
        found["validation_loss"] = validation["loss"] / validation["weight"]
    for name, value in validation.items():
        kind, _, rest = name.partition(".")
        if kind == "metric":
            samples = validation["samples"]
            found[f"validation_{rest}"] = value / samples if samples else float("nan")
        elif kind == "user":
            weight = validation[f"weight.{rest}"]
            found[rest] = value / weight if weight else float("nan")
    return found
