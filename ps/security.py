"""Who may call: every method of every server wants the run's id and a role that may call it, by token or by certificate."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from protos import pserver_pb2 as pb
from ps.credentials import Callers, Credentials, Tls, role_of_token
from ps.errors import Busy, ConfigError, ForeignRun, MalformedFrame, PserverError, Unauthenticated, as_status, as_stream_status, status_of
from ps.refusals import Refusals
from ps.roles import Role, check_claim, check_role, member_from, role_of_names

_TOKEN = "pserver-token"
_RUN = "pserver-run"
_MEMBER = "pserver-member-bin"

Metadata = tuple[tuple[str, str | bytes], ...]


def call_metadata(credentials: Credentials, member: pb.Member | None = None) -> Metadata:
    """What every call carries; `member` on streams."""
    entries: Metadata = ((_RUN, credentials.run_id),)
    if credentials.token is not None:
        entries += ((_TOKEN, credentials.token),)
    return entries if member is None else (*entries, (_MEMBER, member.SerializeToString()))


def member_of(context: grpc.aio.ServicerContext[Any, Any] | grpc.ServicerContext) -> pb.Member:
    """The member that a stream belongs to, which the guard has found to be the caller. Raises MalformedFrame."""
    return member_from(_member_in(dict(context.invocation_metadata() or ())))


def _member_in(entries: Mapping[str, str | bytes]) -> bytes | None:
    value = entries.get(_MEMBER)
    return value if isinstance(value, bytes) else None


CALLS_AT_ONCE = 8
"""Of one role at one port: a process needs a few, and whoever has its token or certificate cannot keep the others' threads."""


MOST_WAITING = 256
"""Strangers that wait at one port until they are refused."""


class Guard:
    """Which calls are served. `callers`: those with tokens; None: callers have certificates. Thread-safe."""

    def __init__(self, run_id: str, callers: Callers | None) -> None:
        self._run_id = run_id
        self._callers = callers
        self.refusals = Refusals(MOST_WAITING, time.monotonic)
        self._lock = threading.Lock()  # guards _running
        self._running: Counter[Role] = Counter()

    @contextlib.contextmanager
    def call_of(self, role: Role) -> Iterator[None]:
        """While a call of the role is served. Raises Busy."""
        with self._lock:
            if self._running[role] >= CALLS_AT_ONCE:
                raise Busy(f"{role} has {CALLS_AT_ONCE} calls in progress here, no more are served at once")
            self._running[role] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running[role] -= 1

    def admit(self, details: grpc.HandlerCallDetails) -> Role | None:
        """The caller, before a byte of its messages is read; None if only its connection says. Raises Unauthenticated, ForeignRun, Forbidden."""
        entries = dict(details.invocation_metadata)
        role = None
        if self._callers is not None:
            role = role_of_token(self._callers, str(entries.get(_TOKEN, "")))
            if role is None:
                raise Unauthenticated("the call does not carry a token of this run: is the sender part of another run?")
        if entries.get(_RUN) != self._run_id:
            raise ForeignRun(f"the call belongs to run {entries.get(_RUN)!r}, this is {self._run_id!r}")
        if role is not None:
            check_role(details.method, role, _member_in(entries))
        return role

    def admit_connection(self, details: grpc.HandlerCallDetails, connection: Mapping[Any, Any]) -> Role:
        """The caller that the connection's certificate names. Raises Unauthenticated, Forbidden."""
        role = role_of_names(connection.get("x509_subject_alternative_name", ()))
        if role is None:
            raise Unauthenticated("the caller's certificate names no role of a run")
        check_role(details.method, role, _member_in(dict(details.invocation_metadata)))
        return role

    @contextlib.contextmanager
    def serving(self, role: Role | None, details: grpc.HandlerCallDetails, request: object | None, connection: Mapping[Any, Any]) -> Iterator[None]:
        """While a call is served that `admit` has let in as `role`; `request`: its only message, if it has one alone. Raises what is wrong
        with that, and as `admit_connection` and `call_of` do."""
        caller = role or self.admit_connection(details, connection)
        if request is not None:
            _check_request(details.method, caller, request)
        with self.call_of(caller):
            yield


