"""Weights & Biases: `pip install wandb`, then --set 'run.callbacks=["examples/callbacks/wandb_callback.py:make"]'."""

from collections.abc import Callable
from pathlib import Path

import wandb


def make(run: Path) -> Callable[[dict[str, float], int], None]:
    """A W&B run of the same name."""
    logged = wandb.init(project="pserver", name=run.name)
    return lambda metrics, step: logged.log({**metrics, "step": step})
