"""One rank's connection to the run: a model bound to memory, joined to all shards, stepping in time with the others."""

import logging
import math
import time
from collections.abc import Mapping, Sequence

from torch import nn

from ps.client import Client
from ps.control import EpochSums, ServerAddress
from ps.control_service import ControlClient
from ps.errors import Stopped, VersionGone
from ps.failpoints import hit
from ps.layout import Layout
from ps.ledger import RowBuffer, WorkerRow
from ps.plan import Plan
from ps.server import environment
from ps.shared import member_segment
from ps.step_clock import StepTiming
from workers.binding import BoundModel, specs_of
from workers.config import WorkerSettings
from workers.device import check_device, prepare_device
from workers.spans import Spans
from workers.step import Contribution

log = logging.getLogger(__name__)


class Session:
    """Bound once by `bind`; then `step` after `step`. One thread uses it; `stop` may come from any."""

    def __init__(self, settings: WorkerSettings, control: ControlClient, servers: Sequence[ServerAddress], rows: RowBuffer) -> None:
        self.settings = settings
        self.rank = settings.rank
        self.device = prepare_device(settings.rank, settings.gpus)
        """Where the model must be."""
        self.spans = Spans()
        self.version = 0
        """Version of the parameters in the model: the next step."""
        self._control = control
        self._servers = servers
        self._rows = rows
        self._exchanging = False
        self._client: Client | None = None
        self._stop_reason: str | None = None

    def bind(self, model: nn.Module, plan: Plan) -> BoundModel:
        """Joins all shards with the model, brings version 0 if it is missing, and installs the version they are at.

        Raises ConfigError, ModelMismatch, Unreachable, Stopped.
        """
        settings = self.settings
        check_device(model, self.device)
        self.plan = plan
        layout = Layout(specs_of(model, settings.optimizer.groups), settings.num_servers)
        member = self._control.member
        segment = member_segment(settings.run_id, member, layout.flat_bytes) if settings.comm.may_share else None
        self.bound = bound = BoundModel(model, layout, gradients=segment.contributions if segment else None)
        self._client = client = Client(
            member=member,
            run_id=settings.run_id,
            token=settings.token,
            layout=layout,
            servers=self._servers,
            comm=settings.comm,
            timeouts=settings.timeouts,
            landing=bound.landing,
            segment=segment,
            locate=self._control.locate,
        )
        if self._stop_reason:
            raise Stopped(self._stop_reason)
        digests = bound.initial_digests()
        while not self._enter(client, digests):
            log.info("a version went while it was pulled: joining again")
        bound.install(self.version)
        hit("worker.installed")
        self.spans.take()
        return bound

    def _enter(self, client: Client, digests: Sequence[int]) -> bool:
        """Joins, and has the version of the run land; False if that went meanwhile."""
        version = client.join(digests, self.plan, environment(self.settings.train.num_threads))
        hit("worker.joined")
        if version == -1 and self.rank == 0:
            client.init(self.bound.landing[0])
        client.open()
        self.version = max(version, 0)
        try:
            if self.version:
                client.pull(self.version, self.bound.landing[self.version % 2])
                self.bound.copy_across(self.version)
        except VersionGone:
            return False
        return True

    def step(self, contribution: Contribution) -> None:
        """Pushes what the bound model has gathered, and installs the next version when all of it has landed."""
        assert self._client, "bind() comes first"
        started = time.perf_counter()
        self._exchanging = True
        timing = self._client.exchange(self.version, contribution.weight, self.bound.gradients, self.bound.is_present)
        with self.spans.span("install"):
            self.bound.install(self.version + 1)
        self._rows.add(self._row(contribution, timing, time.perf_counter() - started))
        self._exchanging = False
        self.version += 1

    @property
    def progress(self) -> tuple[int, bool]:
        """The step, and whether it is being exchanged: then this rank will neither report nor end at that version."""
        return self.version, self._exchanging

    def report(self, sums: Mapping[str, float]) -> bool:
        """Brings the rank's sums of a phase at the present version; True if the run ends here. Returns when every rank has reported."""
        hit("worker.reports")
        self._rows.urgent.set()
        stop = self._control.report_epoch(EpochSums(self.version, self.bound.epoch_sums(self.version), dict(sums)))
        hit("worker.reported")
        self.spans.take()
        return stop

    def _row(self, contribution: Contribution, timing: StepTiming, exchange_s: float) -> WorkerRow:
        step_s, seconds = self.spans.take()
        own = {f"{name}_s": seconds.get(name, 0.0) for name in ("data_wait", "compute", "copy", "install")}
        exchange = {f"{name}_s": getattr(timing, f"{name}_s") for name in ("encode", "send", "barrier_wait", "apply", "receive")}
        return WorkerRow(
            rank=self.rank,
            step=self.version,
            time_s=time.time(),
            step_s=step_s,
            **own,
            **exchange,
            other_s=step_s - sum(own.values()) - sum(exchange.values()),
            exposed_s=own["copy_s"] + exchange_s,
            waits_for=timing.waits_for,
            samples=contribution.samples,
            loss=contribution.loss if math.isfinite(contribution.loss) else None,
            shards=timing.shards,
            link_bytes_per_s=self.settings.comm.link_bytes_per_s(),
        )

    def stop(self, reason: str) -> None:
        """Makes calls in progress, and later ones, raise Stopped; from any thread."""
        self._stop_reason = reason
        if self._client:
            self._client.abort(reason)

    def close(self) -> None:
        """Ends streams and channels."""
        if self._client:
            self._client.close()
