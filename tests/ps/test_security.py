"""Every method of every service wants the run's id and a role that may call it; methods are enumerated from the descriptors."""

import time
from collections.abc import Iterator
from concurrent import futures
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from protos import pserver_pb2 as pb
from ps.control import Control
from ps.control_service import ControlServicer
from ps.credentials import Credentials, new_secret, role_of_token, token_of
from ps.errors import ConfigError
from ps.roles import ACCESS, DRIVER, READER, Role, parse_role
from ps.security import CALLS_AT_ONCE, RunGuard, call_metadata, check_plaintext
from tests.ps.cluster import TOKEN, cluster

SERVICES = [*pb.DESCRIPTOR.services_by_name.values(), *health_pb2.DESCRIPTOR.services_by_name.values()]
METHODS = [f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods]
ON_DATA_PORT = {"/pserver.Shard/Init", "/pserver.Shard/Restore", "/pserver.Shard/Steps", "/pserver.Shard/Pull"}
ROLES = [DRIVER, READER, Role("server", 0), Role("member", 0)]
Channels = dict[str, Any]

MAY_CALL = {
    "/pserver.Shard/Join": "member",
    "/pserver.Shard/Init": "member",
    "/pserver.Shard/Steps": "member",
    "/pserver.Shard/Pull": "driver member reader",
    "/pserver.Shard/Describe": "driver member reader",
    "/pserver.Shard/Decide": "driver",
    "/pserver.Shard/Snapshot": "driver",
    "/pserver.Shard/Restore": "driver",
    "/pserver.Shard/Stop": "driver",
    "/pserver.Stages/Link": "member",
    "/pserver.Control/Register": "member server",
    "/pserver.Control/Heartbeat": "member server",
    "/pserver.Control/Report": "member",
    "/pserver.Control/Saved": "member server",
    "/pserver.Control/Deposit": "member server",
    "/pserver.Control/Withdraw": "member",
    "/pserver.Control/Locate": "driver member reader",
    "/pserver.Control/Inspect": "driver reader",
    "/grpc.health.v1.Health/Check": "driver member reader server",
    "/grpc.health.v1.Health/Watch": "driver member reader server",
    "/grpc.health.v1.Health/List": "",
}
"""Written down a second time, so that who may call what does not change by accident."""


def as_role(role: Role, secret: str = TOKEN, run_id: str = "RUN") -> tuple[tuple[str, str | bytes], ...]:
    member = pb.Member(rank=role.index, stage=role.stage, incarnation=1) if role.kind == "member" else None
    return call_metadata(Credentials(run_id=run_id, token=token_of(secret, role)), member)


