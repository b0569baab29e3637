"""What the driver knows and decides: who has registered, what has been reported, when the run ends. Pure."""

from dataclasses import dataclass, field

from ps.errors import Fenced, MalformedFrame


@dataclass(frozen=True)
class ServerAddress:
    """Where a shard is served."""

    shard: int
    data: str
    control: str


@dataclass(frozen=True)
class EpochSums:
    """One rank's report of an epoch."""

    version: int
    training: dict[str, float]
    """The versioned sums of shard 0, the same on every rank."""
    validation: dict[str, float]
    """This rank's part."""


@dataclass(frozen=True)
class Epoch:
    """Exact sums of an epoch over all ranks."""

    version: int
    training: dict[str, float]
    validation: dict[str, float]


@dataclass
class Failure:
    """Why a member cannot go on."""

    rank: int
    error_type: str
    error: str
    traceback: str


@dataclass
class Control:
    """Membership, sums and decisions. Not thread-safe: the service locks."""

    num_workers: int
    num_servers: int
    servers: dict[int, ServerAddress] = field(default_factory=dict)
    incarnations: dict[tuple[str, int], int] = field(default_factory=dict)
    """Newest incarnation by role ("server", "worker") and index."""
    failure: Failure | None = None
    """The first one."""
    _reports: dict[int, dict[int, EpochSums]] = field(default_factory=dict)
    _finished: dict[int, int] = field(default_factory=dict)

    def register(self, role: str, index: int, address: ServerAddress | None = None) -> int:
        """Issues the next incarnation. Raises MalformedFrame for an index that the run does not have."""
        count = self.num_servers if role == "server" else self.num_workers
        if not 0 <= index < count:
            raise MalformedFrame(f"{role} {index} registers in a run of {count}")
        if address:
            self.servers[index] = address
        self.incarnations[role, index] = self.incarnations.get((role, index), 0) + 1
        return self.incarnations[role, index]

    @property
    def has_all_servers(self) -> bool:
        return len(self.servers) == self.num_servers

    def check_current(self, role: str, index: int, incarnation: int) -> None:
        """Raises Fenced for an incarnation that is not the newest."""
        if self.incarnations.get((role, index)) != incarnation:
            raise Fenced(f"{role} {index} incarnation {incarnation} is not the newest, {self.incarnations.get((role, index), 0)}")

    def report_epoch(self, rank: int, sums: EpochSums) -> Epoch | None:
        """Takes a rank's report, once; the epoch's sums when it is the last one. A repeated report changes nothing."""
        reports = self._reports.setdefault(sums.version, {})
        is_new = rank not in reports
        reports.setdefault(rank, sums)
        return self._epoch(sums.version) if is_new and len(reports) == self.num_workers else None

    def is_reported(self, version: int) -> bool:
        """Whether every rank has reported the epoch that ends at `version`."""
        return len(self._reports.get(version, {})) == self.num_workers

    def _epoch(self, version: int) -> Epoch:
        """Adds the validation parts in rank order."""
        reports = [self._reports[version][rank] for rank in range(self.num_workers)]
        names = {name: None for report in reports for name in report.validation}
        validation = {name: sum(report.validation.get(name, 0.0) for report in reports) for name in names}
        return Epoch(version, reports[0].training, validation)

    def finish(self, rank: int, version: int) -> None:
        """The rank has landed `version`, the last one."""
        self._finished[rank] = version

    def has_finished(self, rank: int) -> bool:
        return rank in self._finished

    @property
    def final_version(self) -> int | None:
        """The last version, once every rank has landed it."""
        return min(self._finished.values()) if len(self._finished) == self.num_workers else None

    def fail(self, failure: Failure) -> None:
        """Records why a member cannot go on; only the first counts, the others follow from it."""
        self.failure = self.failure or failure
