"""Who may call: every method of every server wants the run's token and its id."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from protos import pserver_pb2 as pb
from ps.errors import ConfigError, ForeignRun, MalformedFrame, PserverError, Unauthenticated, status_of

_TOKEN = "pserver-token"
_RUN = "pserver-run"
_MEMBER = "pserver-member-bin"

Metadata = tuple[tuple[str, str | bytes], ...]


def new_token() -> str:
    """A secret for one run."""
    return secrets.token_hex(32)


def call_metadata(run_id: str, token: str, member: pb.Member | None = None) -> Metadata:
    """What every call of a run carries; `member` on streams."""
    entries: Metadata = ((_TOKEN, token), (_RUN, run_id))
    return entries if member is None else (*entries, (_MEMBER, member.SerializeToString()))


def member_of(context: grpc.aio.ServicerContext[Any, Any]) -> pb.Member:
    """The member that a stream belongs to. Raises MalformedFrame."""
    value = dict(context.invocation_metadata() or ()).get(_MEMBER)
    if not isinstance(value, bytes):
        raise MalformedFrame(f"the call carries no {_MEMBER}")
    try:
        member = pb.Member.FromString(value)
    except DecodeError as error:
        raise MalformedFrame(f"{_MEMBER} cannot be parsed: {error}") from error
    if not member.incarnation:
        raise MalformedFrame(f"{_MEMBER} carries no incarnation: register and join first")
    return member


class _Guard:
    """Which calls are this run's."""

    def __init__(self, run_id: str, token: str) -> None:
        self._run_id = run_id
        self._token = token

    def refusal(self, details: grpc.HandlerCallDetails) -> PserverError | None:
        """Why a call may not be served."""
        entries = dict(details.invocation_metadata)
        if not hmac.compare_digest(str(entries.get(_TOKEN, "")).encode(), self._token.encode()):
            return Unauthenticated("the call does not carry this run's token: is the sender part of another run?")
        if entries.get(_RUN) != self._run_id:
            return ForeignRun(f"the call belongs to run {entries.get(_RUN)!r}, this is {self._run_id!r}")
        return None


class RunGuard(_Guard, grpc.ServerInterceptor):
    """Ends every call that does not carry the run's token and id, before a message of it is read."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        error = self.refusal(handler_call_details)
        if error is None:
            return continuation(handler_call_details)

        def abort(requests: object, context: grpc.ServicerContext) -> Any:
            context.abort(*status_of(error))

        return grpc.stream_stream_rpc_method_handler(abort)


class StreamGuard(_Guard, grpc.aio.ServerInterceptor):
    """The same for servers on an event loop."""

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        error = self.refusal(handler_call_details)
        if error is None:
            return await continuation(handler_call_details)

        async def abort(requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await context.abort(*status_of(error))

        return grpc.stream_stream_rpc_method_handler(abort)


def check_plaintext(host: str, *, allowed: bool) -> None:
    """Raises ConfigError for a server that would talk in the clear on a network."""
    if allowed or host == "localhost":
        return
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ConfigError(
            f"refusing to serve without encryption on {host}: set security.allow_plaintext = true if every host on this network may be trusted"
        )
