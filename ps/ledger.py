"""Rows of the ledger: who moved which bytes in a step and where its seconds went."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter

from ps.clocks import ClockOffset
from ps.pacing import Pacing

Count = Annotated[int, Field(ge=0, lt=1 << 53)]
"""What a float holds too: sums of them overflow nowhere."""
_AS_SENT = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


@dataclass(kw_only=True)
class ShardTraffic:
    """What one worker exchanged with one shard in one step."""

    __pydantic_config__: ClassVar = _AS_SENT
    shard: Count
    push_bytes: Count = 0
    """Payload up."""
    pull_bytes: Count = 0
    """Payload down."""
    push_wire_bytes: Count = 0
    """Up on the link since the row before, or since the connection began, as the interface counts it: with headers, and what was sent again."""
    pull_wire_bytes: Count = 0
    """Down, likewise."""
    push_s: float = 0.0
    """Time in which a frame was on its way up: from its place in the stream to its receipt, by the server's clock."""
    pull_s: float = 0.0
    """Time in which an answer was on its way down, from its encoding on."""
    busy_s: float = 0.0
    """Time in which a frame or an answer was on its way."""
    push_from_s: float | None = None
    """Before the end of the step: when the first frame left; None if none has been received."""
    push_to_s: float | None = None
    """Before the end of the step: when the server had the last frame, by our clock."""
    pull_from_s: float | None = None
    """Before the end of the step: when the first answer left; None if none has landed."""
    pull_to_s: float | None = None
    """Before the end of the step: when the last answer had landed."""
    push_in_flight_bytes: float = 0.0
    """Payload that was on its way up, mean from when the first frame left to when the server had the last one; counted in shared memory too."""
    pull_in_flight_bytes: float = 0.0
    """Likewise down, from when the first answer left to when the last one had landed."""
    local: bool = False
    """Exact payload stays in shared memory, or would: the shard is on the worker's host."""
    encode_s: float = 0.0
    """Seconds of all threads together spent on encoding pushes; overlaps with `push_s`, and with compute."""
    wait_s: float = 0.0
    """Of the chunk that landed last: how long it lay complete on our side but waited for other ranks."""


@dataclass(kw_only=True)
class WorkerRow:
    """One step of one worker; the `_s` fields from `data_wait_s` to `other_s` are exclusive spans of its training thread
    and add up to its step; `report_s` comes before it and `validation_s` after."""

    __pydantic_config__: ClassVar = _AS_SENT
    rank: Count
    step: Count
    time_s: float
    """End of the step by the host's clock, seconds since the epoch."""
    clock_offset_s: float | None = None
    """The driver's clock less the host's; None while it is not known."""
    clock_error_s: float | None = None
    """The offset is no further off than that."""
    step_s: float
    """From when all of version `step` had landed to when all of the next one had: its backward, and the next step's forward."""
    data_wait_s: float = 0.0
    forward_s: float = 0.0
    """With the loss. Of an own loop: in the model, or until the first gradient is there where it calls parts of the model."""
    backward_s: float = 0.0
    """Of an own loop: with the loss."""
    bubble_s: float = 0.0
    """Of a stage: waiting for activations, or their gradients, from the stages beside it."""
    compute_cpu_s: float = 0.0
    """Of both: those in which the training thread had a processor."""
    copy_s: float = 0.0
    """Gradients gathered into frames."""
    encode_s: float = 0.0
    """Digests, headers, and whatever else the training thread does for the exchange but wait."""
    send_s: float = 0.0
    """Blocked because the window was full."""
    barrier_wait_s: float = 0.0
    """Everything pushed, waiting for `waits_for`."""
    apply_s: float = 0.0
    """Waiting for the servers to sum, update and encode."""
    receive_s: float = 0.0
    """Waiting for bytes, ours on their way up or the updated ones on their way down."""
    install_s: float = 0.0
    checkpoint_s: float = 0.0
    """What the rank has yet to send copied for a checkpoint of the version that the step makes."""
    ledger_s: float = 0.0
    """On the row before: what the ledger costs the training thread."""
    other_s: float = 0.0
    """The rest of the step: the loop itself."""
    validation_s: float = 0.0
    """After the step, until the report of its version: validation. Of an own loop: whatever it does until `ctx.report`."""
    report_s: float = 0.0
    """Before the step: the report of version `step`, in which all ranks wait for each other and for the driver."""
    exposed_s: float = 0.0
    """Communication not hidden behind compute: what the training thread spends on it or waits for."""
    waits_for: Count | None = None
    """Rank that `barrier_wait_s` waited for; None if for nobody."""
    num_stages: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    """Workers that share the rank's model: `rank` is then the rank times that, plus the stage."""
    micro_batches: Count = 1
    """Parts into which a rank's samples of a step are cut, where they are enough."""
    rejoined: bool = False
    """A process came back in the step: this one, whose first step it is since it was started again, or a server that it joined again."""
    cpu_s: float = 0.0
    """CPU seconds of the whole process since the row before."""
    samples: Count = 0
    loss: float | None = None
    """Mean over the samples; None without any."""
    shards: list[ShardTraffic] = field(default_factory=list)
    link_bytes_per_s: float | None = None
    """Rate the worker's link is shaped to; None if it is not."""
    passed_bytes: Count = 0
    """Sent to the stages beside it in the step: activations and their gradients, headers included."""
    peak_bytes: Count | None = None
    """The most memory that the process has had since it joined, shared memory included; only of stages."""
    cores: float | None = None
    """Processors that the worker may use, its quota counted; only in its first row after it joined."""
    pacing: Pacing | None = None
    """What the worker has measured of its link, and its frames; only in its first row after it joined, if it measured."""

    @property
    def compute_s(self) -> float:
        """Forward and backward."""
        return self.forward_s + self.backward_s


