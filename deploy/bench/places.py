"""Where a measurement runs: on virtual hosts, on a Ray cluster, or in processes of this machine; its run directory goes with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from deploy.config import Config
from deploy.rundir import RunDirectory
from deploy.scratch import scratch_folder
from deploy.simulation.run import simulate
from deploy.simulation.wishes import Wishes
from deploy.trainer import Trainer
from ps.errors import ConfigError, Stopped


@contextmanager
def measured(config: Config, wishes: Wishes | None, address: str | None, *, here: str) -> Iterator[tuple[RunDirectory, str]]:
    """A finished run of `config`, and where it was, in words: `here` for this machine. Raises what ended the run.

    `wishes`: virtual hosts. `address`: a Ray cluster.
    """
    if wishes is not None and address is not None:
        raise ConfigError(f"--address {address} is of a real cluster, whose links are what they are: leave the links of virtual hosts out")
    with scratch_folder() as folder:
        config = replace(config, run=replace(config.run, storage_path=str(folder), shared_storage=address is None))
        if wishes is not None:
            outcome = simulate(config, wishes, quiet=True)
            error, where, path = outcome.error, outcome.simulated, outcome.path
        else:
            result = Trainer.from_config(config, launcher="process" if address is None else "ray", address=address, quiet=True).fit()
            error, where, path = result.error, here if address is None else f"on the Ray cluster at {address}", str(result.path)
        if isinstance(error, Stopped):
            raise Stopped("interrupted: nothing is measured")
        if error is not None:
            raise error
        yield RunDirectory(Path(path or folder)), where
