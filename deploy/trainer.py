"""`Trainer(...).fit() -> Result`: a run from Python, in the vocabulary of Ray Train."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Self

from deploy.books import metrics_of
from deploy.callbacks import Callbacks, MakeCallback, load_callbacks
from deploy.config import Config, FailureConfig, RunConfig, ScalingConfig, TaskConfig, to_toml
from deploy.console import Console
from deploy.driver import Driver
from deploy.interrupts import interruptible, uninterrupted
from deploy.launch.base import Launcher
from deploy.launch.choice import LauncherName, make_launcher
from deploy.measure.table import closing_line, tables
from deploy.measure.trace_file import write_trace
from deploy.measure.window import Window
from deploy.result import Result, Summary, versions
from deploy.resume import Beginning, begin
from deploy.rundir import RunDirectory
from ps.config import CheckpointConfig, CommConfig, MetricsConfig, OptimizerConfig, ScheduleConfig, SecurityConfig, Timeouts
from ps.decisions import EarlyStoppingConfig, PlateauConfig
from ps.errors import ConfigError, Stopped
from ps.metrics import Meter, metered, tell_run
from workers.config import PipelineConfig, TrainConfig
from workers.task import Task, load_task, task_fields, task_path


class Trainer:
    """Trains a task, or runs the function `loop` ("module:function") in every worker; the parameters are on sharded servers.

    The optimizer lives on the servers; the same seed gives the same final bits for every number of servers and
    both launchers ("ray": actors of the cluster at `address`, of RAY_ADDRESS, or of a local one; "process": plain
    processes on this machine).
    """

    def __init__(
        self,
        task: Task | None = None,
        *,
        loop: str | None = None,
        train_config: TrainConfig,
        optimizer: OptimizerConfig | None = None,
        schedule: ScheduleConfig | None = None,
        scaling_config: ScalingConfig | None = None,
        run_config: RunConfig | None = None,
        early_stopping: EarlyStoppingConfig | None = None,
        plateau: PlateauConfig | None = None,
        comm: CommConfig | None = None,
        security: SecurityConfig | None = None,
        checkpoint: CheckpointConfig | None = None,
        failure: FailureConfig | None = None,
        metrics: MetricsConfig | None = None,
        pipeline: PipelineConfig | None = None,
        launcher: LauncherName = "ray",
        address: str | None = None,
        quiet: bool = False,
        timeouts: Timeouts | None = None,
    ) -> None:
        if loop is not None and not isinstance(loop, str):
            raise ConfigError(f'Trainer(loop={loop!r}): give its name, since workers import it: for example loop="mine:train"')
        if isinstance(task, type):
            raise ConfigError(f"Trainer({task.__name__}): give a task, not its class: {task.__name__}(...)")
        self._config = Config(
            task=TaskConfig(name=task_path(task), fields=task_fields(task)) if task else None,
            train=replace(train_config, loop=loop) if loop else train_config,
            optimizer=optimizer or OptimizerConfig(),
            schedule=schedule or ScheduleConfig(),
            scaling=scaling_config or ScalingConfig(),
            pipeline=pipeline or PipelineConfig(),
            early_stopping=early_stopping or EarlyStoppingConfig(),
            plateau=plateau or PlateauConfig(),
            comm=comm or CommConfig(),
            security=security or SecurityConfig(),
            checkpoint=checkpoint or CheckpointConfig(),
            failure=failure or FailureConfig(),
            metrics=metrics or MetricsConfig(),
            run=run_config or RunConfig(),
        )
        self._launcher: LauncherName = launcher
        self._address = address
        self._quiet = quiet
        self._timeouts = timeouts or Timeouts()
        self.simulated: str | None = None
        """What of the run's hosts and links is simulated; None: nothing."""

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        launcher: LauncherName = "ray",
        address: str | None = None,
        quiet: bool = False,
        timeouts: Timeouts | None = None,
    ) -> Self:
        """A trainer for a loaded config file."""
        return cls(
            load_task(config.task.name, config.task.fields) if config.task else None,
            train_config=config.train,
            optimizer=config.optimizer,
            schedule=config.schedule,
            scaling_config=config.scaling,
            run_config=config.run,
            early_stopping=config.early_stopping,
            plateau=config.plateau,
            comm=config.comm,
            security=config.security,
            checkpoint=config.checkpoint,
            failure=config.failure,
            metrics=config.metrics,
            pipeline=config.pipeline,
            launcher=launcher,
            address=address,
            quiet=quiet,
            timeouts=timeouts,
        )

    def fit(self) -> Result:
        """Trains to the end. An error ends the run, not the program: it is in `Result.error`, Stopped after Ctrl-C or SIGTERM.

        Raises ConfigError for what is wrong before a run directory exists.
        """
        config = self._config
        makes = load_callbacks(config.run.callbacks)
        beginning = begin(config, self._what())
        try:
            return self._fit(beginning, makes)
        finally:
            beginning.rundir.unlock()

    def _fit(self, beginning: Beginning, makes: Sequence[MakeCallback]) -> Result:
        config, rundir = self._config, beginning.rundir
        rundir.write_config(to_toml(config))
        if beginning.generation > 1:
            rundir.rewind(beginning.checkpoint.manifest.history if beginning.checkpoint else [], beginning.version)
        started = time.monotonic()
        with _log_to(rundir), Console(self._quiet, stderr=False) as console, interruptible() as interrupt:
            console.line(f"run {rundir.name}: {rundir.path}")
            for note in (*([self.simulated] if self.simulated else []), *beginning.notes):
                console.line(note)
                logging.getLogger(__name__).info("%s", note)
            driver = callbacks = None
            error: Exception | None = None
            try:
                callbacks = Callbacks([(name, make(rundir.path)) for name, make in zip(config.run.callbacks, makes, strict=True)])
                with metered(config.metrics, 0) as meter:
                    tell = partial(_tell, callbacks, meter)
                    driver = Driver(config, beginning, self._make_launcher(rundir, console), console, self._timeouts, tell=tell)
                    driver.run(interrupt)
            except KeyboardInterrupt:
                error = Stopped("interrupted")
            except Exception as caught:
                error = Stopped("interrupted") if interrupt.seen else caught  # a library may make another error of the interrupt
                logging.getLogger(__name__).exception("the run fails")
            with uninterrupted():
                if isinstance(error, Stopped):
                    error = (driver and driver.failure) or Stopped(_where_it_stands(rundir, driver))
                if callbacks:
                    callbacks.close()
                window = driver.window if driver else Window()
                summary = _summary(config, beginning, driver, window, error, time.monotonic() - started, self.simulated)
                rundir.write_summary(summary.to_dict())
                _trace(rundir, window)
                _show(console, summary, driver, window)
                if error and driver and driver.checkpoints.newest is not None:
                    console.line(f"the same command with --resume goes on from step {driver.checkpoints.newest}")
        return _result(rundir, summary, driver, error)

    def _what(self) -> str:
        """Name of the task or of the loop."""
        return self._config.task.name if self._config.task else self._config.train.loop or ""

    def _make_launcher(self, rundir: RunDirectory, console: Console) -> Launcher:
        return make_launcher(self._launcher, self._config, rundir, self._what(), address=self._address, say=console.line)


