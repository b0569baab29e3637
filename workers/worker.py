"""A worker process: one rank, from its settings to its end. Runs without Ray. `python -m workers.worker`."""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from functools import partial
from types import FrameType

import torch

from ps.addresses import listen_host
from ps.config import from_json
from ps.control_client import ControlClient, Heart, Progress
from ps.errors import ConfigError, NeighbourLost, PserverError, Stopped, WorkerFailed
from ps.failpoints import hit
from ps.ledger import RowBuffer
from ps.logs import configure_logging
from ps.memory import keep_freed_memory
from ps.metrics import Meter, metered, tell_row
from ps.roles import DRIVER
from ps.segments import run_mark
from ps.server import SWITCH_INTERVAL_S, environment
from ps.stages.links import StageLinks
from ps.stages.memory import LARGE_BYTES_AT_START
from ps.transport.rpc import Peer
from workers.config import WorkerSettings
from workers.context import run_loop
from workers.device import operations_named
from workers.loop import train
from workers.session import Session
from workers.task import load_task

log = logging.getLogger(__name__)

_LAST_ROWS_S = 1.0
"""Until a process that is to end gives up telling the driver of its last steps."""


class Worker:
    """One rank of a run."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.rows = RowBuffer()
        self._session: Session | None = None
        self._stop_reason: str | None = None
        peer = Peer(DRIVER, settings.control_address, settings.credentials, settings.timeouts)
        self._control = ControlClient(peer, "worker", settings.rank, settings.stage)
        self._links = self._listen() if settings.num_stages > 1 else None
        self._is_stopped = threading.Event()
        self._heart = Heart(
            self._control,
            self.rows,
            lambda: self._session.progress if self._session else Progress(0, doing="starts"),
            self.stop,
            every_s=settings.timeouts.heartbeat_s,
            orphan_after_s=settings.timeouts.orphan_after_s,
            clock=time.monotonic,
        )

    def _listen(self) -> StageLinks:
        settings = self.settings
        return StageLinks(
            self._control,
            settings.num_stages,
            host=listen_host(settings.host, settings.comm.interface),
            credentials=settings.credentials,
            token_before=settings.token_before,
            comm=settings.comm,
            timeouts=settings.timeouts,
            allow_plaintext=settings.security.allow_plaintext,
        )

    def run(self) -> None:
        """Registers, joins, trains and says goodbye. An error is reported to the driver and raised."""
        settings = self.settings
        torch.set_num_threads(settings.train.num_threads)
        keep_freed_memory(LARGE_BYTES_AT_START if self._links else None)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        address = self._links.address if self._links else ""
        servers = self._control.register(environment(settings.train.num_threads), address, timeout_s=settings.timeouts.start_s)
        hit("worker.registered")
        log.info("rank %d of run %s works with %d servers", settings.rank, settings.run_id, len(servers))
        self._heart.start()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._end)
        try:
            self._session = session = Session(settings, self._control, servers, self.rows, self._links)
            if self._stop_reason:
                raise Stopped(self._stop_reason)
            with operations_named():
                try:
                    self._train(session)
                finally:
                    session.rows.hand_on()
            self._control.report_finished(session.version)
            hit("worker.finished")
        except Stopped:
            raise
        except NeighbourLost:
            # whoever has died is seen within that time, and the driver ends the rank's other stages; else this one must begin again
            if self._is_stopped.wait(settings.timeouts.connect_s):
                raise Stopped(self._stop_reason or "") from None
            raise
        except Exception as error:
            self._heart.stop()  # rows first: the driver ends everybody when it hears of the failure
            self._report_failure(error)
            raise
        finally:
            self._heart.stop()
            if self._session:
                self._session.close()
            if self._links:
                self._links.close()
            self._control.close()

    def _train(self, session: Session) -> None:
        settings = self.settings
        if settings.train.loop is not None:
            run_loop(settings.train.loop, session)
        elif settings.task is not None:
            task = load_task(settings.task, settings.task_fields)
            if settings.rival:
                from workers.compare import compare  # brings torch.distributed

                compare(session, task)
            else:
                train(session, task)

    def _report_failure(self, error: Exception) -> None:
        ours = isinstance(error, PserverError)
        text = str(error) if ours else f"{type(error).__name__}: {' '.join(str(error).split())}"
        error_type = type(error).__name__ if ours else WorkerFailed.__name__
        try:
            self._control.report_failed(error_type, text, traceback.format_exc())
        except PserverError as unheard:
            log.warning("the driver does not hear of the failure: %s", unheard)

    def _end(self, number: int, _: FrameType | None) -> None:
        """Dies of the signal, when the driver has the rows of the steps that have ended. Another thread brings them: this one may hold any lock."""
        signal.signal(number, signal.SIG_DFL)
        last = threading.Thread(target=self._hand_on_rows, name="last-rows", daemon=True)
        last.start()
        last.join(_LAST_ROWS_S)
        os.kill(os.getpid(), number)

    def _hand_on_rows(self) -> None:
        if self._session:
            self._session.rows.hand_on()
        self._heart.stop()

    def stop(self, reason: str) -> None:
        """Ends the run of this rank from any thread: calls in progress raise Stopped."""
        log.info("asked to stop: %s", reason)
        self._stop_reason = reason
        self._is_stopped.set()
        if self._session:
            self._session.stop(reason)


def work(settings_json: str, meter: Meter | None = None) -> int:
    """Runs a worker to its end; the exit code. `meter`: where metrics go, if there shall be any, in place of an endpoint."""
    settings = from_json(WorkerSettings, settings_json)
    worker = Worker(settings)
    try:
        with run_mark(settings.run_id), metered(settings.metrics, 1 + settings.num_servers + settings.number, meter) as meter:
            if meter:
                worker.rows.on_row = partial(tell_row, meter)
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
