"""The same steps under pserver and under DDP, block by block in turns, in the same process of every rank."""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import torch

from ps.errors import ConfigError
from ps.plan import Plan
from workers.answers import data_of
from workers.batches import Batches
from workers.config import WorkerSettings
from workers.ddp import DdpStep, Variant, gloo, largest, leaves_unused, variants
from workers.initial import build_model
from workers.sampler import BatchPlan
from workers.session import Session
from workers.spans import Spans
from workers.step import Contribution, GradientStep
from workers.task import Samples, Task

BLOCK_STEPS = 6
"""Steps of one contender before it is the other's turn; the first block of each is warm-up, and so is the first step of every other."""
_TRIAL_WARMUP, _TRIAL_STEPS = 2, 4

OneStep = Callable[[int], Contribution]


@dataclass
class Record:
    """What one rank saw of one contender, step by step."""

    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    """CPU time of the rank's process."""
    losses: list[float] = field(default_factory=list)
    """Mean over the rank's samples times their weight."""
    weights: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    def run(self, one_step: OneStep, step: int) -> None:
        """Times one step."""
        started, cpu = time.perf_counter(), time.process_time()
        contribution = one_step(step)
        self.seconds.append(time.perf_counter() - started)
        self.cpu_s.append(time.process_time() - cpu)
        self.losses.append(contribution.loss * contribution.weight if contribution.weight else 0.0)
        self.weights.append(contribution.weight)
        self.samples.append(contribution.samples)


def is_measured(step: int) -> bool:
    """Whether the step counts: neither warm-up nor the first after the other's turn."""
    return step >= BLOCK_STEPS and step % BLOCK_STEPS != 0


def turns(num_steps: int) -> Iterator[tuple[bool, range]]:
    """(whether it is pserver's turn, its steps): both take every block, in an order that alternates."""
    for start in range(0, num_steps, BLOCK_STEPS):
        block = range(start, min(start + BLOCK_STEPS, num_steps))
        ours_first = (start // BLOCK_STEPS) % 2 == 0
        yield ours_first, block
        yield not ours_first, block


def compare(session: Session, task: Task) -> None:
    """Takes `rival.num_steps` steps under each, and leaves the rank's records with the driver."""
    settings = session.settings
    assert settings.rival
    data = data_of(task, "train")
    batch_plan = BatchPlan.from_config(settings.train, settings.num_workers, len(data))
    if len(batch_plan.global_indices(0)) < settings.num_workers:
        raise ConfigError(f"a step has fewer samples than the {settings.num_workers} workers, but DDP needs some on every rank: use fewer workers")
    plan = Plan(batch_plan.steps_per_epoch(), settings.rival.num_steps, own_loop=True)
    dtype = getattr(torch, settings.train.dtype)
    batches = Batches(task, data, batch_plan, dtype, rank=session.rank, num_threads=settings.train.data_workers)
    ours, theirs = Record(), Record()
    with _ours(session, task, data, batch_plan, plan) as our_step, gloo(settings.rival, session.rank, settings.num_workers) as store:
        try:
            variant = _best(settings, task, batches, batch_plan, plan)
            ddp = DdpStep(settings, task, batches, batch_plan, plan, variant)
            for is_ours, block in turns(plan.total_steps):
                record, one_step = (ours, our_step) if is_ours else (theirs, ddp.step)
                session.spans.take()
                for step in block:
                    record.run(one_step, step)
        finally:
            batches.close()
        store.set(record_key(session.rank), json.dumps({"variant": str(variant), "ours": asdict(ours), "theirs": asdict(theirs)}))


def record_key(rank: int) -> str:
    """Under which a rank's records are found in the store."""
    return f"records/{rank}"


@contextmanager
def _ours(session: Session, task: Task, data: Samples, batch_plan: BatchPlan, plan: Plan) -> Iterator[OneStep]:
    settings = session.settings
    bound = session.bind(build_model(task, settings.train), plan)
    gradient = GradientStep(
        task,
        data,
        batch_plan,
        bound,
        session.pushes,
        session.layers,
        getattr(torch, settings.train.dtype),
        rank=session.rank,
        nonfinite=settings.optimizer.nonfinite,
        data_workers=settings.train.data_workers,
        autocast=settings.train.autocast,
    )

    def one_step(step: int) -> Contribution:
        assert step == session.version
        session.enter()
        contribution = gradient.compute(step, session.spans)
        session.step(contribution)
        if (step + 1) % BLOCK_STEPS == 0 or step + 1 == plan.total_steps:
            session.settle()
        return contribution

    try:
        yield one_step
    finally:
        gradient.close()


def _best(settings: WorkerSettings, task: Task, batches: Batches, batch_plan: BatchPlan, plan: Plan) -> Variant:
    """DDP's quickest variant in a short trial, the same on all ranks."""

    def made(variant: Variant) -> DdpStep:
        return DdpStep(settings, task, batches, batch_plan, plan, variant)

    model = build_model(task, settings.train)
    find_unused = leaves_unused(task, model, next(batches.of_step(0, Spans())).batch)
    size = sum(param.nbytes for param in model.parameters())
    candidates = [replace(found, find_unused=find_unused) for found in variants(size)]
    slowest = largest([_trial(made(variant).step) for variant in candidates])
    return min(zip(slowest, candidates, strict=True), key=lambda pair: pair[0])[1]


def _trial(one_step: OneStep) -> float:
    """Median seconds of a step."""
    record = Record()
    for step in range(_TRIAL_WARMUP + _TRIAL_STEPS):
        record.run(one_step, step)
    return statistics.median(record.seconds[_TRIAL_WARMUP:])
