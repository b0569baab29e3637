"""Who may call what: roles, and the table of methods. Pure; what is not in the table is nobody's."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import DecodeError

from protos import pserver_pb2 as pb
from ps.errors import Forbidden, MalformedFrame

Kind = Literal["driver", "server", "member", "reader"]
_SCHEME = "pserver:"


@dataclass(frozen=True)
class Role:
    """What a process is in the run."""

    kind: Kind
    index: int = 0
    """Shard of a server, rank of a member."""
    stage: int = 0
    """Of a member."""

    def __str__(self) -> str:
        """As in tokens and certificates: "driver", "server-1", "member-3.0", "reader"."""
        if self.kind == "member":
            return f"member-{self.index}.{self.stage}"
        return f"server-{self.index}" if self.kind == "server" else self.kind

    @property
    def serves(self) -> bool:
        """Whether others call it."""
        return self.kind in ("driver", "server") or self.stage > 0

    @property
    def host_name(self) -> str:
        """The name in the certificate of a process that serves, whatever its address."""
        return f"{self}.pserver"

    @property
    def uri(self) -> str:
        """The role in a certificate's alternative names."""
        return f"{_SCHEME}{self}"


def member_name(number: int, num_stages: int) -> str:
    """For people: the member whose number is rank * num_stages + stage."""
    rank, stage = divmod(number, num_stages)
    return f"rank {rank}" if num_stages == 1 else f"rank {rank} stage {stage}"


DRIVER = Role("driver")
READER = Role("reader")


def parse_role(text: str) -> Role | None:
    """The inverse of `str(role)`; None for any other text."""
    if text in ("driver", "reader"):
        return DRIVER if text == "driver" else READER
    if found := re.fullmatch(r"server-(0|[1-9][0-9]{0,8})", text, re.ASCII):
        return Role("server", int(found[1]))
    if found := re.fullmatch(r"member-(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})", text, re.ASCII):
        return Role("member", int(found[1]), int(found[2]))
    return None


def role_of_names(names: Iterable[bytes]) -> Role | None:
    """The role that a certificate's alternative names give; None unless it is exactly one."""
    found = [name.decode(errors="replace").removeprefix(_SCHEME) for name in names if name.startswith(_SCHEME.encode())]
    return parse_role(found[0]) if len(found) == 1 else None


@dataclass(frozen=True)
class Access:
    """Who may call a method."""

    kinds: frozenset[Kind]
    claim: Callable[[Any], Role | None] | None = None
    """As whom a request acts, which must be the caller; None: as nobody."""
    streams: bool = False
    """The member stands in the call's metadata instead."""


def _of_member(member: pb.Member) -> Role:
    return Role("member", member.rank, member.stage)


def _of_process(request: Any) -> Role | None:
    """The sender of a message with `role` and `index`; one of neither role is the servicer's to refuse."""
    if request.role == pb.SERVER:
        return Role("server", request.index)
    return Role("member", request.index, request.stage) if request.role == pb.WORKER else None


def _of_pull(request: pb.PullRequest) -> Role | None:
    return _of_member(request.member) if request.HasField("member") else None


def _sender(request: Any) -> Role:
    return _of_member(request.member)


_ALL: frozenset[Kind] = frozenset(("driver", "server", "member", "reader"))
_PROCESSES: frozenset[Kind] = frozenset(("server", "member"))
_MEMBER: frozenset[Kind] = frozenset(("member",))
_DRIVER: frozenset[Kind] = frozenset(("driver",))
_READERS: frozenset[Kind] = frozenset(("driver", "member", "reader"))

ACCESS: Mapping[str, Access] = {
    "/pserver.Shard/Join": Access(_MEMBER, _sender),
    "/pserver.Shard/Init": Access(_MEMBER, streams=True),
    "/pserver.Shard/Steps": Access(_MEMBER, streams=True),
    "/pserver.Shard/Pull": Access(_READERS, _of_pull),
    "/pserver.Shard/Describe": Access(_READERS),
    "/pserver.Shard/Decide": Access(_DRIVER),
    "/pserver.Shard/Snapshot": Access(_DRIVER),
    "/pserver.Shard/Restore": Access(_DRIVER),
    "/pserver.Shard/Stop": Access(_DRIVER),
    "/pserver.Stages/Link": Access(_MEMBER, streams=True),
    "/pserver.Control/Register": Access(_PROCESSES, _of_process),
    "/pserver.Control/Heartbeat": Access(_PROCESSES, _of_process),
    "/pserver.Control/Report": Access(_MEMBER, _sender),
    "/pserver.Control/Saved": Access(_PROCESSES, _of_process),
    "/pserver.Control/Deposit": Access(_PROCESSES, _of_process),
    "/pserver.Control/Withdraw": Access(_MEMBER, _sender),
    "/pserver.Control/Locate": Access(_READERS),
    "/pserver.Control/Inspect": Access(frozenset(("driver", "reader"))),
    "/grpc.health.v1.Health/Check": Access(_ALL),
    "/grpc.health.v1.Health/Watch": Access(_ALL),
    "/grpc.health.v1.Health/List": Access(frozenset()),
}
"""By the method's full name."""


def check_role(method: str, role: Role, member: bytes | None) -> None:
    """Raises Forbidden unless `role` may call `method`; `member` is the serialized Member of a stream's metadata."""
    access = ACCESS.get(method)
    if access is None or role.kind not in access.kinds:
        raise Forbidden(f"a {role.kind} may not call {method}")
    if access.streams:
        _check_same(role, _of_member(member_from(member)))


def check_claim(method: str, role: Role, request: Any) -> None:
    """Raises Forbidden if the request acts as somebody else than its sender."""
    access = ACCESS[method]
    claimed = access.claim(request) if access.claim else None
    if claimed is not None:
        _check_same(role, claimed)


def member_from(data: bytes | None) -> pb.Member:
    """The member of a stream's metadata. Raises MalformedFrame."""
    if data is None:
        raise MalformedFrame("the call carries no pserver-member-bin")
    try:
        member = pb.Member.FromString(data)
    except DecodeError as error:
        raise MalformedFrame(f"pserver-member-bin cannot be parsed: {error}") from error
    if not member.incarnation:
        raise MalformedFrame("pserver-member-bin carries no incarnation: register and join first")
    return member


def _check_same(role: Role, claimed: Role) -> None:
    if role != claimed:
        raise Forbidden(f"{role} may not act as {claimed}")
