"""What a stranger is given until it is refused: little, and late if many come."""

import socket
import time

import grpc
import pytest

from benchmarks.peers.flood import DATA, call, frame
from ps import refusals
from ps.security import CALLS_AT_ONCE
from ps.transport import rpc
from tests.ps.cluster import cluster
from tests.ps.strangers import END_STREAM, HEADERS, INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, PING, RESET, SETTINGS, Told, stranger

PORTS = ("data", "control")
WINDOW_BYTES = 65_535
"""HTTP/2's own, before anybody has said anything."""


def told_until_refused(address: str) -> list[Told]:
    """To who has pushed as much as may be on its way without leave."""
    told: list[Told] = []
    with stranger(address) as other:
        other.send(call(1, "/pserver.Shard/Steps") + b"".join(frame(DATA, 0, 1, bytes(size)) for size in (16_384, 16_384, 16_384, 16_383)))
        for one in other.told():
            told.append(one)
            if one.stream == 1 and (one.kind == RESET or (one.kind == HEADERS and one.flags & END_STREAM)):
                return told
    raise AssertionError(f"the connection ends without an answer: {told}")


@pytest.mark.parametrize(("port", "streams"), list(zip(PORTS, (100, 2 * CALLS_AT_ONCE), strict=True)))
def test_a_stranger_may_make_few_calls_and_its_windows_do_not_grow(port: str, streams: int) -> None:
    with cluster(1, 1) as servers:
        told = told_until_refused(getattr(servers.addresses[0], port))
    settings = {name: value for one in told if one.kind == SETTINGS for name, value in one.settings.items()}
    assert settings[MAX_CONCURRENT_STREAMS] == streams
    assert settings.get(INITIAL_WINDOW_SIZE, WINDOW_BYTES) == WINDOW_BYTES
    assert not [one for one in told if one.kind == PING], "the server measures the link, to have more sent"


@pytest.mark.parametrize("port", PORTS)
def test_a_stranger_waits_for_its_refusal_where_more_come_than_are_refused_at_once(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "AT_ONCE", 0)
    monkeypatch.setattr(refusals, "PER_S", 2.0)
    with cluster(1, 1) as servers, grpc.insecure_channel(getattr(servers.addresses[0], port)) as channel:
        grpc.channel_ready_future(channel).result(10)
        started = time.monotonic()
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/pserver.Shard/Describe")(b"", timeout=20)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert time.monotonic() - started >= 0.5


@pytest.mark.parametrize("port", PORTS)
def test_who_says_nothing_is_hung_up_on(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the settings say; pings that are not answered would take 20 s."""
    for options in ("_SERVER", "_STREAMS"):
        quick = [(name, 200 if name == "grpc.server_handshake_timeout_ms" else value) for name, value in getattr(rpc, options)]
        monkeypatch.setattr(rpc, options, quick)
    with cluster(1, 1) as servers:
        host, _, number = getattr(servers.addresses[0], port).rpartition(":")
        started = time.monotonic()
        with socket.create_connection((host, int(number)), timeout=20) as connection:
            while connection.recv(4096):
                pass
        assert time.monotonic() - started < 10.0
