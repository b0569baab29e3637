"""What the loop of one rank works with."""

from dataclasses import dataclass

import torch

from ps.client import Client
from ps.control import EpochSums
from ps.control_service import ControlClient
from ps.ledger import RowBuffer
from ps.update import Plan
from workers.binding import BoundModel
from workers.step import GradientStep
from workers.task import Samples, Task
from workers.validate import validate


@dataclass(kw_only=True)
class Context:
    """One rank, joined and with a version installed."""

    rank: int
    num_workers: int
    version: int
    """Version of the parameters the model computes with."""
    plan: Plan
    task: Task
    validation_data: Samples
    validation_batch: int
    dtype: torch.dtype
    bound: BoundModel
    gradient: GradientStep
    client: Client
    control: ControlClient
    rows: RowBuffer

    def is_epoch_end(self, version: int) -> bool:
        """Whether an epoch, or the run, ends at `version`."""
        return version % self.plan.steps_per_epoch == 0 or version == self.plan.total_steps

    def end_epoch(self, version: int) -> None:
        """Validates and reports; returns when every rank has and the driver has decided."""
        sums = validate(
            self.task,
            self.validation_data,
            self.bound,
            self.dtype,
            rank=self.rank,
            num_workers=self.num_workers,
            batch_size=self.validation_batch,
        )
        self.control.report_epoch(EpochSums(version, self.bound.epoch_sums(version), sums))
