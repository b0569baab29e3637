"""What the driver knows and decides: who has registered, what has been reported, when the run ends. Pure."""

from dataclasses import dataclass, field, replace

from ps.errors import Fenced, MalformedFrame, ModelMismatch
from ps.roles import member_name
from ps.store import EMPTY


@dataclass(frozen=True)
class ServerAddress:
    """Where a shard is served."""

    shard: int
    data: str
    control: str


@dataclass(frozen=True)
class Machine:
    """Where a process runs, and with what."""

    host: str
    versions: dict[str, str]
    """Of what must be the same everywhere, by name."""


@dataclass(frozen=True)
class EpochSums:
    """One worker's report of an epoch."""

    version: int
    training: dict[str, float]
    """The versioned sums of shard 0, the same on every rank; empty on its stages before the last."""
    validation: dict[str, float]
    """This rank's part, likewise."""


@dataclass(frozen=True)
class Epoch:
    """Exact sums of an epoch over all ranks."""

    version: int
    training: dict[str, float]
    validation: dict[str, float]


@dataclass
class Failure:
    """Why a member cannot go on."""

    worker: int | None
    """None for a server or the driver itself."""
    error_type: str
    error: str
    traceback: str


@dataclass
class Control:
    """Membership, sums and decisions. Not thread-safe: the service locks."""

    num_workers: int
    num_servers: int
    num_stages: int = 1
    """Members of a rank. A worker's index is rank * num_stages + stage."""
    home: str | None = None
    """The driver's host: processes elsewhere are named with theirs. None: not known."""
    servers: dict[int, ServerAddress] = field(default_factory=dict)
    stages: dict[int, str] = field(default_factory=dict)
    """Where workers serve the stage before them."""
    incarnations: dict[tuple[str, int], int] = field(default_factory=dict)
    """Newest incarnation by role ("server", "worker") and index."""
    machines: dict[tuple[str, int], Machine] = field(default_factory=dict)
    """Of the newest incarnations."""
    beats: dict[tuple[str, int], int] = field(default_factory=dict)
    """Signs of life of the newest incarnations so far; none of a process that is known to have ended."""
    steps: dict[tuple[str, int], int] = field(default_factory=dict)
    """Last step or version that each of them told."""
    newest_step: int = 0
    """Largest one ever told."""
    landed: dict[int, int] = field(default_factory=dict)
    """By stage: the largest version of which a worker has told that all of the stage's part has landed."""
    failure: Failure | None = None
    """The first one."""
    restores: bool = False
    """The servers have yet to be given a checkpoint: workers are not told of them."""
    _exchanging: int = -1
    """Largest step that a rank is known to push."""
    _reports: dict[int, dict[int, EpochSums]] = field(default_factory=dict)
    _finished: dict[int, int] = field(default_factory=dict)

    def register(self, role: str, index: int, address: ServerAddress | str | None = None, machine: Machine | None = None) -> int:
        """Issues the next incarnation; `address`: where it serves, if it does. Raises MalformedFrame for an index that the run does not have,
        ModelMismatch for versions other than the first process'; that one is recorded as a failure too, for no process can mend it."""
        count = self.num_servers if role == "server" else self.num_members
        if not 0 <= index < count:
            raise MalformedFrame(f"{role} {index} registers in a run of {count}")
        if machine:
            self._check_versions(role, index, machine)
            self.machines[role, index] = machine
        if isinstance(address, ServerAddress):
            self.servers[index] = address
        elif address:
            self.stages[index] = address
        self.incarnations[role, index] = self.incarnations.get((role, index), 0) + 1
        self.beats[role, index] = 0
        return self.incarnations[role, index]

    @property
    def num_members(self) -> int:
        """Worker processes."""
        return self.num_workers * self.num_stages

    def name(self, worker: int) -> str:
        """A worker, for people."""
        return member_name(worker, self.num_stages)

    def beat(self, role: str, index: int, step: int) -> None:
        """A sign of life of the newest incarnation. A server without versioned chunks (`step` is EMPTY) is as far as the others."""
        self.beats[role, index] = self.beats.get((role, index), 0) + 1
        step = self.newest_step if step == EMPTY else step
        self.steps[role, index] = step
        self.newest_step = max(self.newest_step, step)
        if role == "worker":
            stage = index % self.num_stages
            self.landed[stage] = max(self.landed.get(stage, 0), step)

    @property
    def applied(self) -> int:
        """The largest version that is known to be complete on all shards: there may be a newer one."""
        by_workers = min(self.landed.get(stage, 0) for stage in range(self.num_stages))
        return max(by_workers, min(self.steps.get(("server", shard), 0) for shard in range(self.num_servers)))

    def lose(self, role: str, index: int) -> None:
        """The process has ended; a successor will register, and end anew."""
        if role == "worker":
            self._finished.pop(index, None)
        self.beats.pop((role, index), None)
        self.steps.pop((role, index), None)

    def locate_stage(self, worker: int) -> str | None:
        """The same of a stage that serves the one before it."""
        return self.stages.get(worker) if ("worker", worker) in self.beats else None

    def locate(self, shard: int) -> ServerAddress | None:
        """Where the server of a shard is; None before it has registered, and between two incarnations."""
        return self.servers.get(shard) if ("server", shard) in self.beats else None

    def _check_versions(self, role: str, index: int, machine: Machine) -> None:
        for place, other in self.machines.items():
            for name, version in other.versions.items():
                if machine.versions.get(name) != version:
                    who = f"{self._name(role, index)} on {machine.host} has {name} {machine.versions.get(name)}"
                    text = f"{who}, {self._name(*place)} on {other.host} has {version}: install the same {name} on all hosts"
                    self.failure = self.failure or Failure(index if role == "worker" else None, ModelMismatch.__name__, text, "")
                    raise ModelMismatch(text)

    def on_host(self, role: str, index: int) -> str:
        """Completes a sentence about a process of a run on several hosts, for example " on node-7"; else empty."""
        hosts = {machine.host for machine in self.machines.values()} | ({self.home} if self.home else set())
        several = len(hosts) > 1
        return f" on {self.machines[role, index].host}" if several and (role, index) in self.machines else ""

    @property
    def has_all_servers(self) -> bool:
        return len(self.servers) == self.num_servers

    def check_current(self, role: str, index: int, incarnation: int) -> None:
        """Raises Fenced for an incarnation that is not the newest."""
        if self.incarnations.get((role, index)) != incarnation:
            raise Fenced(f"{role} {index} incarnation {incarnation} is not the newest, {self.incarnations.get((role, index), 0)}")

    def report_epoch(self, worker: int, sums: EpochSums) -> Epoch | None:
        """Takes a worker's report, once; the epoch's sums when it is the last one. A repeated report changes nothing."""
        for version, reports in self._reports.items():
            if version != sums.version and worker in reports and len(reports) < self.num_members:
                raise MalformedFrame(
                    f"{self.name(worker)} reports version {sums.version} while others are awaited for its report of version {version}"
                )
        reports = self._reports.setdefault(sums.version, {})
        is_new = worker not in reports
        reports.setdefault(worker, sums)
        self._check_left()
        if not is_new or len(reports) < self.num_members:
            return None
        epoch = self._epoch(sums.version)
        reports.update({worker: EpochSums(sums.version, {}, {}) for worker in reports})  # who has reported is kept, what is not
        return epoch

    def _epoch(self, version: int) -> Epoch:
        """Adds the validation parts in rank order; where ranks have stages, the last ones bring sums."""
        reports = [self._reports[version][worker] for worker in range(self.num_members)]
        names = {name: None for report in reports for name in report.validation}
        validation = {name: sum(report.validation.get(name, 0.0) for report in reports) for name in names}
        return Epoch(version, reports[self.num_stages - 1].training, validation)

    def finish(self, worker: int, version: int) -> None:
        """The worker has landed `version`, the last one."""
        self._finished[worker] = version
        self._check_left()

    def _check_left(self) -> None:
        """A worker that has left its loop will not report any more: whoever waits for it would wait for ever."""
        for at, reports in self._reports.items():
            for worker, version in self._finished.items():
                if worker not in reports:
                    self._fail_report(worker, f"left its loop at version {version}", at)

    def exchanges(self, worker: int, step: int) -> None:
        """The worker is past version `step`: others that wait for it there, or have ended there, would wait for ever."""
        self._exchanging = max(self._exchanging, step)
        for version, reports in self._reports.items():
            if version <= step and worker not in reports and len(reports) < self.num_members:
                self._fail_report(worker, f"pushes step {step}", version)
        for other, version in self._finished.items():
            if version <= step:
                left, goes_on = self.name(other), self.name(worker)
                self._fail(worker, f"{left} left its loop at version {version}, {goes_on} goes on: end all together, when ctx.report says so")

    def is_past(self, version: int) -> bool:
        """Whether a rank pushes a step from `version` on: whatever was to be reported there has been."""
        return self._exchanging >= version

    def _fail_report(self, worker: int, what: str, version: int) -> None:
        others = ", ".join(self.name(other).removeprefix("rank ") for other in sorted(self._reports[version]))
        self._fail(worker, f"{self.name(worker)} {what}, rank {others} waits in ctx.report at version {version}: every rank must call it")

    def _fail(self, worker: int, error: str) -> None:
        self.fail(Failure(worker, "ConfigError", error, ""))

    def has_finished(self, worker: int) -> bool:
        return worker in self._finished

    @property
    def final_version(self) -> int | None:
        """The last version, once every worker has landed it."""
        return min(self._finished.values()) if len(self._finished) == self.num_members else None

    def fail(self, failure: Failure) -> None:
        """Records why a member cannot go on; only the first counts, the others follow from it. On several hosts its own is named."""
        if self.failure is None:
            named = failure.worker is None or self.name(failure.worker) in failure.error
            where = "" if named or failure.worker is None else self.on_host("worker", failure.worker)
            self.failure = replace(failure, error=f"{self._name('worker', failure.worker or 0)}{where}: {failure.error}") if where else failure

    def _name(self, role: str, index: int) -> str:
        return self.name(index) if role == "worker" else f"{role} {index}"
