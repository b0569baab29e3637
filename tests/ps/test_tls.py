"""Encrypted runs on loopback: who has no certificate of the run's authority gets nowhere, and a role is what its certificate says."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from torch import nn

from protos import pserver_pb2 as pb
from ps import certificates
from ps.certificates import Authority
from ps.config import CommConfig, ServerSettings, from_json, to_json
from ps.control_client import ControlClient
from ps.credentials import Credentials, Tls, token_of
from ps.errors import Forbidden, PserverError, Unreachable
from ps.roles import DRIVER, READER, Role, role_of_names
from ps.server import build_server, environment
from ps.transport.rpc import Peer
from tests.ps.cluster import TIMEOUTS, TOKEN, Cluster, Member, cluster, exchange, in_threads, start
from tests.ps.driver import Driver

RUN = "encrypted"
OVER_GRPC = CommConfig(shared_memory=False)
AUTHORITY, ANOTHER = Authority(), Authority()
SERVER, MEMBER = Role("server", 0), Role("member", 0)
JOIN, STOP = ("Join", pb.JoinRequest(), pb.JoinReply), ("Stop", pb.StopRequest(), pb.StopReply)


@pytest.fixture(scope="module")
def servers() -> Iterator[Cluster]:
    with cluster(1, 1, authority=AUTHORITY) as made:
        yield made


def expired(role: Role) -> Tls:
    """Of the right authority, until twelve hours ago."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "VALID_DAYS", -0.5)
        return AUTHORITY.issue(role)


@contextmanager
def peer_of(servers: Cluster, tls: Tls | None, *, token: str | None = None, role: Role = SERVER) -> Iterator[Peer]:
    credentials = Credentials(run_id=servers.settings.run_id, token=token, tls=tls)
    peer = Peer(role, servers.addresses[0].control, credentials, TIMEOUTS)
    try:
        yield peer
    finally:
        peer.close()


def trained(authority: Authority | None) -> str:
    with cluster(2, 2, comm=OVER_GRPC, authority=authority) as made:
        members = [made.member(rank, model()) for rank in range(2)]
        in_threads([lambda m=m: start(m) for m in members])
        for step in range(3):
            in_threads([lambda m=m, t=step: contribute(m, t) for m in members])
        return made.sha256(3)


def model() -> nn.Module:
    net = nn.Linear(33, 77)
    for i, parameter in enumerate(net.parameters()):
        nn.init.constant_(parameter, 0.1 * (i + 1))
    return net


def contribute(member: Member, step: int) -> None:
    member.bound.gradients[:] = 0
    member.bound.gradients.view("float32")[::3] = 0.01 * (member.rank + step + 1)
    exchange(member, step, 1.0)


def test_encrypted_runs_give_the_bits_of_plain_ones() -> None:
    assert trained(Authority()) == trained(None)


@pytest.mark.parametrize(
    "tls",
    [None, ANOTHER.issue(MEMBER), ANOTHER.issue(DRIVER), expired(MEMBER)],
    ids=["no certificate", "another authority", "another authority's driver", "expired"],
)
def test_who_has_no_certificate_of_the_run_gets_no_connection(servers: Cluster, tls: Tls | None) -> None:
    if tls:  # it trusts the server, and is still not trusted
        tls = Tls(authority=AUTHORITY.issue(MEMBER).authority, certificate=tls.certificate, key=tls.key)
    with peer_of(servers, tls, token=token_of(TOKEN, DRIVER)) as peer, pytest.raises(Unreachable):
        peer.call("Shard", "Describe", pb.DescribeRequest(), pb.DescribeReply, timeout_s=3.0)


def test_a_client_without_a_certificate_of_its_own_is_refused(servers: Cluster) -> None:
    """It encrypts and knows the server, but does not say who it is."""
    trusts = grpc.ssl_channel_credentials(AUTHORITY.issue(MEMBER).authority.encode())
    with grpc.secure_channel(servers.addresses[0].control, trusts, options=[("grpc.ssl_target_name_override", SERVER.host_name)]) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/pserver.Shard/Describe")(b"", timeout=3)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "tls",
    [ANOTHER.issue(SERVER), AUTHORITY.issue(Role("server", 1)), AUTHORITY.issue(DRIVER), AUTHORITY.issue(MEMBER), expired(SERVER)],
    ids=["another authority", "another server", "the driver", "a member", "expired"],
)
def test_a_server_is_only_what_its_own_certificate_says(tls: Tls) -> None:
    """A client of server 0 is not taken in by anybody else who listens in its place."""
    settings = ServerSettings(run_id="impostor", tls=tls, shard=0, num_servers=2, num_workers=1)
    with cluster(1, 1, authority=AUTHORITY) as made:
        made.servers[0].stop(0)
        made.servers[0] = build_server(settings)
        with peer_of(made, AUTHORITY.issue(MEMBER)) as peer, pytest.raises(Unreachable):
            peer.call("Shard", "Describe", pb.DescribeRequest(), pb.DescribeReply, timeout_s=3.0)


