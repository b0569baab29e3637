"""From the sums of a complete run to the bytes of the next version."""

import numpy as np
import torch

from ps.config import OptimizerConfig, ScheduleConfig
from ps.errors import ConfigError, NonFinite
from ps.frame import Bytes
from ps.groups import check_groups
from ps.kernels import one_pass_rule
from ps.layout import Block, Layout, Rule, Run
from ps.norms import Norms, StepFactor
from ps.optimizers import can_divide, update_rule
from ps.plan import Plan
from ps.reduction import Accumulators
from ps.schedules import learning_rate
from ps.store import Store

PLAIN = StepFactor(factor=1.0, skip=False)
"""The decision of a step that needs no norms."""


class Updater:
    """Writes version t + 1 of complete runs into the store's other copy; committing it is the shard's. Runs in any thread,
    one per run at a time.

    What happens to a gradient, in the order of a torch loop: mean over the samples, `optimizer.clip_value`, factor of the
    global norm (of what the former left), the group's weight decay and update.
    """

    def __init__(self, layout: Layout, store: Store, optimizer: OptimizerConfig, schedule: ScheduleConfig, plan: Plan) -> None:
        self._specs = layout.specs
        self._layout = store.layout
        self._store = store
        self._optimizer = optimizer
        self._schedule = schedule
        self._plan = plan
        if optimizer.lr_scaling != "none":
            raise ConfigError(f'optimizer.lr_scaling = "{optimizer.lr_scaling}" is the driver\'s: give servers the scaled optimizer.lr')
        check_groups(layout.specs, len(optimizer.groups))
        groups = range(1 + len(optimizer.groups))
        self._rules = [update_rule(optimizer, group) for group in groups]
        self._one_pass_rules = [one_pass_rule(optimizer, group) for group in groups]

    def to_mean(self, step: int, run: Run, sums: Bytes, weight: float) -> None:
        """Divides the sums by the total weight, unless the update does, and clips each element, in place. Raises NonFinite where that
        ends the run."""
        block = self._layout.block_of(run)
        if block.rule not in (Rule.OPTIMIZER, Rule.MEAN):
            return
        mean = torch.from_numpy(sums.view(block.dtype))
        if weight != 1.0 and not self._divides_later(block):
            mean.div_(weight)
        if block.rule is Rule.OPTIMIZER and self._optimizer.nonfinite == "error" and not torch.isfinite(mean.sum()):
            self._raise_nonfinite(step, run, sums)
        if block.rule is Rule.OPTIMIZER and self._optimizer.clip_value is not None:
            self._clip(mean, self._optimizer.clip_value)

    def _divides_later(self, block: Block) -> bool:
        """Whether the update divides the sums: nothing looks at the mean before."""
        plain = self._optimizer.clip_value is None and not self._optimizer.two_phase
        return plain and block.rule is Rule.OPTIMIZER and can_divide(self._optimizer, block.dtype)

    def _clip(self, mean: torch.Tensor, limit: float) -> None:
        """As `torch.nn.utils.clip_grad_value_`, but an infinity stays where the norms are yet to find it and skip the step."""
        if self._optimizer.nonfinite == "error" or torch.isfinite(mean).all():
            mean.clamp_(-limit, limit)

    def _raise_nonfinite(self, step: int, run: Run, sums: Bytes) -> None:
        """The sum of finite numbers may overflow, so each chunk is looked at before anybody is blamed."""
        start = self._layout.span_bytes(run).start
        block = self._layout.block_of(run)
        for chunk in range(run.first, run.stop):
            at = int(self._layout.local[chunk]) - start
            values = sums[at : at + int(self._layout.num_bytes[chunk])].view(block.dtype)
            if not np.isfinite(values).all():
                name = self._specs[int(self._layout.tensor[chunk])].name
                raise NonFinite(
                    f"mean gradient of {name} is not finite at step {step}: lower optimizer.lr, clip with "
                    f'optimizer.max_grad_norm, or skip such steps with optimizer.nonfinite = "skip"'
                )

    def squares(self, run: Run, mean: Bytes) -> Norms:
        """Squared norm of every chunk of an optimizer run's mean, in float64."""
        start = self._layout.span_bytes(run).start
        block = self._layout.block_of(run)
        norms = np.zeros(len(run))
        for i, chunk in enumerate(range(run.first, run.stop)):
            at = int(self._layout.local[chunk]) - start
            values = torch.from_numpy(mean[at : at + int(self._layout.num_bytes[chunk])].view(block.dtype))
            norms[i] = float(values.double().square().sum())
        return norms

    def write(self, step: int, run: Run, mean: Bytes, weight: float, decision: StepFactor = PLAIN, *, rate_factor: float = 1.0) -> None:
        """Fills the copy of step + 1 from that of `step` and updates it there; without weight, or skipped, it stays as filled.

        `rate_factor` multiplies the scheduled learning rate: what decisions made of it.
        """
        rule = self._layout.block_of(run).rule
        self._store.fill_next(step, run)
        if rule is Rule.SUM and step % self._plan.steps_per_epoch == 0:
            self._store.params(step + 1, run)[:] = 0  # whatever becomes of the epoch's first step
        if weight == 0.0 or decision.skip:
            return
        if rule is Rule.OPTIMIZER:
            divisor = weight if self._divides_later(self._layout.block_of(run)) else 1.0
            self._write_optimizer(step, run, mean, decision.factor, rate_factor, divisor)
            return
        value = self._store.params(step + 1, run)
        if rule is Rule.SUM:
            value.view(np.float64)[:] += mean.view(np.float64)
        else:
            value[:] = mean

    def _write_optimizer(self, step: int, run: Run, mean: Bytes, factor: float, rate_factor: float, divisor: float) -> None:
        block = self._layout.block_of(run)
        lr = self._learning_rate(step, block.group, rate_factor)
        grad = torch.from_numpy(mean.view(block.dtype))
        if factor != 1.0:
            grad.mul_(factor)
        start = self._layout.span_bytes(run).start
        for part in self._same_updates(step + 1, run):
            span = self._layout.span_bytes(part)
            inner = slice((span.start - start) // grad.itemsize, (span.stop - start) // grad.itemsize)
            params = torch.from_numpy(self._store.params(step + 1, part).view(block.dtype))
            slots = [torch.from_numpy(slot.view(block.dtype)) for slot in self._store.state(step + 1, part)]
            updates = self._store.updates(step + 1, part)
            self._rules[block.group](params, grad[inner], slots, int(updates[0]), lr, divisor)
            updates += 1

    def write_at_once(self, step: int, run: Run, sums: Accumulators, weight: float, *, rate_factor: float) -> float | None:
        """As `to_mean` and `write` of a run that has weight, in one pass over memory; the part of the bytes that were read to sum.

        None if that is not possible, or a sum is not finite: then nothing that was written counts.
        """
        block = self._layout.block_of(run)
        rule = self._one_pass_rules[block.group] if self._divides_later(block) else None
        if rule is None:
            return None
        lr = self._learning_rate(step, block.group, rate_factor)
        summed, moved = 0, 0
        for part in self._same_updates(step, run):
            updates = self._store.updates(step, part)
            old, new = self._store.copies(step, part), self._store.copies(step + 1, part)
            for span, terms in sums.terms(part):
                if not rule([copy[span] for copy in new], [copy[span] for copy in old], terms, int(updates[0]), lr, weight):
                    return None
                summed += len(terms)
                moved += len(terms) + len(old) + len(new)
            self._store.updates(step + 1, part)[:] = updates + 1
        return summed / moved

    def _learning_rate(self, step: int, group: int, rate_factor: float) -> float:
        plan = self._plan
        return learning_rate(self._optimizer, self._schedule, step, plan.total_steps, plan.steps_per_epoch, group=group, rate_factor=rate_factor)

    def _same_updates(self, version: int, run: Run) -> list[Run]:
        """Parts of the run whose chunks have had equally many updates."""
        counts = self._store.updates(version, run)
        cuts = (np.flatnonzero(counts[1:] != counts[:-1]) + run.first + 1).tolist()
        return [Run(a, b) for a, b in zip([run.first, *cuts], [*cuts, run.stop], strict=True)]
