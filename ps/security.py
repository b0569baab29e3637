"""Who may call: every method of every server wants the run's id and a role that may call it, by token or by certificate."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import grpc
import grpc.aio

from protos import pserver_pb2 as pb
from ps.credentials import Credentials, Tls, role_of_token
from ps.errors import ConfigError, ForeignRun, PserverError, Unauthenticated, as_status, as_stream_status, status_of
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


def member_of(context: grpc.aio.ServicerContext[Any, Any]) -> pb.Member:
    """The member that a stream belongs to, which the guard has found to be the caller. Raises MalformedFrame."""
    return member_from(_member_in(dict(context.invocation_metadata() or ())))


def _member_in(entries: Mapping[str, str | bytes]) -> bytes | None:
    value = entries.get(_MEMBER)
    return value if isinstance(value, bytes) else None


class Guard:
    """Which calls are served. `secret`: of the run, for callers with tokens; None: they have certificates."""

    def __init__(self, run_id: str, secret: str | None) -> None:
        self._run_id = run_id
        self._secret = secret

    def admit(self, details: grpc.HandlerCallDetails) -> Role | None:
        """The caller, before a byte of its messages is read; None if only its connection says. Raises Unauthenticated, ForeignRun, Forbidden."""
        entries = dict(details.invocation_metadata)
        role = None
        if self._secret is not None:
            role = role_of_token(self._secret, str(entries.get(_TOKEN, "")))
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


class RunGuard(grpc.ServerInterceptor):
    """Ends every call that may not be served; without a certificate before a message of it is read."""

    def __init__(self, run_id: str, secret: str | None) -> None:
        self._guard = Guard(run_id, secret)

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None], handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        try:
            role = self._guard.admit(handler_call_details)
        except PserverError as error:
            return _aborting(error)
        handler = continuation(handler_call_details)

        def check(request: Any, context: grpc.ServicerContext) -> None:
            caller = role or self._guard.admit_connection(handler_call_details, context.auth_context())
            check_claim(handler_call_details.method, caller, request)

        return None if handler is None else _checked(handler, check)


def _aborting(error: PserverError) -> grpc.RpcMethodHandler[Any, Any]:
    def abort(requests: object, context: grpc.ServicerContext) -> Any:
        context.abort(*status_of(error))

    return grpc.stream_stream_rpc_method_handler(abort)


def _checked(handler: Any, check: Callable[[Any, grpc.ServicerContext], None]) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler, called after `check` has passed."""

    def unary(request: Any, context: grpc.ServicerContext) -> Any:
        with as_status(context):
            check(request, context)
        return handler.unary_unary(request, context)

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        with as_status(context):
            check(request, context)
        yield from handler.unary_stream(request, context)

    made = (handler.request_deserializer, handler.response_serializer)
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(unary, *made)
    assert handler.unary_stream, "frames are streamed on an event loop"
    return grpc.unary_stream_rpc_method_handler(stream, *made)


class StreamGuard(grpc.aio.ServerInterceptor):
    """The same for servers on an event loop."""

    def __init__(self, run_id: str, secret: str | None) -> None:
        self._guard = Guard(run_id, secret)

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        try:
            role = self._guard.admit(handler_call_details)
        except PserverError as error:
            return _aborting_on_loop(error)
        handler = await continuation(handler_call_details)

        def check(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            caller = role or self._guard.admit_connection(handler_call_details, context.auth_context())
            if request is not None:
                check_claim(handler_call_details.method, caller, request)

        return None if handler is None else _checked_on_loop(handler, check)


def _aborting_on_loop(error: PserverError) -> grpc.RpcMethodHandler[Any, Any]:
    async def abort(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(*status_of(error))

    return grpc.stream_stream_rpc_method_handler(abort)


def _checked_on_loop(handler: Any, check: Callable[[Any, grpc.aio.ServicerContext[Any, Any]], None]) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler, called after `check` has passed: with None where requests are a stream, of which nothing is read then."""

    async def up(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        async with as_stream_status(context):
            check(None, context)
        return await handler.stream_unary(requests, context)

    async def both(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async with as_stream_status(context):
            check(None, context)
        await handler.stream_stream(requests, context)

    async def down(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        async with as_stream_status(context):
            check(request, context)
        async for item in handler.unary_stream(request, context):
            yield item

    made: Any = (handler.request_deserializer, handler.response_serializer)
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
