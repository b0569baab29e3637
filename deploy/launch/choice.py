"""Which launcher a run has."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from deploy.config import Config
from deploy.launch.base import Launcher, ProcessKey
from deploy.rundir import RunDirectory
from ps.errors import ConfigError

LauncherName = Literal["ray", "process"]


def make_launcher(
    name: LauncherName,
    config: Config,
    rundir: RunDirectory,
    code: str,
    *,
    address: str | None,
    say: Callable[[str], None],
    hosts: Mapping[ProcessKey, str] | None = None,
) -> Launcher:
    """The launcher called `name` for the processes of `config`; `code`: name of the task or loop, whose folder travels.

    `hosts`: virtual host of every process, for Ray on such hosts. None: Ray places them.
    """

    def log_path(key: ProcessKey) -> Path:
        return rundir.process_log(key.role, key.index)

    scaling = config.scaling
    if name == "process":
        if address is not None:
            raise ConfigError(f'--address {address} is of a Ray cluster, but the launcher is "process": leave one of the two out')
        from deploy.launch.process import ProcessLauncher

        return ProcessLauncher(log_path, num_gpus=math.ceil(scaling.num_workers * scaling.gpus_per_worker))
    from deploy.launch.code import code_folder
    from deploy.launch.ray import RayLauncher

    return RayLauncher(
        log_path,
        num_workers=scaling.num_members,
        num_servers=scaling.num_servers,
        address=address,
        use_gpu=scaling.use_gpu,
        resources_per_worker=scaling.resources_per_worker,
        placement_strategy=scaling.placement_strategy,
        hosts=hosts,
        code=code_folder(code),
        shared_storage=config.run.shared_storage,
        say=say,
    )