MEMBER = as_role(Role("member", 0))
WRONG = {
    "no token": (MEMBER[:1], grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated: the call does not carry a token of this run"),
    "a token of another run": (as_role(Role("member", 0), "u" * 64), grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated: "),
    "the secret itself": ((MEMBER[0], ("pserver-token", TOKEN)), grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated: "),
    "a role without proof": ((MEMBER[0], ("pserver-token", "driver:")), grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated: "),
    "another run's id": (
        as_role(Role("member", 0), run_id="other"),
        grpc.StatusCode.FAILED_PRECONDITION,
        "ForeignRun: the call belongs to run 'other'",
    ),
    "no run": (MEMBER[1:], grpc.StatusCode.FAILED_PRECONDITION, "ForeignRun: the call belongs to run None"),
}


@pytest.fixture(scope="module")
def channels() -> Iterator[Channels]:
    """A channel to whoever serves each method."""
    servicer = ControlServicer(Control(1, 1), 1, on_epoch=lambda epoch: False, on_rows=lambda sender, rows: None, on_step=lambda rank, step: None)
    with cluster(1, 1) as servers:
        driver = grpc.server(futures.ThreadPoolExecutor(2), interceptors=[RunGuard(servers.settings.run_id, TOKEN)])
        link = grpc.stream_stream_rpc_method_handler(lambda requests, context: iter(()))
        driver.add_generic_rpc_handlers((servicer.handlers(), grpc.method_handlers_generic_handler("pserver.Stages", {"Link": link})))
        port = driver.add_insecure_port("127.0.0.1:0")
        driver.start()
        data, control, theirs = (grpc.insecure_channel(a) for a in (servers.addresses[0].data, servers.addresses[0].control, f"127.0.0.1:{port}"))
        made = {m: theirs if ".Control/" in m or ".Stages/" in m else data if m in ON_DATA_PORT else control for m in METHODS}
        yield made | {"run": servers.settings.run_id}
        for channel in (data, control, theirs):
            channel.close()
        servicer.stop()
        driver.stop(0).wait()


def call(channels: Channels, method: str, metadata: Any, message: bytes = b"") -> grpc.RpcError | None:
    """Calls with one message; how it ended."""
    channel = channels.get(method, channels["/pserver.Shard/Join"])
    entries = [(key, channels["run"] if value == "RUN" else value) for key, value in metadata]
    try:
        for _ in channel.stream_stream(method)(iter([message]), metadata=entries, timeout=5):
            break
    except grpc.RpcError as error:
        return error
    return None


def test_the_table_has_every_method_of_every_service() -> None:
    assert set(ACCESS) == set(METHODS) == set(MAY_CALL)
    assert {"/pserver.Shard/Steps", "/pserver.Control/Register", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"} < set(METHODS)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("method", [*METHODS, "/pserver.Shard/None"])
def test_a_call_without_proof_is_refused(method: str, wrong: str, channels: Channels) -> None:
    metadata, code, details = WRONG[wrong]
    error = call(channels, method, metadata)
    assert error is not None and error.code() is code and error.details().startswith(details)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.kind)
@pytest.mark.parametrize("method", [method for method in METHODS if not method.endswith("/Stop")])
def test_a_role_reaches_the_methods_that_it_may_call_and_no_other(method: str, role: Role, channels: Channels) -> None:
    error = call(channels, method, as_role(role))
    if role.kind in MAY_CALL[method].split():
        refusals = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED)
        assert error is None or error.code() not in refusals
    else:
        assert error is not None and error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert error.details() == f"Forbidden: a {role.kind} may not call {method}"


@pytest.mark.parametrize("role", [READER, Role("server", 0), Role("member", 0)], ids=lambda role: role.kind)
def test_only_the_driver_stops_a_server(role: Role, channels: Channels) -> None:
    error = call(channels, "/pserver.Shard/Stop", as_role(role))
    assert error is not None and error.code() is grpc.StatusCode.PERMISSION_DENIED


def test_what_is_not_in_the_table_is_nobodys(channels: Channels) -> None:
    error = call(channels, "/pserver.Shard/None", as_role(DRIVER))
    assert error is not None and error.code() is grpc.StatusCode.PERMISSION_DENIED


OTHER = pb.Member(rank=1, incarnation=1)
AS_ANOTHER = {
    "/pserver.Shard/Join": pb.JoinRequest(member=OTHER),
    "/pserver.Shard/Pull": pb.PullRequest(member=OTHER),
    "/pserver.Control/Register": pb.RegisterRequest(role=pb.WORKER, index=1),
    "/pserver.Control/Heartbeat": pb.HeartbeatRequest(role=pb.SERVER, index=0),
    "/pserver.Control/Report": pb.ReportRequest(member=OTHER),
    "/pserver.Control/Saved": pb.SavedRequest(role=pb.SERVER, index=0),
    "/pserver.Control/Deposit": pb.DepositRequest(role=pb.WORKER, index=1),
    "/pserver.Control/Withdraw": pb.WithdrawRequest(member=OTHER),
}


@pytest.mark.parametrize("method", AS_ANOTHER)
def test_a_member_acts_only_as_itself(method: str, channels: Channels) -> None:
    error = call(channels, method, as_role(Role("member", 0)), AS_ANOTHER[method].SerializeToString())
    assert error is not None and error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.details().startswith("Forbidden: member-0.0 may not act as ")


@pytest.mark.parametrize("member", [OTHER, pb.Member(rank=0, stage=1, incarnation=1)], ids=["rank", "stage"])
@pytest.mark.parametrize("method", ["/pserver.Shard/Init", "/pserver.Shard/Steps", "/pserver.Stages/Link"])
def test_a_member_streams_only_as_itself(method: str, member: pb.Member, channels: Channels) -> None:
    metadata = (*MEMBER[:2], ("pserver-member-bin", member.SerializeToString()))
    error = call(channels, method, metadata)
    assert error is not None and error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.details() == f"Forbidden: member-0.0 may not act as member-{member.rank}.{member.stage}"


def test_who_has_a_token_cannot_keep_the_threads_from_the_others(channels: Channels) -> None:
    """A reader watches the health of a server as often as it may, and once more; its calls that have ended count no more."""
    control, metadata = channels["/grpc.health.v1.Health/Watch"], [("pserver-run", channels["run"]), *as_role(READER)[1:]]
    watch = control.unary_stream("/grpc.health.v1.Health/Watch")
    watches = [watch(b"", metadata=metadata, timeout=20) for _ in range(CALLS_AT_ONCE)]
    for one in watches:
        assert next(one)
    error = call(channels, "/grpc.health.v1.Health/Check", as_role(READER))
    assert error is not None and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "Busy: reader has 8 calls in progress here, no more are served at once"
    assert call(channels, "/grpc.health.v1.Health/Check", as_role(DRIVER)) is None
    for one in watches:
        one.cancel()
    deadline = time.monotonic() + 10
    while call(channels, "/grpc.health.v1.Health/Check", as_role(READER)) is not None:
        assert time.monotonic() < deadline


def test_a_member_has_a_few_streams_at_once(channels: Channels) -> None:
    """Inits that bring nothing."""
    channel, metadata = channels["/pserver.Shard/Init"], [(k, channels["run"] if v == "RUN" else v) for k, v in MEMBER[:2]]
    join = pb.JoinRequest(member=pb.Member(incarnation=1, generation=1), steps_per_epoch=1, total_steps=1)
    joined = pb.JoinReply.FromString(channels["/pserver.Shard/Join"].unary_unary("/pserver.Shard/Join")(join.SerializeToString(), metadata=metadata))
    join.member.session = joined.session
    metadata = [*metadata, ("pserver-member-bin", join.member.SerializeToString())]
    silence: SimpleQueue[bytes] = SimpleQueue()
    init = channel.stream_unary("/pserver.Shard/Init")
    calls = [init.future(iter(silence.get, b""), metadata=metadata, timeout=20) for _ in range(CALLS_AT_ONCE + 1)]
    refused = SimpleQueue[Any]()
    for one in calls:
        one.add_done_callback(refused.put)
    assert refused.get(timeout=10).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.empty()
    for _ in calls:
        silence.put(b"")
    assert [refused.get(timeout=10).code() for _ in calls[1:]] == [grpc.StatusCode.OK] * CALLS_AT_ONCE


def test_one_roles_token_is_no_others() -> None:
    roles = [DRIVER, READER, *(Role("server", i) for i in range(3)), *(Role("member", i, s) for i in range(3) for s in range(2))]
    tokens = [token_of(TOKEN, role) for role in roles]
    assert [role_of_token(TOKEN, token) for token in tokens] == roles
    assert [role_of_token("u" * 64, token) for token in tokens] == [None] * len(roles)
    for role, token in zip(roles, tokens, strict=True):
        for other in roles:
            forged = f"{other}:{token.partition(':')[2]}"
            assert (role_of_token(TOKEN, forged) is not None) == (role == other)


@pytest.mark.parametrize(
    "text", ["", "driver-0", "member-1", "member-01.0", "member--1.0", "server-1.0", "server-٣", "reader\n", "member-0.0.0", "Driver"]
)
def test_what_is_no_role_is_none(text: str) -> None:
    assert parse_role(text) is None


def test_secrets_are_long_and_never_the_same() -> None:
    assert len({new_secret() for _ in range(100)}) == 100 and len(new_secret()) == 64


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_plaintext_off_loopback_must_be_allowed(host: str) -> None:
    with pytest.raises(ConfigError, match=r"set security.allow_plaintext = true"):
        check_plaintext(host, allowed=False)
    check_plaintext(host, allowed=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_plaintext_on_loopback_is_no_risk(host: str) -> None:
    check_plaintext(host, allowed=False)


@pytest.mark.parametrize("method", ["/pserver.Shard/Join", "/pserver.Shard/Pull", "/pserver.Control/Report", "/grpc.health.v1.Health/Check"])
def test_what_cannot_be_parsed_is_an_error_of_ours(method: str, channels: Channels, caplog: pytest.LogCaptureFixture) -> None:
    error = call(channels, method, as_role(Role("member", 0)), b"\xff" * 11)
    assert error is not None and error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("MalformedFrame: a message that cannot be parsed: ")
    assert not [record for record in caplog.records if record.exc_info], "no stack is logged for it"