def _tell(callbacks: Callbacks, meter: Meter | None, metrics: Mapping[str, float], step: int) -> None:
    callbacks.tell(metrics, step)
    if meter:
        tell_run(meter, metrics, step)


def _trace(rundir: RunDirectory, window: Window) -> None:
    """A run is not worse for a trace that cannot be written. One without a step has none, but for that of its former driver."""
    if not window.num_all and not rundir.trace.exists():
        return
    try:
        write_trace(rundir)
    except (ConfigError, OSError) as error:
        logging.getLogger(__name__).warning("no %s: %s", rundir.trace.name, error)


def _where_it_stands(rundir: RunDirectory, driver: Driver | None) -> str:
    history = driver.books.history if driver else []
    if not history:
        return f"interrupted before an epoch had ended: {rundir.path} holds no weights"
    return f"interrupted: {rundir.path} holds the weights of epoch {history[-1]['epoch']}"


def _summary(
    config: Config, beginning: Beginning, driver: Driver | None, window: Window, error: Exception | None, wall_s: float, simulated: str | None
) -> Summary:
    books = driver.books if driver else None
    history = books.history if books else []
    return Summary(
        name=beginning.rundir.name,
        status="finished" if error is None else "interrupted" if isinstance(error, Stopped) else "failed",
        error=None if error is None else " ".join(str(error).split()) or type(error).__name__,
        error_type=None if error is None else type(error).__name__,
        metrics=metrics_of(history[-1]) if history else {},
        best=books.best if books else None,
        steps=driver.steps if driver else 0,
        epochs=books.epochs if books else 0,
        stopped_early=books.stopped_early if books else False,
        restored_version=books.restored_version if books else None,
        failures=driver.recovery.to_dicts() if driver else [],
        wall_s=wall_s,
        params_sha256=books.params_sha256 if books else None,
        buffers_sha256=books.buffers_sha256 if books else None,
        digest_chain=(books.digest_chain or None) if books else None,
        generation=beginning.generation,
        resumed_from=beginning.checkpoint.version if beginning.checkpoint else None,
        checkpoint=driver.checkpoints.newest if driver else None,
        bit_exact=config.train.exact,
        diverged=window.diverged,
        versions=versions(),
        scaling={
            "num_workers": config.scaling.num_workers,
            "num_stages": config.scaling.num_stages,
            "num_servers": config.scaling.num_servers,
            "imbalance": books.imbalance if books else None,
        },
        hosts=driver.hosts if driver else {},
        comm=window.totals() if window.num_all else {},
        verdict=closing_line(window) if window.num_all else "",
        simulated=simulated,
    )


def _show(console: Console, summary: Summary, driver: Driver | None, window: Window) -> None:
    history = driver.books.history if driver else []
    console.close()
    for name in ("validation_loss", "validation_accuracy"):
        console.curve(name.replace("_", " "), [row[name] for row in history if name in row])
    for table in tables(window):
        console.table(table)
    if summary.simulated:
        console.line(summary.simulated)
    if summary.verdict:
        console.line(summary.verdict)
    if summary.params_sha256:
        console.line(f"params_sha256 {summary.params_sha256}{'' if summary.bit_exact else ' (not bit-exact: train.exact = false)'}")


def _result(rundir: RunDirectory, summary: Summary, driver: Driver | None, error: Exception | None) -> Result:
    weights = [path for path in (rundir.weights("best"), rundir.weights("last")) if path.exists()]
    return Result(
        metrics=summary.metrics,
        history=driver.books.history if driver else [],
        checkpoint=weights[0] if weights else None,
        path=rundir.path,
        error=error,
        comm=summary.comm,
    )


class _LogFile(logging.FileHandler):
    """On a disk without room lines are lost, and the run has its own words about that."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


@contextmanager
def _log_to(rundir: RunDirectory) -> Iterator[None]:
    """The driver's own log lines go to its file while the run lasts."""
    handler = _LogFile(rundir.driver_log())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("deploy", "ps")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        with suppress(OSError):  # a full disk: the run has its own error, or none
            handler.close()
