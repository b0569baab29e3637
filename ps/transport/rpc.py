"""gRPC as pserver uses it: options agreed on both ends, methods without generated code, errors as ours."""

from __future__ import annotations

import contextlib
import errno
import math
import socket
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, Protocol

import grpc

from ps.config import Timeouts
from ps.credentials import Credentials, Tls
from ps.errors import ConfigError, Unreachable, from_rpc_error
from ps.roles import Role
from ps.security import CALLS_AT_ONCE, MOST_WAITING, Metadata, RunGuard, call_metadata, is_loopback

MAX_MESSAGE_BYTES = 16 << 20
"""Largest message either end accepts: a frame with its header, or a Join with the digests of 60 GB of parameters."""
_KEEPALIVE_MS = 10_000
HANDSHAKE_MS = 10_000
"""A connection that has not said what it wants by then is closed."""

_COMMON = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
    ("grpc.http2.ping_timeout_ms", _KEEPALIVE_MS),  # of pings that measure the link: while one is on its way there is no keepalive; 60 s by default
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
_SERVER = [
    *_COMMON,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
]
_SMALL_WINDOW = ("grpc.http2.bdp_probe", 0)
"""A connection that sends much is not given megabytes to send."""
_STREAMS = [*_SERVER, ("grpc.max_concurrent_streams", 100)]
"""Of each connection's, a process needs a few."""
_SHORT_CALLS = [_SMALL_WINDOW, ("grpc.max_concurrent_streams", 2 * CALLS_AT_ONCE)]
"""A connection that calls much is given no more calls than it can have in progress."""
_BACKOFF = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 1000), ("grpc.max_reconnect_backoff_ms", 2000)]
_CLIENT = [*_COMMON, *_BACKOFF, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]


def new_server(name: str, guard: RunGuard, *, num_roles: int, streams_on: str | None = None) -> grpc.Server:
    """A server whose every method is guarded, with a thread for every call that so many roles may have in progress, and some to refuse others.
    `streams_on`: the host that it listens on, if it serves streams of frames."""
    pool = futures.ThreadPoolExecutor(max_workers=num_roles * CALLS_AT_ONCE + MOST_WAITING + 4, thread_name_prefix=name)
    return grpc.server(pool, interceptors=[guard], options=[*_SERVER, *_SHORT_CALLS] if streams_on is None else stream_options(streams_on))


def stream_options(host: str) -> list[tuple[str, int]]:
    """Of a server of streams that listens on `host`: windows grow where a link may have a delay, which is where strangers get no connection."""
    return [*_STREAMS, _SMALL_WINDOW] if is_loopback(host) else _STREAMS


class Bindable(Protocol):
    """What can listen: a grpc.Server, and one on an event loop."""

    def add_insecure_port(self, address: str) -> int: ...

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int: ...


def bind(server: Bindable, host: str, port: int, tls: Tls | None) -> int:
    """Binds and returns the port. Raises ConfigError if it is taken."""
    address = f"{host}:{port}"
    try:
        bound = server.add_secure_port(address, _server_credentials(tls)) if tls else server.add_insecure_port(address)
    except RuntimeError:
        bound = 0
    if not bound:
        raise ConfigError(
            f"cannot listen on {host}:{port}: the port is in use or the address is not this host's; choose another, or 0 for any free one"
        )
    return bound


def _server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Only callers with a certificate of the same authority get through the handshake."""
    own = (tls.key.encode(), tls.certificate.encode())
    return grpc.ssl_server_credentials([own], root_certificates=tls.authority.encode(), require_client_auth=True)


def open_channel(address: str, role: Role, tls: Tls | None) -> grpc.Channel:
    """A channel to a process of that role, encrypted with `tls`: no other role's certificate will do."""
    if tls is None:
        return grpc.insecure_channel(address, options=_CLIENT)
    credentials = grpc.ssl_channel_credentials(tls.authority.encode(), tls.key.encode(), tls.certificate.encode())
    return grpc.secure_channel(address, credentials, options=[*_CLIENT, ("grpc.ssl_target_name_override", role.host_name)])


