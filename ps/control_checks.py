"""What processes tell the driver, checked before anything of it is kept. Pure."""

from protos import pserver_pb2 as pb
from ps.errors import MalformedFrame
from ps.store import EMPTY

MAX_TEXT = 1024
"""Characters of a name, an address or a sentence."""
MAX_ERROR = 1 << 14
MAX_TRACEBACK = 1 << 18
"""Characters of what a member leaves behind, and of the stacks of a process; longer ones are cut by their sender."""
MAX_STEP = 1 << 53
MAX_SUMS = 1 << 12
"""Sums and metrics of a report."""
_ROW_CHARACTERS, _SHARD_CHARACTERS = 4096, 1024
"""Of a ledger row, and more for each shard it speaks of: several times as many as the longest have."""


def check_register(request: pb.RegisterRequest) -> None:
    """Raises MalformedFrame."""
    environment = request.environment
    texts = (environment.host, environment.python, environment.torch, environment.pserver, environment.cpu_capability)
    _check_texts(MAX_TEXT, *texts, request.data_address, request.control_address)
    if not all(map(str.isprintable, texts)):
        raise MalformedFrame("an environment that a terminal would obey")
    addresses = (request.data_address, request.control_address) if request.role == pb.SERVER else filter(None, [request.data_address])
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            name = "server" if request.role == pb.SERVER else "rank"
            raise MalformedFrame(f"{name} {request.index} listens at {address!r}, which is no HOST:PORT")


def check_heartbeat(request: pb.HeartbeatRequest, num_workers: int, num_servers: int) -> None:
    """Raises MalformedFrame."""
    if request.role != pb.SERVER or request.step != EMPTY:
        _check_step(request.step)
    _check_texts(_ROW_CHARACTERS + num_servers * _SHARD_CHARACTERS, *request.rows)
    _check_texts(MAX_TEXT, request.doing)
    _check_texts(MAX_TRACEBACK, request.stacks)
    if len(request.waits_for) > num_workers:
        raise MalformedFrame(f"a server waits for {len(request.waits_for)} ranks in a run of {num_workers}")


def check_report(request: pb.ReportRequest) -> None:
    """Raises MalformedFrame."""
    _check_step(request.version)
    if request.event not in (pb.EPOCH, pb.FINISHED, pb.FAILED):
        raise MalformedFrame(f"rank {request.member.rank} reports the event {request.event}: is its version of pserver the same?")
    if (count := max(len(request.validation_names), len(request.training_names))) > MAX_SUMS:
        raise MalformedFrame(f"rank {request.member.rank} reports {count} sums, at most {MAX_SUMS} are taken")
    _check_texts(MAX_TEXT, request.error_type, *request.validation_names, *request.training_names)
    _check_texts(MAX_ERROR, request.error)
    _check_texts(MAX_TRACEBACK, request.traceback)
    for names, sums in ((request.training_names, request.training_sums), (request.validation_names, request.validation_sums)):
        if len(names) != len(sums):
            raise MalformedFrame(f"rank {request.member.rank} reports {len(sums)} sums under {len(names)} names")
    if missing := {_counts(name) for name in request.validation_names} - {*request.validation_names, ""}:
        raise MalformedFrame(f"rank {request.member.rank} reports means without {min(missing)!r}")


def _counts(name: str) -> str:
    """The sum that another one is divided by; empty if by none, or by one that may be missing."""
    kind, _, rest = name.partition(".")
    return {"metric": "samples", "user": f"weight.{rest}"}.get(kind, "")


def check_saved(request: pb.SavedRequest) -> None:
    """Raises MalformedFrame."""
    _check_step(request.version)
    _check_texts(MAX_TEXT, request.error)


def check_deposit(request: pb.DepositRequest) -> None:
    """Raises MalformedFrame."""
    _check_step(request.version)
    if not request.data:
        raise MalformedFrame("a part of a checkpoint without bytes")


def printable(text: str) -> str:
    """The text as a terminal may show it: escapes of a process are none of the driver's."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


def _check_step(step: int) -> None:
    if not -1 <= step < MAX_STEP:
        raise MalformedFrame(f"a step or version {step}")


def _check_texts(limit: int, *texts: str) -> None:
    longest = max(map(len, texts), default=0)
    if longest > limit:
        raise MalformedFrame(f"a text of {longest} characters, at most {limit} are taken")
