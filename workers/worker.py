"""A worker process: one rank, from its settings to its end. Runs without Ray. `python -m workers.worker`."""

import logging
import sys
import time
import traceback

import torch

from ps.client import Client
from ps.config import from_json
from ps.control import ServerAddress
from ps.control_service import ControlClient, Heart
from ps.errors import ConfigError, PserverError, Stopped, WorkerFailed
from ps.layout import Layout
from ps.ledger import RowBuffer
from ps.logs import configure_logging
from ps.security import call_metadata
from ps.server import environment
from ps.transport.rpc import Peer
from ps.update import Plan
from workers.binding import BoundModel, specs_of
from workers.config import WorkerSettings
from workers.context import Context
from workers.loop import train
from workers.sampler import BatchPlan
from workers.step import GradientStep
from workers.task import load_task

log = logging.getLogger(__name__)


class Worker:
    """One rank of a run."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self._rows = RowBuffer()
        self._context: Context | None = None
        self._client: Client | None = None
        self._stop_reason: str | None = None
        peer = Peer("the driver", settings.control_address, call_metadata(settings.run_id, settings.token), settings.timeouts)
        self._control = ControlClient(peer, "worker", settings.rank)
        self._heart = Heart(
            self._control,
            self._rows,
            lambda: self._context.version if self._context else 0,
            self.stop,
            every_s=settings.timeouts.heartbeat_s,
            orphan_after_s=settings.timeouts.orphan_after_s,
            clock=time.monotonic,
        )

    def run(self) -> None:
        """Registers, joins, trains and says goodbye. An error is reported to the driver and raised."""
        settings = self.settings
        torch.set_num_threads(settings.train.num_threads)
        self._env = environment(settings.train.num_threads)
        servers = self._control.register(self._env)
        self._heart.start()
        try:
            self._context = self._prepare(servers)
            train(self._context)
            self._control.report_finished(self._context.version)
        except Stopped:
            raise
        except Exception as error:
            self._report_failure(error)
            raise
        finally:
            self._heart.stop()
            if self._client:
                self._client.close()
            self._control.close()

    def _prepare(self, servers: list[ServerAddress]) -> Context:
        """Builds model and data, joins all shards and installs the version they are at."""
        settings = self.settings
        dtype = getattr(torch, settings.train.dtype)
        task = load_task(settings.task, settings.task_fields)
        torch.manual_seed(settings.train.seed)
        model = task.model().to(dtype)
        data = task.train_data()
        plan = BatchPlan.from_config(settings.train, settings.num_workers, len(data))
        bound = BoundModel(model, Layout(specs_of(model), settings.num_servers))
        lengths = Plan(plan.steps_per_epoch(), self._total_steps(plan))
        self._client = client = Client(
            member=self._control.member,
            run_id=settings.run_id,
            token=settings.token,
            layout=bound.layout,
            servers=servers,
            comm=settings.comm,
            timeouts=settings.timeouts,
            landing=bound.landing,
        )
        if self._stop_reason:
            raise Stopped(self._stop_reason)
        version = self._join(client, bound, lengths)
        bound.install(version)
        return Context(
            rank=settings.rank,
            num_workers=settings.num_workers,
            version=version,
            plan=lengths,
            task=task,
            validation_data=task.validation_data(),
            validation_batch=plan.micro_batch_size(),
            dtype=dtype,
            bound=bound,
            gradient=GradientStep(task, data, plan, bound, dtype, rank=settings.rank, nonfinite=settings.optimizer.nonfinite),
            client=client,
            control=self._control,
            rows=self._rows,
        )

    def _total_steps(self, plan: BatchPlan) -> int:
        train_config = self.settings.train
        steps = plan.steps_per_epoch() * train_config.epochs
        return steps if train_config.max_steps is None else min(steps, train_config.max_steps)

    def _join(self, client: Client, bound: BoundModel, plan: Plan) -> int:
        """Joins all shards; brings version 0 or reads the version they are at."""
        version = client.join(bound.initial_digests(), plan, self._env)
        if version == -1 and self.settings.rank == 0:
            client.init(bound.landing[0])
        client.open()
        version = max(version, 0)
        if version > 0:
            client.pull(version, bound.landing[version % 2])
            bound.copy_across(version)
        return version

    def _report_failure(self, error: Exception) -> None:
        ours = isinstance(error, PserverError)
        text = str(error) if ours else f"{type(error).__name__}: {' '.join(str(error).split())}"
        error_type = type(error).__name__ if ours else WorkerFailed.__name__
        try:
            self._control.report_failed(error_type, text, traceback.format_exc())
        except PserverError as unheard:
            log.warning("the driver does not hear of the failure: %s", unheard)

    def stop(self, reason: str) -> None:
        """Ends the run of this rank from any thread: calls in progress raise Stopped."""
        log.info("asked to stop: %s", reason)
        self._stop_reason = reason
        if self._client:
            self._client.abort(reason)


def work(settings_json: str) -> int:
    """Runs a worker to its end; the exit code."""
    worker = Worker(from_json(WorkerSettings, settings_json))
    try:
        worker.run()
    except Stopped as reason:
        log.info("stopped: %s", reason)
    except Exception:
        log.exception("rank %d fails", worker.settings.rank)
        return 1
    return 0


def main() -> int:
    """Entry point: settings as JSON from standard input."""
    configure_logging()
    try:
        return work(sys.stdin.read())
    except (ConfigError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
