"""A run that has something for every part of its report, and the figures there."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from deploy.measure.recorded import read_run
from deploy.report.figure import Figure
from deploy.report.figures import figures
from deploy.rundir import RunDirectory
from tests.deploy.ledgers import history_of, step_of, write_run

DEATH = {"process": "worker 1", "reason": "was killed by SIGKILL", "step": 3, "back_after_s": 4.0}


def write_whole(storage: Path) -> RunDirectory:
    """Three workers, two servers, twelve steps, a death that was made good, validation that turns up after epoch 2."""
    run = write_run(
        storage,
        "whole",
        [step_of(step, num_workers=3) for step in range(12)],
        history=history_of(0.9, 0.5, 0.8),
        status="finished",
        wall_s=2.0,
        failures=[DEATH],
        simulated="simulated: 3 workers and 2 servers on 5 hosts",
        params_sha256="5b6b5b0b",
    )
    save_file({"small": torch.zeros(3), "large": torch.zeros(8, 4)}, run.weights("last"))
    return run


def by_key(run: RunDirectory) -> dict[str, Figure]:
    return {figure.key: figure for figure in figures(read_run(run))}
