"""One rank's connection to the run: a model bound to memory, joined to all shards, stepping in time with the others."""

import logging
from collections.abc import Mapping, Sequence

from torch import nn

from ps.checkpoints.of_rank import SavedResiduals, restore
from ps.client import Client
from ps.codecs import is_lossy
from ps.control import EpochSums, ServerAddress
from ps.control_client import ControlClient, Progress
from ps.errors import NeighbourLost, Stopped, VersionGone
from ps.failpoints import hit
from ps.frame import Bytes
from ps.layout import Layout
from ps.ledger import RowBuffer
from ps.memory import keep_freed_memory
from ps.plan import Plan
from ps.rank_state import RankState
from ps.server import environment
from ps.shared import member_segment
from ps.stages.links import StageLinks
from ps.stages.memory import LARGE_BYTES, forget_peak, give_back_freed_memory
from ps.step_clock import StepTiming
from workers.binding import BoundModel, specs_of
from workers.config import WorkerSettings
from workers.device import check_device, prepare_device
from workers.layers import Layers
from workers.pushes import Pushes
from workers.rows import StepRows
from workers.spans import Spans
from workers.step import Contribution

log = logging.getLogger(__name__)


class Session:
    """Bound once by `bind`; then `enter`, `pushes` and `step` for every step. One thread uses it; `stop` may come from any."""

    def __init__(
        self,
        settings: WorkerSettings,
        control: ControlClient,
        servers: Sequence[ServerAddress],
        rows: RowBuffer,
        links: StageLinks | None = None,
    ) -> None:
        """`links`: to the neighbouring stages, if the rank is split."""
        self.settings = settings
        self.links = links
        self.rank = settings.rank
        self.device = prepare_device(settings.rank, settings.gpus, exact=settings.train.exact)
        """Where the model must be."""
        self.spans = Spans(slowdown=settings.slowdown)
        self.version = 0
        """Version of the parameters in the model: the next step."""
        self.started_at = 0
        """The first step of this process."""
        self._control = control
        self._servers = servers
        self.rows = StepRows(settings, self.spans, rows, links)
        self.plan: Plan
        self.bound: BoundModel
        self.layers: Layers
        self.pushes: Pushes
        self._progress = 0, False
        self._doing = "prepares its model and data"
        self._unsettled: Contribution | None = None
        """What has been pushed, until the version that it makes is installed."""
        self._client: Client | None = None
        self._residuals: SavedResiduals | None = None
        self._stop_reason: str | None = None

    def bind(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        own_loop: bool = False,
        stages: Mapping[str, int] | None = None,
        digests: Mapping[str, Sequence[int]] | None = None,
    ) -> BoundModel:
        """Joins all shards with the model, brings version 0 if it is missing, and installs the version they are at.

        `own_loop`: the model and its gradients may be looked at at any time, not only by a GradientStep. `stages`: of every tensor, if the
        model is split; `digests`: of other stages' that have no values. Raises ConfigError, ModelMismatch, Unreachable, Stopped.
        """
        self._doing = "joins the servers"
        settings = self.settings
        check_device(model, self.device)
        self.plan = plan
        layout = Layout(specs_of(model, settings.optimizer.groups, stages), settings.num_servers)
        member = self._control.member
        rank_state = self._rank_state(layout) if is_lossy(settings.comm.push_format) else None
        own = None if stages is None else layout.spans_of_stage(member.stage)
        segment = member_segment(settings.run_id, member, layout.flat_bytes, own) if settings.comm.may_share else None
        stage = None if stages is None else member.stage
        self.bound = bound = BoundModel(
            model,
            layout,
            gradients=segment.contributions if segment else None,
            stage=stage,
            digests=digests,
        )
        initial = bound.initial_digests()
        self._client = client = Client(
            member=member,
            credentials=settings.credentials,
            layout=layout,
            servers=self._servers,
            comm=settings.comm,
            timeouts=settings.timeouts,
            landing=bound.landing,
            segment=segment,
            locate=self._control.locate,
            rank_state=rank_state,
            num_workers=settings.num_workers,
            num_stages=settings.num_stages,
            link=self.links.link if self.links else None,
        )
        if self._stop_reason:
            raise Stopped(self._stop_reason)
        while not self._join(client, initial):
            log.info("a version went while it was pulled: joining again")
        bound.install(self.version)
        if stages is not None:
            give_back_freed_memory()  # the model as it was built
            keep_freed_memory(LARGE_BYTES)
            forget_peak()
        hit("worker.installed")
        self._doing = "computes"
        is_whole = not own_loop and stages is None
        self.layers = Layers(bound, self, self.spans, layerwise=settings.train.overlap and is_whole, in_place=is_whole)
        self.pushes = Pushes(bound, self, self.spans, early=settings.train.overlap, own_loop=own_loop, adds_in_place=stages is not None)
        self.rows.begin()
        return bound

    def _join(self, client: Client, digests: Sequence[int]) -> bool:
        """Joins, and has the version of the run land; False if that went meanwhile."""
        version = client.join(digests, self.plan, environment(self.settings.train.num_threads))
        hit("worker.joined")
        if version == -1 and self.rank == 0:
            client.init(self.bound.landing[0])
        client.open()
        self.bound.digests_gradients = client.pushes_digests
        self._start_at(0)
        if self.links:
            return self._join_group(client, self.links, max(version, 0))
        return version <= 0 or any(self._pull(client, wanted) for wanted in self._wanted(version))

    def _join_group(self, client: Client, links: StageLinks, version: int) -> bool:
        """The same at the smallest version that the rank's stages have found, which all can read: nothing goes past the next one without them."""
        links.connect(client.tend)
        version = links.agree(version)
        if version and not self._pull(client, version):
            raise NeighbourLost(f"version {version} went while rank {self.rank} read it")
        return True

    def _wanted(self, version: int) -> list[int]:
        """An own loop does the step before once more, if its parameters are still there: only so it comes to a report at `version`."""
        return [version - 1, version] if self.plan.own_loop else [version]

    def _pull(self, client: Client, version: int) -> bool:
        """Has a version land, unless that has gone."""
        try:
            client.pull(version, self.bound.landing[version % 2])
        except VersionGone:
            return False
        self.bound.copy_across(version)
        self._start_at(version)
        return True

    def _start_at(self, version: int) -> None:
        self.version = self.started_at = version
        self._progress = version, False
        if self._residuals:
            self._residuals.settled(version, self.plan)

    def _rank_state(self, layout: Layout) -> RankState:
        settings = self.settings
        skip_nonfinite = settings.optimizer.nonfinite == "skip"
        state = RankState.open(settings.run_id, self._control.member, layout, settings.comm, seed=settings.train.seed, skip_nonfinite=skip_nonfinite)
        if settings.saving:
            restore(state, settings.saving, self._control)
            self._residuals = SavedResiduals(state, layout, self.rank, settings.num_workers, self._control, settings.saving)
        return state

    # -- a step: `pushes` and `layers` call these ------------------------------------------------------------

    def begin(self, step: int, weight: float) -> None:
        """A step of which nothing is ready; returns when all of its version has landed and is installed."""
        self.settle()
        with self.spans.span("ledger"):
            self.rows.hand_on()
        self._progress = step, True
        with self.spans.span("exchange"):
            self.client.begin(step, weight, self.bound.gradients, self.bound.digests)

    def ready(self, tensors: Sequence[int], *, present: bool) -> None:
        """These contributions are in the bound model's gradients, or absent."""
        with self.spans.span("exchange"):
            self.client.ready(tensors, present=present)

    def missing(self) -> Sequence[int]:
        """Tensors of whose next version something has not landed yet."""
        return self.client.missing()

    def wait(self, tensors: Sequence[int]) -> None:
        """Returns when all of these tensors has landed."""
        with self.spans.span("exchange"):
            self.client.wait(tensors)

    def prioritise(self, order: Mapping[int, int]) -> None:
        """The order in which forward uses the tensors."""
        self.client.prioritise(order)

    def share(self) -> tuple[Bytes, Bytes] | None:
        """Where what lands can be read without a copy; None if it cannot."""
        return self.client.share()

    # -- between steps ---------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Before the forward of the next step: waits as far as the layers do not wait themselves."""
        if self._unsettled and self.layers.is_layerwise:
            self.layers.start()
        else:
            self.settle()

    def step(self, contribution: Contribution) -> None:
        """The step's contribution is on its way: the session goes on to the version that it makes."""
        self._unsettled = contribution
        self.version += 1
        with self.spans.span("install"):
            self.layers.next(self.version)

    def settle(self) -> None:
        """Returns when all of the session's version has landed and is installed."""
        if not self._unsettled:
            return
        with self.spans.span("exchange"):
            timing = self.client.settle()
        self.layers.finish()
        if self._residuals:
            with self.spans.span("checkpoint"):
                self._residuals.settled(self.version, self.plan)
        with self.spans.span("ledger"):
            self._end_step(self._unsettled, timing)
            self._unsettled = None
            self._progress = self.version, False
            if not self.plan.own_loop and not self.plan.decides(self.version):
                self.rows.hand_on()

    def _end_step(self, contribution: Contribution, timing: StepTiming) -> None:
        is_first = self.version - 1 == self.started_at
        came_back = is_first and self._control.member.incarnation > 1
        self.rows.end_step(self.version - 1, contribution, timing, came_back=came_back, joined=self.client.pacing if is_first else None)

    @property
    def progress(self) -> Progress:
        """Where the rank is; from any thread."""
        step, exchanging = self._progress
        return Progress(step, exchanging, (self._client.doing if self._client else None) or self._doing)

    @property
    def client(self) -> Client:
        """Only after `bind`."""
        assert self._client, "bind() comes first"
        return self._client

    def report(self, sums: Mapping[str, float]) -> bool:
        """Brings the rank's sums of a phase at the present version; True if the run ends here. Returns when every rank has reported."""
        hit("worker.reports")
        self.settle()
        self.rows.end_validation()
        if self.links:
            self.links.agree(self.version)  # while others of the rank have not landed it, a server may need the norms that only we know
        self.rows.send_at_once()
        self._doing = "has reported and waits for the others"
        is_last = self.settings.stage + 1 == self.settings.num_stages
        training = self.bound.epoch_sums(self.version) if is_last else {}
        stop = self._control.report_epoch(EpochSums(self.version, training, dict(sums)))
        self._doing = "computes"
        hit("worker.reported")
        self.rows.end_report()
        return stop

    def stop(self, reason: str) -> None:
        """Makes calls in progress, and later ones, raise Stopped; from any thread."""
        self._stop_reason = reason
        if self._client:
            self._client.abort(reason)

    def close(self) -> None:
        """Ends streams and channels; what is being saved is saved first."""
        if self._residuals:
            self._residuals.close()
        if self._client:
            self._client.close()
