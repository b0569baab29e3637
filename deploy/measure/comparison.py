"""pserver beside DDP, from the records of all ranks: what a step takes, and whether to use which. Pure."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploy.measure.table import Table
from deploy.measure.text import seconds
from workers.compare import Record, is_measured

FELT = 0.05
"""Part of a step below which a difference is not worth a change."""
SURE = 3.0
"""Standard errors by which two medians must differ to be different."""
SAME_START = 1e-3
"""Relative difference of the losses of step 0, which the same weights give on the same batches, but for rounding."""
SAME_END = 0.02
"""The same after all steps: rounding errors have grown by then."""


@dataclass(frozen=True)
class Contender:
    """One of the two, over the steps that count."""

    step_s: float
    """Median over steps of the slowest rank's time."""
    low_s: float
    """Lower quartile."""
    high_s: float
    """Upper quartile."""
    samples_per_s: float
    cpu_s: float
    """CPU seconds of all processes in a step, mean."""
    first_loss: float
    """Mean over all samples of step 0."""
    last_loss: float


@dataclass(frozen=True)
class Comparison:
    """What `pserver compare` has found."""

    ours: Contender
    ddp: Contender
    variant: str
    """How DDP was set up: the quickest of a short trial."""
    num_steps: int
    """Steps of each, warm-up included."""
    num_measured: int
    exact: bool
    """Whether pserver sends gradients and parameters as they are: then the losses must agree."""
    bottleneck: str
    """Of pserver's step."""

    @property
    def ratio(self) -> float:
        """Our step over DDP's."""
        return self.ours.step_s / self.ddp.step_s

    @property
    def losses_agree(self) -> bool:
        return _differ(self.ours.first_loss, self.ddp.first_loss) <= SAME_START and _differ(self.ours.last_loss, self.ddp.last_loss) <= SAME_END

    def advice(self) -> str:
        """One sentence or two."""
        if self.exact and not self.losses_agree:
            return (
                f"No advice: the losses differ ({self.ours.last_loss:.6g} and {self.ddp.last_loss:.6g}), so the two did not compute the same. "
                "Lower optimizer.lr if training diverges; else the task depends on more than its arguments"
            )
        cpu = f"CPU time is {self.ours.cpu_s / self.ddp.cpu_s:.2f} of DDP's"
        noise_s = math.hypot(self._error_s(self.ours), self._error_s(self.ddp))
        if abs(self.ratio - 1) < FELT or abs(self.ours.step_s - self.ddp.step_s) < SURE * noise_s:
            return f"No difference that is felt and certain: {self.ratio:.2f} of DDP's step. {cpu}"
        if self.ratio < 1:
            return f"Use pserver here: a step takes {self.ratio:.2f} of DDP's. {cpu}"
        return f"Use DDP here: it is {self.ratio:.2f} times as fast. {cpu}. What holds pserver up: {self.bottleneck}"

    def _error_s(self, of: Contender) -> float:
        """Standard error of a median, by the quartiles of a normal distribution."""
        return 1.253 * (of.high_s - of.low_s) / 1.349 / math.sqrt(self.num_measured)

    def text(self) -> str:
        """The table and the advice."""
        columns = ["", "step", "quartiles", "samples/s", "CPU per step", "first loss", "last loss"]
        title = f"{self.num_measured} steps of each in turns, after warm-up; DDP over gloo, {self.variant} (the best of a short trial)"
        table = Table(title, columns, [_cells("pserver", self.ours), _cells("DDP", self.ddp)])
        why = "" if self.exact else ", as the wire format or autocast may make them"
        losses = "agree" if self.losses_agree else f"differ{why}"
        return f"{table.plain()}\npserver / DDP = {self.ratio:.2f}; the losses {losses}\n{self.advice()}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "ratio": self.ratio, "losses_agree": self.losses_agree, "advice": self.advice()}


def comparison(
    records: Sequence[Mapping[str, Record]], server_cpu_s: Mapping[int, float], *, variant: str, exact: bool, bottleneck: str
) -> Comparison:
    """`records`: by rank, of "ours" and "theirs"; `server_cpu_s`: of all servers, by step. A step may lack its row."""
    measured = [step for step in range(len(records[0]["ours"].seconds)) if is_measured(step)]
    servers = statistics.fmean(server_cpu_s[step] for step in measured if step in server_cpu_s)
    return Comparison(
        ours=_contender([of["ours"] for of in records], measured, servers),
        ddp=_contender([of["theirs"] for of in records], measured, 0.0),
        variant=variant,
        num_steps=len(records[0]["ours"].seconds),
        num_measured=len(measured),
        exact=exact,
        bottleneck=bottleneck,
    )


def _contender(ranks: Sequence[Record], measured: Sequence[int], server_cpu_s: float) -> Contender:
    slowest = [max(record.seconds[step] for record in ranks) for step in measured]
    low, middle, high = statistics.quantiles(slowest, n=4)
    samples = [sum(record.samples[step] for record in ranks) for step in measured]
    return Contender(
        step_s=middle,
        low_s=low,
        high_s=high,
        samples_per_s=statistics.fmean(samples) / middle,
        cpu_s=statistics.fmean(sum(record.cpu_s[step] for record in ranks) for step in measured) + server_cpu_s,
        first_loss=_loss(ranks, 0),
        last_loss=_loss(ranks, -1),
    )


def _loss(ranks: Sequence[Record], step: int) -> float:
    weight = sum(record.weights[step] for record in ranks)
    return sum(record.losses[step] for record in ranks) / weight if weight else float("nan")


def _differ(one: float, other: float) -> float:
    """Relative difference; NaN if either is."""
    return abs(one - other) / max(abs(one), abs(other), 1e-12)


def _cells(name: str, of: Contender) -> list[str]:
    quartiles = f"{seconds(of.low_s)} .. {seconds(of.high_s)}"
    return [name, seconds(of.step_s), quartiles, f"{of.samples_per_s:.4g}", seconds(of.cpu_s), f"{of.first_loss:.6g}", f"{of.last_loss:.6g}"]
