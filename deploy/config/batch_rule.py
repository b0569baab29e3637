"""`optimizer.lr_scaling`: what the number of workers makes of the learning rate."""

from dataclasses import replace

from deploy.config.sections import Config
from ps.schedules import scaled_for_batch
from workers.sampler import BatchPlan


def apply_batch_rule(config: Config) -> tuple[Config, str | None]:
    """The config that servers and workers get, with scaled rates and no rule left, and what to print (None: nothing changes).

    The run directory keeps the config as it was written, so that it can be run again with other workers.
    """
    plan = BatchPlan.from_config(config.train, config.scaling.num_workers, num_samples=1)
    optimizer, text = scaled_for_batch(config.optimizer, plan.global_batch)
    return replace(config, optimizer=optimizer), text