class RunGuard(grpc.ServerInterceptor):
    """Ends every call that may not be served; without a certificate before a message of it is read."""

    def __init__(self, run_id: str, callers: Callers | None) -> None:
        self._guard = Guard(run_id, callers)

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None], handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        try:
            role = self._guard.admit(handler_call_details)
        except PserverError as error:
            return _aborting(error, self._guard.refusals)
        handler = continuation(handler_call_details)

        @contextlib.contextmanager
        def served(request: Any, context: grpc.ServicerContext) -> Iterator[None]:
            with as_status(context), self._guard.serving(role, handler_call_details, request, context.auth_context()):
                yield

        return None if handler is None else _checked(handler, served)


def _check_request(method: str, caller: Role, request: Any) -> None:
    if isinstance(request, MalformedFrame):
        raise request
    check_claim(method, caller, request)


def _aborting(error: PserverError, refusals: Refusals) -> grpc.RpcMethodHandler[Any, Any]:
    def abort(requests: object, context: grpc.ServicerContext) -> Any:
        with refusals.wait_s() as seconds:
            time.sleep(seconds)
        context.abort(*status_of(error))

    return grpc.stream_stream_rpc_method_handler(abort)


def _checked(handler: Any, served: Callable[[Any, grpc.ServicerContext], AbstractContextManager[None]]) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler, called inside of `served`."""

    def unary(request: Any, context: grpc.ServicerContext) -> Any:
        with served(request, context):
            return handler.unary_unary(request, context)

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        with served(request, context):
            yield from handler.unary_stream(request, context)

    def both(requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        with served(None, context):
            yield from handler.stream_stream(requests, context)

    made = (_parsing(handler.request_deserializer), handler.response_serializer)
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(unary, *made)
    if handler.stream_stream:
        return grpc.stream_stream_rpc_method_handler(both, *made)
    assert handler.unary_stream, "frames go up on an event loop"
    return grpc.unary_stream_rpc_method_handler(stream, *made)


def _parsing(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Gives what cannot be parsed to the handler as the error that it is: gRPC would log a stack for each."""

    def parse(data: bytes) -> Any:
        assert deserializer
        try:
            return deserializer(data)
        except DecodeError as error:
            return MalformedFrame(f"a message that cannot be parsed: {error}")

    return deserializer and parse


class StreamGuard(grpc.aio.ServerInterceptor):
    """The same for servers on an event loop."""

    def __init__(self, run_id: str, secret: str | None) -> None:
        self._guard = Guard(run_id, secret)

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        try:
            role = self._guard.admit(handler_call_details)
        except PserverError as error:
            return _aborting_on_loop(error, self._guard.refusals)
        handler = await continuation(handler_call_details)

        @contextlib.asynccontextmanager
        async def served(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
            async with as_stream_status(context):
                with self._guard.serving(role, handler_call_details, request, context.auth_context()):
                    yield

        return None if handler is None else _checked_on_loop(handler, served)


def _aborting_on_loop(error: PserverError, refusals: Refusals) -> grpc.RpcMethodHandler[Any, Any]:
    async def abort(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        with refusals.wait_s() as seconds:
            await asyncio.sleep(seconds)
        await context.abort(*status_of(error))

    return grpc.stream_stream_rpc_method_handler(abort)


def _checked_on_loop(
    handler: Any, served: Callable[[Any, grpc.aio.ServicerContext[Any, Any]], AbstractAsyncContextManager[None]]
) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler, called inside of `served`: with None where requests are a stream, of which nothing is read before."""

    async def up(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        async with served(None, context):
            return await handler.stream_unary(requests, context)

    async def both(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async with served(None, context):
            await handler.stream_stream(requests, context)

    async def down(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        async with served(request, context):
            async for item in handler.unary_stream(request, context):
                yield item

    made: Any = (_parsing(handler.request_deserializer), handler.response_serializer)
    if handler.stream_stream:
        return grpc.stream_stream_rpc_method_handler(both, *made)
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(up, *made)
    return grpc.unary_stream_rpc_method_handler(down, *made)


def is_loopback(host: str) -> bool:
    """Whether only this host can reach `host`; a name other than localhost may be anything."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_plaintext(host: str, *, allowed: bool, tls: Tls | None = None) -> None:
    """Raises ConfigError for a server that would talk in the clear on a network."""
    if not (allowed or tls or is_loopback(host)):
        raise ConfigError(
            f"refusing to serve without encryption on {host}: give it a certificate (pserver certs), "
            "or set security.allow_plaintext = true if every host on this network may be trusted"
        )
