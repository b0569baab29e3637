"""MLflow: `pip install mlflow`, then --set 'run.callbacks=["examples/callbacks/mlflow_callback.py:make"]'."""

from collections.abc import Callable
from pathlib import Path

import mlflow


def make(run: Path) -> Callable[[dict[str, float], int], None]:
    """An MLflow run of the same name."""
    logged = mlflow.start_run(run_name=run.name)
    return lambda metrics, step: mlflow.log_metrics(metrics, step=step, run_id=logged.info.run_id)
