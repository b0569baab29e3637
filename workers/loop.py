"""The training loop of one rank for a task."""

from ps.plan import Plan
from workers.answers import data_of
from workers.config import TrainConfig
from workers.initial import build_model
from workers.parts import Part, WholePart
from workers.sampler import BatchPlan
from workers.session import Session
from workers.stages.part import StagePart
from workers.task import Task


def train(session: Session, task: Task) -> None:
    """Every step: data, forward, backward, push, pull, install; a report where the plan says so."""
    settings, config = session.settings, session.settings.train
    data, validation_data = data_of(task, "train"), data_of(task, "validation")
    batches = BatchPlan.from_config(config, settings.num_workers, len(data))
    plan = plan_of(config, batches)
    if settings.num_stages > 1:
        part: Part = StagePart(session, task, plan, batches, data, validation_data)
    else:
        part = WholePart(session, task, build_model(task, config).to(session.device), plan, batches, data, validation_data)
    try:
        while True:
            # first, not last: a rank that was killed before it had reported joins at this version
            if plan.decides(session.version) and _report(session, part):
                return
            if session.version == plan.total_steps:
                session.settle()
                return
            session.enter()
            session.step(part.compute(session.version, session.spans))
    finally:
        part.close()


def _report(session: Session, part: Part) -> bool:
    """The phase that ends here, validated if the plan says so; True if the run ends."""
    session.settle()
    return session.report(part.validate(session.version) if session.plan.validates(session.version) else {})


def plan_of(config: TrainConfig, batches: BatchPlan) -> Plan:
    """Length of the run in steps."""
    per_epoch = batches.steps_per_epoch()
    total = per_epoch * config.epochs
    every = config.validate_every * (per_epoch if config.validate_unit == "epoch" else 1)
    return Plan(per_epoch, total if config.max_steps is None else min(total, config.max_steps), every)
