"""One run from its first process to its last: starts them, watches them, keeps the books, and leaves none behind."""

import logging
import secrets
import socket
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc

from deploy.books import Books, metrics_of
from deploy.bottleneck_log import BottleneckLog
from deploy.checkpoints import CheckpointKeeper
from deploy.config import Config, apply_batch_rule
from deploy.console import Console
from deploy.interrupts import Interrupt, uninterrupted
from deploy.keys import RunKeys
from deploy.last_state import LastState
from deploy.launch.base import Launcher, ProcessKey
from deploy.measure.reader import LedgerWriter, Reporter
from deploy.measure.text import counted
from deploy.measure.window import Window
from deploy.processes import Processes
from deploy.recovery import Recovery
from deploy.resume import Beginning
from deploy.watch import POLL_S, Watch
from ps.addresses import listen_host
from ps.checkpoints.load import Checkpoint
from ps.config import Timeouts
from ps.control import Control, Epoch, Failure
from ps.control_service import ControlServicer
from ps.errors import NotInitialised, ProcessDied, PserverError, Stopped
from ps.ledger import WorkerRow, from_line
from ps.reader import Reader
from ps.roles import DRIVER, READER
from ps.security import RunGuard, is_loopback
from ps.segments import remove_segments, run_mark
from ps.transport.rpc import bind_within, new_server
from workers.config import RivalSettings

log = logging.getLogger(__name__)

_LAST_CHECKPOINT_S = 60.0
"""Until a run that is over gives up what is still being saved."""


