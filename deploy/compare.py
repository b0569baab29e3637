"""`pserver compare`: the user's own task under pserver and under DDP, in the same processes, on the same batches."""

import json
import socket
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from deploy.config import Config, FailureConfig, to_toml
from deploy.console import Console
from deploy.driver import Driver
from deploy.interrupts import interruptible
from deploy.launch.base import Launcher
from deploy.measure.comparison import Comparison, comparison
from deploy.measure.verdict import verdict
from deploy.resume import Beginning
from deploy.rundir import RunDirectory
from deploy.scratch import Scratch
from ps.addresses import listen_host
from ps.config import Timeouts
from ps.decisions import EarlyStoppingConfig, PlateauConfig
from ps.errors import ConfigError, Stopped
from ps.security import check_plaintext
from workers.compare import BLOCK_STEPS, Record, record_key
from workers.config import RivalSettings
from workers.torch_optimizer import check_in_torch

MIN_STEPS = 3 * BLOCK_STEPS
"""The first block of each contender does not count."""

MakeLauncher = Callable[[Config, RunDirectory, Console], Launcher]


def compare(config: Config, make_launcher: MakeLauncher, *, num_steps: int, timeouts: Timeouts | None = None) -> Comparison:
    """Takes `num_steps` steps under each. Leaves nothing behind, unless it fails: then the logs that the error names.

    Raises ConfigError for what DDP cannot do, what ends a run, and Stopped after Ctrl-C or SIGTERM.
    """
    check(config, num_steps)
    scratch = Scratch()
    rundir = RunDirectory.create(scratch.path, "compare", "compare")
    config = replace(
        config,
        early_stopping=EarlyStoppingConfig(),  # there is no validation to decide by
        plateau=PlateauConfig(),
        failure=FailureConfig(max_failures=0),  # DDP takes no restarted rank in
        run=replace(config.run, storage_path=str(scratch.path), shared_storage=False),
    )
    rundir.write_config(to_toml(config))
    try:
        return _compare(config, rundir, make_launcher, num_steps, timeouts or Timeouts())
    except KeyboardInterrupt:
        raise Stopped("interrupted: nothing is known yet") from None
    except Exception:
        if any(rundir.logs.iterdir()):
            scratch.keep()
        raise
    finally:
        scratch.close()


def _compare(config: Config, rundir: RunDirectory, make_launcher: MakeLauncher, num_steps: int, timeouts: Timeouts) -> Comparison:
    with Console(quiet=True, stderr=True) as console, interruptible() as interrupt:
        launcher = make_launcher(config, rundir, console)
        try:
            launcher.check()
            store = _store(config, launcher, timeouts)
            rival = RivalSettings(store_address=f"{store.host}:{store.port}", num_steps=num_steps, schedule=config.schedule)
            driver = Driver(config, Beginning(rundir), launcher, console, timeouts, rival)
            driver.run(interrupt)
        finally:
            launcher.stop(timeouts.stop_s)
    return _found(config, store, rundir, driver)


def check(config: Config, num_steps: int) -> None:
    """Raises ConfigError for what cannot be compared."""
    if config.task is None:
        raise ConfigError(
            "compare needs a task: an own loop (train.loop) calls pserver's optimizer itself, so DDP cannot run it; "
            "write model, data and loss as a task (examples/own_task.py)"
        )
    if config.scaling.num_stages > 1:
        raise ConfigError(
            "compare has DDP beside it, which splits no layers: every rank holds the whole model. Set scaling.num_stages = 1 "
            f"(and scaling.num_workers = {config.scaling.num_members} for as many processes), if the model fits into one, "
            "and ask `pserver plan` which is quicker"
        )
    if config.scaling.gpus_per_worker:
        raise ConfigError("compare has DDP over gloo, whose place is on CPUs: set scaling.use_gpu = false")
    if config.comm.shapes_streams or config.comm.latency:
        raise ConfigError("comm.bandwidth and comm.latency are for pserver's streams but not DDP's: leave them out, and compare on links as they are")
    if num_steps < MIN_STEPS:
        raise ConfigError(f"--steps {num_steps} is too few: at least {MIN_STEPS}, of which the first {BLOCK_STEPS} are warm-up")
    check_in_torch(config.optimizer)


def _store(config: Config, launcher: Launcher, timeouts: Timeouts) -> TCPStore:
    """Where the ranks meet, on the address where Control is served too; torch itself would listen on all of them."""
    host = listen_host(launcher.control_host(), config.comm.interface)
    check_plaintext(host, allowed=config.security.allow_plaintext)
    listener = _bound(host, config.comm.ports)
    port = listener.getsockname()[1]
    return TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeouts.control_s),
        master_listen_fd=listener.detach(),
    )


def _bound(host: str, ports: range | None) -> socket.socket:
    for port in ports or (0,):
        try:
            return socket.create_server((host, port))
        except OSError as error:
            reason = error
    raise ConfigError(f"no port for DDP's store is free on {host} ({reason.strerror}): widen comm.port_range, or leave it out")


def _found(config: Config, store: TCPStore, rundir: RunDirectory, driver: Driver) -> Comparison:
    records = [json.loads(store.get(record_key(rank))) for rank in range(config.scaling.num_workers)]
    server_cpu_s: defaultdict[int, float] = defaultdict(float)
    for line in rundir.comm.read_text(encoding="utf-8").splitlines():
        step = json.loads(line)
        server_cpu_s[step["step"]] += sum(row["cpu_s"] for row in step["rows"] if row["kind"] == "server")
    return comparison(
        [{name: Record(**of[name]) for name in ("ours", "theirs")} for of in records],
        server_cpu_s,
        variant=records[0]["variant"],
        exact=config.comm.push_format == config.comm.pull_format == "fp32" and config.train.autocast == "none",
        bottleneck=str(verdict(driver.window)),
    )