@pytest.mark.parametrize("role", [READER, MEMBER, SERVER], ids=str)
def test_the_role_is_the_certificates_whatever_the_token_says(servers: Cluster, role: Role) -> None:
    refusal = pytest.raises(Forbidden, match=rf"a {role.kind} may not call /pserver.Shard/Stop")
    with peer_of(servers, AUTHORITY.issue(role), token=token_of(TOKEN, DRIVER)) as peer, refusal:
        peer.call("Shard", *STOP)


def test_a_member_joins_and_streams_only_as_itself(servers: Cluster) -> None:
    other = pb.Member(rank=1, incarnation=1)
    with peer_of(servers, AUTHORITY.issue(MEMBER)) as peer, pytest.raises(Forbidden, match=r"member-0.0 may not act as member-1.0"):
        peer.call("Shard", "Join", pb.JoinRequest(member=other), pb.JoinReply)
    credentials = Credentials(run_id=servers.settings.run_id, tls=AUTHORITY.issue(MEMBER))
    data = Peer(SERVER, servers.addresses[0].data, credentials, TIMEOUTS)
    metadata = (("pserver-run", credentials.run_id), ("pserver-member-bin", other.SerializeToString()))
    try:
        stream = data.open_stream("Steps", iter(()), metadata)
        with pytest.raises(grpc.RpcError, match=r"member-0.0 may not act as member-1.0"):
            list(stream)
        with pytest.raises(Forbidden, match=r"member-0.0 may not act as member-1.0"):
            data.send_frames("Init", iter(()), pb.InitReply, metadata, timeout_s=5)
        with pytest.raises(Forbidden, match=r"member-0.0 may not act as member-1.0"):
            list(data.receive_frames("Pull", pb.PullRequest(member=other)))
    finally:
        data.close()


def test_another_runs_id_is_refused_behind_a_good_certificate(servers: Cluster) -> None:
    with peer_of(servers, AUTHORITY.issue(MEMBER)) as peer:
        peer._metadata = (("pserver-run", "other"),)
        with pytest.raises(PserverError, match="belongs to run 'other'"):
            peer.call("Shard", *JOIN)


def test_a_certificate_without_a_role_is_nobodys() -> None:
    assert role_of_names([b"server-0.pserver"]) is None
    assert role_of_names([b"pserver:member-0.0", b"pserver:driver"]) is None
    assert role_of_names([b"pserver:root"]) is None
    assert role_of_names([b"pserver:driver", b"driver.pserver"]) == DRIVER


def test_only_processes_that_serve_have_certificates_for_it() -> None:
    for role in (DRIVER, SERVER, MEMBER, READER):
        certificate = x509.load_pem_x509_certificate(AUTHORITY.issue(role).certificate.encode())
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
        assert (ExtendedKeyUsageOID.SERVER_AUTH in purposes) == bool(names) == role.serves
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_driver_is_called_with_certificates_too() -> None:
    driver = Driver(RUN, authority=AUTHORITY)
    try:
        mine = Peer(DRIVER, f"127.0.0.1:{driver.port}", Credentials(run_id=RUN, tls=AUTHORITY.issue(Role("member", 1))), TIMEOUTS)
        client = ControlClient(mine, "worker", 1)
        assert len(client.register(environment(1))) == 1
        with pytest.raises(Forbidden, match=r"member-1.0 may not act as member-0.0"):
            mine.call("Control", "Report", pb.ReportRequest(member=pb.Member(rank=0)), pb.ReportReply)
        client.close()
    finally:
        driver.close()


def test_settings_keep_a_certificate_and_show_no_key() -> None:
    settings = ServerSettings(run_id="r", tls=AUTHORITY.issue(SERVER), shard=0, num_servers=1, num_workers=1)
    assert from_json(ServerSettings, to_json(settings)) == settings
    for value in (settings, settings.tls, settings.credentials, ServerSettings(run_id="r", secret="hidden!", shard=0, num_servers=1, num_workers=1)):
        assert "PRIVATE KEY" not in repr(value) and "hidden!" not in repr(value)


@pytest.mark.parametrize("proof", [{}, {"secret": ""}, {"secret": "s", "tls": AUTHORITY.issue(SERVER)}], ids=["none", "empty", "both"])
def test_a_server_wants_exactly_one_way_to_know_its_callers(proof: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="exactly one of secret"):
        ServerSettings(run_id="r", shard=0, num_servers=1, num_workers=1, **proof)  # type: ignore[arg-type]