class Driver:
    """Runs once. `books` is filled as the run goes on."""

    def __init__(
        self,
        config: Config,
        beginning: Beginning,
        launcher: Launcher,
        console: Console,
        timeouts: Timeouts,
        rival: RivalSettings | None = None,
        tell: Callable[[Mapping[str, float], int], None] = lambda metrics, step: None,
    ) -> None:
        """`rival`: workers compare with DDP in place of training. `tell` is called with metrics and the step they are of."""
        self._beginning, self._rundir = beginning, (rundir := beginning.rundir)
        written, (config, self._batch_rule) = config, apply_batch_rule(config)
        self._config = config
        self._launcher = launcher
        self._console = console
        self._timeouts = timeouts
        self._rival = rival
        self._tell = tell
        self._run_id = f"{rundir.name}-{secrets.token_hex(4)}"
        self.books = Books(config, rundir)
        self.recovery = Recovery(config.failure.max_failures)
        self.window = Window()
        """The ledger's totals, once `run` has ended."""
        scaling = config.scaling
        self._control = Control(
            num_workers=scaling.num_workers, num_servers=scaling.num_servers, num_stages=scaling.num_stages, home=socket.gethostname()
        )
        if beginning.checkpoint:
            self._control.restores, self._control.newest_step = True, beginning.version
            self.books.resume(beginning.checkpoint.manifest)
        self._ledger = LedgerWriter(rundir.comm, scaling.num_members, scaling.num_servers, first_step=beginning.version)
        self.checkpoints = CheckpointKeeper(written, beginning, reader=lambda: self._reader, books=self.books.at, say=self._say)
        self._service = ControlServicer(
            self._control,
            beginning.generation,
            on_epoch=self._on_epoch,
            on_rows=self._on_rows,
            on_step=self._on_step,
            checkpoints=self.checkpoints,
        )
        self._loss: float | None = None
        self.failure: Exception | None = None
        """What ends the run, whoever interrupts what comes then."""
        self._bottlenecks = BottleneckLog(self._ledger, config.comm.push_format, say=self._say, tell=tell)

    @property
    def steps(self) -> int:
        """Versions applied, as far as anybody has told: of a run that a death has ended there may be one more."""
        return max(self.books.steps, self._control.applied, self.checkpoints.newest or 0)

    @property
    def hosts(self) -> dict[str, str]:
        """Host of every process that has registered, by its name."""
        return {f"{role} {index}": machine.host for (role, index), machine in sorted(self._control.machines.items())}

    def run(self, interrupt: Interrupt) -> None:
        """Trains to the end, or until it is interrupted. Raises what ended the run; no process is left in any case,
        and no memory on this host."""
        self._watch = Watch(
            self._launcher,
            self._control,
            self._service,
            self._rundir,
            interrupt,
            recovery=self.recovery,
            timeouts=self._timeouts,
            restart=lambda key: self._processes.start(key),
            on_tick=self._bottlenecks.now_and_then,
            say=self._say,
        )
        with run_mark(self._run_id):
            try:
                self._run(interrupt)
            finally:
                with uninterrupted():
                    remove_segments(self._run_id)

    def _run(self, interrupt: Interrupt) -> None:
        server = None
        try:
            self._launcher.check()
            if self._batch_rule:
                self._say(self._batch_rule)
            if not self._config.train.exact:
                self._say("warning: train.exact = false: the run is not bit-exact, its bits may depend on who died when")
            server, address = self._serve()
            self._rundir.write_control(address, self._keys.credentials(READER))
            self._start(address)
            self._wait_for_processes(self._beginning.checkpoint)
            self._train()
            self._finish()
        except Exception as error:
            if not interrupt.seen:
                self.failure = error
            raise
        finally:
            try:
                self._end_processes()
            finally:
                with uninterrupted():  # gRPC does not bear an exception in the middle of a server's end
                    self._rundir.control.unlink(missing_ok=True)
                    self.window = self._ledger.close()
                    if server:
                        server.stop(0.5).wait(2)
                        self._reader.close()
                    self._rundir.checkpoints.remove_unfinished()

    # -- phases ----------------------------------------------------------------------------------------------

    def _serve(self) -> tuple[grpc.Server, str]:
        """Control, and its address: on loopback with tokens, elsewhere encrypted unless the user does without."""
        config, scaling = self._config, self._config.scaling
        host = listen_host(self._launcher.control_host(), config.comm.interface)
        self._keys = RunKeys(self._run_id, encrypted=not (is_loopback(host) or config.security.allow_plaintext))
        own = self._keys.credentials(DRIVER)
        pause = partial(self._service.pause, POLL_S)
        self._reader = Reader(own, scaling.num_servers, self._control.locate, self._timeouts, pause=pause)
        guard = RunGuard(self._run_id, self._keys.secret)
        server = new_server("control", guard, num_roles=scaling.num_members + scaling.num_servers + 2)  # driver, reader
        server.add_generic_rpc_handlers((self._service.handlers(),))
        port = bind_within(server, host, config.comm.ports, own.tls)
        server.start()
        return server, f"{host}:{port}"

    def _start(self, control_address: str) -> None:
        """All at once: workers are told the servers when all of these have registered."""
        self._processes = Processes(
            self._config,
            self._launcher,
            keys=self._keys,
            control_address=control_address,
            timeouts=self._timeouts,
            beginning=self._beginning,
            rival=self._rival,
        )
        scaling = self._config.scaling
        for key in [ProcessKey("server", s) for s in range(scaling.num_servers)] + [ProcessKey("worker", r) for r in range(scaling.num_members)]:
            self._processes.start(key)

    def _wait_for_processes(self, checkpoint: Checkpoint | None) -> None:
        scaling, start_s = self._config.scaling, self._timeouts.start_s
        self._watch.wait("the servers to start", lambda: self._control.has_all_servers, start_s)
        addresses = ", ".join(self._control.servers[shard].data for shard in range(scaling.num_servers))
        self._say(f"{counted(scaling.num_servers, 'server')} up: {addresses}")
        if checkpoint:
            self._aside("the servers to take the checkpoint", lambda: self._reader.restore(checkpoint))
            with self._service.changed:
                self._control.restores = False
                self._service.changed.notify_all()
        self._watch.wait("the workers to start", lambda: self._num_registered("worker") == scaling.num_members, start_s)
        self._say(f"{counted(scaling.num_members, 'worker')} registered")

    def _aside(self, what: str, work: Callable[[], None]) -> None:
        """Does `work`, which may wait for a server, in a thread of its own, while this one has it started again."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="aside")
        try:
            ended = pool.submit(work)
            self._watch.wait(what, ended.done)
            ended.result()
        finally:
            pool.shutdown(wait=False)

    def _num_registered(self, role: str) -> int:
        return sum(1 for key in list(self._control.incarnations) if key[0] == role)

    def _train(self) -> None:
        try:
            self._aside("the workers to join", self._begin)
            self._watch.wait("training", lambda: self._control.final_version is not None)
        except ProcessDied as died:
            self.failure = died
            if not self._rival:
                self._save_last_state()
            raise

    def _save_last_state(self) -> None:
        run = self._config, self._run_id, self._beginning.generation
        last = LastState(self.checkpoints, self._reader, self._control, self._service.changed, self._launcher, self._processes.start, *run)
        saved = last.save()
        if saved is not None:
            self._say(f"the state of step {saved} is saved")

    def _finish(self) -> None:
        """The last version has landed everywhere: keeps it, and lets all processes end by themselves."""
        self._aside("the last weights", self._close_books)
        self._aside("the last checkpoint", self._save_last)
        self._reader.stop_servers("the run has finished")
        self._watch.wait_for_ends(self._timeouts.stop_s)
        self._bottlenecks.end()

    def _close_books(self) -> None:
        assert self._control.final_version is not None
        self.books.close(self._control.final_version, self._reader)

    def _save_last(self) -> None:
        version, (_, plan) = self._control.final_version, self._reader.model
        assert version is not None
        if not self._rival and not self.books.stopped_early and self._config.checkpoint.is_due(version, plan.steps_per_epoch):
            self.checkpoints.save_now(version)
        self.checkpoints.wait(_LAST_CHECKPOINT_S)

    def _end_processes(self) -> None:
        self._service.stop()
        self._launcher.stop(self._timeouts.stop_s)

    def _say(self, text: str) -> None:
        self._console.line(text)
        log.info("%s", text)

    # -- what processes report -------------------------------------------------------------------------------

    def _on_rows(self, sender: Reporter, lines: list[str]) -> None:
        self._ledger.add(sender, lines)
        if lines:
            row = from_line(lines[-1])
            if isinstance(row, WorkerRow) and row.rank == self._control.num_stages - 1:
                self._loss = row.loss

    def _begin(self) -> None:
        """Says what is trained, as soon as a worker has joined."""
        while True:
            try:
                layout, plan = self._reader.model
                break
            except NotInitialised:
                self._service.pause(POLL_S)
        self.books.imbalance = layout.imbalance
        self._bottlenecks.begin(layout.shard_bytes)
        sizes = ", ".join(f"{size / 1e6:.3g}" for size in layout.shard_bytes)
        chunks = counted(len(layout), "chunk")
        self._say(f"{chunks} on {counted(layout.num_servers, 'shard')} of {sizes} MB, largest {layout.imbalance:.3f} of the mean")
        if self._control.num_stages > 1:
            held = [sum(spec.num_bytes for spec in layout.specs if spec.stage == stage) for stage in range(self._control.num_stages)]
            sizes = ", ".join(f"{size / 1e6:.3g}" for size in held)
            self._say(f"{len(held)} stages of {sizes} MB, largest {max(held) * len(held) / sum(held):.3f} of the mean (pipeline.balance)")
        if len(layout) < layout.num_servers:
            self._say(f"warning: {layout.num_servers} servers for {chunks}: some hold nothing; use fewer servers")
        self._console.start(plan.total_steps, self._config.train.epochs)

    def _on_step(self, rank: int, step: int) -> None:
        if rank != 0 or step == 0 or self.books.imbalance is None:
            return
        _, plan = self._reader.model
        epoch = min((step - 1) // plan.steps_per_epoch + 1, self._config.train.epochs)
        self._console.progress(step, {"epoch": epoch, **({"loss": self._loss} if self._loss is not None else {})})

    def _on_epoch(self, epoch: Epoch) -> bool:
        try:
            decision = self.books.enter(epoch, self._reader, self._say)
        except Stopped:
            raise
        except Exception as error:  # no rank's fault, though a rank's report has brought it to light
            ours = isinstance(error, PserverError)
            text = str(error) if ours else f"the driver cannot enter epoch {epoch.version} into the books: {type(error).__name__}: {error}"
            with self._service.changed:
                self._control.fail(Failure(None, type(error).__name__ if ours else "PserverError", text, traceback.format_exc()))
            raise
        row = self.books.history[-1]
        self._console.epoch(row["epoch"], metrics_of(row), mid_epoch_step=None if self.books.ends_epoch(row) else row["step"])
        log.info("epoch %d: %s", row["epoch"], row)
        self._tell(metrics_of(row), row["step"])
        self._bottlenecks.epoch_ended(epoch.version)
        return decision.stop