def bind_within(server: Bindable, host: str, ports: range | None, tls: Tls | None) -> int:
    """Binds the first free port of `ports` (None: any) and returns it. Raises ConfigError if all are taken."""
    if ports is None:
        return bind(server, host, 0, tls)
    for port in ports:
        if _is_free(host, port):
            with contextlib.suppress(ConfigError):  # another process was quicker
                return bind(server, host, port, tls)
    raise ConfigError(f"no port of comm.port_range = {ports[0]}-{ports[-1]} is free on {host}: widen it, or leave it out for any free ones")


def _is_free(host: str, port: int) -> bool:
    """Asked first, since gRPC writes to the log about every port that is not."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE  # any other reason is bind's to tell
        return True


class Peer:
    """One channel to one server, made at first use, so that it is never inherited by a fork. Thread-safe."""

    def __init__(self, role: Role, address: str, credentials: Credentials, timeouts: Timeouts) -> None:
        """`role`: what the peer must be; `credentials` are ours."""
        self._role = role
        self.address = address
        self._metadata = call_metadata(credentials)
        self._timeouts = timeouts
        self._channel = open_channel(address, role, credentials.tls)

    def call(self, service: str, method: str, request: Any, reply: type[Any], *, timeout_s: float | None = None, connects: bool = False) -> Any:
        """A unary call with a deadline of `control_s` unless another is given (inf: none). Raises ours: Unreachable after
        the deadline, or what the peer raised. `connects`: the peer may be starting again, so the channel has `connect_s` more to stand."""
        deadline_s = (timeout_s or self._timeouts.control_s) + (self._timeouts.connect_s if connects else 0.0)
        stub: Any = self._channel.unary_unary(
            f"/pserver.{service}/{method}", request_serializer=type(request).SerializeToString, response_deserializer=reply.FromString
        )
        try:
            return stub(request, metadata=self._metadata, timeout=None if math.isinf(deadline_s) else deadline_s, wait_for_ready=connects)
        except grpc.RpcError as error:
            raise from_rpc_error(error, str(self)) from error

    def send_frames(self, method: str, frames: Iterator[bytes], reply: type[Any], metadata: Metadata, *, timeout_s: float) -> Any:
        """A stream of frames up, one message down."""
        stub: Any = self._channel.stream_unary(f"/pserver.Shard/{method}", request_serializer=None, response_deserializer=reply.FromString)
        try:
            return stub(frames, metadata=metadata, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc_error(error, str(self)) from error

    def receive_frames(self, method: str, request: Any) -> Iterator[bytes]:
        """One message up, a stream of frames down. Raises ours while it is read."""
        stub: Any = self._channel.unary_stream(
            f"/pserver.Shard/{method}", request_serializer=type(request).SerializeToString, response_deserializer=None
        )
        try:
            yield from stub(request, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, str(self)) from error

    def open_stream(self, method: str, frames: Iterator[bytes], metadata: Metadata, *, service: str = "Shard") -> Any:
        """Frames both ways; iterate over what is returned, `cancel()` ends it."""
        stub: Any = self._channel.stream_stream(f"/pserver.{service}/{method}", request_serializer=None, response_deserializer=None)
        return stub(frames, metadata=metadata)

    def wait_ready(self) -> None:
        """Returns once the channel stands. Raises Unreachable."""
        try:
            grpc.channel_ready_future(self._channel).result(timeout=self._timeouts.connect_s)
        except grpc.FutureTimeoutError as error:
            raise Unreachable(f"{self} does not answer within {self._timeouts.connect_s:g} s: is it running and reachable from this host?") from error

    def close(self) -> None:
        self._channel.close()

    def __str__(self) -> str:
        names = {"server": f"server {self._role.index}", "member": f"stage {self._role.stage} of rank {self._role.index}"}
        name = names.get(self._role.kind, f"the {self._role.kind}")
        return f"{name} at {self.address}"


def unary(method: Callable[..., Any], request: type[Any]) -> grpc.RpcMethodHandler[Any, Any]:
    """Handler of a unary method with protobuf messages."""
    return grpc.unary_unary_rpc_method_handler(
        method, request_deserializer=request.FromString, response_serializer=lambda reply: reply.SerializeToString()
    )