@dataclass(kw_only=True)
class ServerRow:
    """One version of one shard."""

    __pydantic_config__: ClassVar = _AS_SENT
    shard: Count
    step: Count
    """Step whose contributions were applied."""
    time_s: float
    """When the last chunk was applied by the host's clock, seconds since the epoch."""
    clock_offset_s: float | None = None
    """The driver's clock less the host's; None while it is not known."""
    clock_error_s: float | None = None
    """The offset is no further off than that."""
    ingress_bytes: Count = 0
    """Payload received for the step."""
    egress_bytes: Count = 0
    """Payload sent as answers to the step."""
    ingress_s: float = 0.0
    """From the first frame of the step to the last, less waits in which no byte was on its way."""
    decode_s: float = 0.0
    """Thread seconds spent on checks of contributions and on turning them into what can be summed."""
    aggregate_s: float = 0.0
    """Thread seconds spent on sums."""
    apply_s: float = 0.0
    """Thread seconds spent on updates and on encoding answers."""
    work_cpu_s: float = 0.0
    """Of `decode_s`, `aggregate_s` and `apply_s`: those in which the thread had a processor. Much less
    where others want it, or the host has too little."""
    cpu_s: float = 0.0
    """CPU seconds of the whole process since the row before."""
    wait_s: float = 0.0
    """From the first rank complete to the last rank complete."""
    waits_for: Count | None = None
    """Rank that was complete last; None with one rank."""
    first_s: float | None = None
    """Before `time_s`: when the first contribution came; None if none did, as of a version that came before a restart."""
    complete_s: float | None = None
    """Before `time_s`: when the last rank was complete; None as `first_s`."""
    link_bytes_per_s: float | None = None
    """Rate the link is shaped to; None if it is not."""
    passed_bytes: Count = 0
    """Sent to the stages beside it in the step: activations and their gradients, headers included."""
    peak_bytes: Count | None = None
    """The most memory that the process has had since it joined, shared memory included; only of stages."""
    cores: float | None = None
    """Processors that the server may use, its quota counted."""
    diverged: int = 0
    """Frames that came again with other bytes, while the first ones stood (`train.exact = false`)."""
    rank_squares: float | None = None
    """Squared norms of the ranks' gradients on this shard, summed over the ranks; None but for every so many steps."""
    mean_square: float | None = None
    """Squared norm of the step's mean gradient on this shard, in the same steps."""


_KIND = re.compile(r'\{"kind": ?"(worker|server)", ?')
_ROWS: dict[str, TypeAdapter[Any]] = {"worker": TypeAdapter(WorkerRow), "server": TypeAdapter(ServerRow)}


def to_line(row: WorkerRow | ServerRow) -> str:
    """One line of JSON; `kind` tells the two apart."""
    kind = "worker" if isinstance(row, WorkerRow) else "server"
    return f'{{"kind":"{kind}",{_ROWS[kind].dump_json(row)[1:].decode()}'  # a fifth of a millisecond quicker than json's


def from_line(line: str) -> WorkerRow | ServerRow:
    """The row of `to_line`. Raises ValueError for what can be none: another field, type, or number that is not finite."""
    found = _KIND.match(line)
    if not found or "\n" in line or "\r" in line:
        raise ValueError("one line of JSON that begins with its kind")
    row: WorkerRow | ServerRow = _ROWS[found[1]].validate_json("{" + line[found.end() :])
    return row


class RowBuffer:
    """Rows on their way to the driver. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _rows
        self._rows: list[WorkerRow | ServerRow] = []
        self.on_row: Callable[[WorkerRow | ServerRow], None] = lambda row: None
        """Told every row, in the thread that adds it."""
        self.clocks = ClockOffset()
        """The driver's clock against ours; the heart adds to it, every row tells it."""
        self.urgent = threading.Event()
        """Set to have the rows sent at once: an epoch has ended."""

    def add(self, row: WorkerRow | ServerRow) -> None:
        """It is written by whoever takes it, not by the thread that it is of, which changes nothing in it any more."""
        row.clock_offset_s, row.clock_error_s = self.clocks.at(row.time_s)
        self.on_row(row)
        with self._lock:
            self._rows.append(row)

    def take(self) -> list[str]:
        """All rows added since the last call."""
        with self._lock:
            rows, self._rows = self._rows, []
        return [to_line(row) for row in rows]


def aligned(row: WorkerRow | ServerRow) -> WorkerRow | ServerRow:
    """The row with `time_s` by the driver's clock. An offset that may be none is taken for none: processes of one host keep their order."""
    offset_s, error_s = row.clock_offset_s, row.clock_error_s
    if offset_s is None or error_s is None or abs(offset_s) <= error_s:
        return row
    return replace(row, time_s=row.time_s + offset_s)


def covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals sorted by start."""
    total, end = 0.0, float("-inf")
    for first, last in spans:
        total += max(0.0, last - max(first, end))
        end = max(end, last)
    return total
