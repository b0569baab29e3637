"""The errors of pserver; each message is one line that names the thing and the remedy.

PserverError
├── ConfigError          a setting is wrong (exit code 2)
├── ModelMismatch        ranks bring different models or plans
├── MalformedFrame       length, dtype, chunk range, kind or digest of a frame is wrong
├── EarlyPush            a push of a step the shard has not reached
├── Fenced               a newer incarnation or generation exists
├── Diverged             the same contribution with other bytes
├── ForeignRun           another run's id
├── Unauthenticated      no token and no certificate, or another run's
├── Forbidden            the caller's role may not do that
├── Busy                 the caller has too many calls in progress
├── StateLost            memory that a restarted process needs went with its host
├── VersionGone          the version is overwritten: join again
├── NotInitialised       version 0 is not there yet
├── NonFinite            NaN or infinity in a loss or a mean gradient
├── Unreachable          a process does not answer within its deadline
├── HeadLost             the head of a Ray cluster is gone
├── NeighbourLost        a stage of the same rank has ended, or its connection: all of them begin again
├── ProcessDied          a worker or server process has ended by itself
├── WorkerFailed         the user's code raised in a worker
├── CheckpointDamaged    a file of a checkpoint is not what was written
├── ResourcesMissing     the cluster cannot ever satisfy the request
└── Stopped              the run was asked to end
"""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio

MISCONFIGURED = 2
"""Exit code of a process whose settings, or whose host, do not let it begin."""


class PserverError(Exception):
    """Root of all errors that pserver raises for its users."""


class ConfigError(PserverError):
    """A setting is wrong."""


class ModelMismatch(PserverError):
    """Ranks bring different models, initial values or plans."""


class MalformedFrame(PserverError):
    """Length, dtype, chunk range, kind or digest of a frame is wrong."""


class EarlyPush(PserverError):
    """A push of a step that the shard has not reached."""


class Fenced(PserverError):
    """A newer incarnation or generation of the sender exists."""


class Diverged(PserverError):
    """The same (member, step, chunk) with other bytes."""


class ForeignRun(PserverError):
    """The sender belongs to another run."""


class Unauthenticated(PserverError):
    """The call carries no token or another run's token."""


class Forbidden(PserverError):
    """The caller is part of the run, but may not do that."""


class Busy(PserverError):
    """The caller has as many calls in progress as are served at once."""


class VersionGone(PserverError):
    """The version asked for is overwritten; join again."""


class StateLost(PserverError):
    """Memory of a former process, which its successor needs, is gone."""


class CheckpointDamaged(PserverError):
    """A file of a checkpoint is missing, cut short, changed, or of something else."""


class NotInitialised(PserverError):
    """The shard has no version 0 yet."""


class NonFinite(PserverError):
    """NaN or infinity in a loss or a mean gradient."""


class Unreachable(PserverError):
    """A process does not answer within its deadline."""


class HeadLost(Unreachable):
    """The head of a Ray cluster is gone. A program that is connected to it cannot end as usual: Ray waits for the head then, or crashes."""


class NeighbourLost(Unreachable):
    """A stage of the same rank has ended, or the connection to it: the rank's stages begin again from the version that all can read."""


class ProcessDied(PserverError):
    """A worker or server process has ended by itself."""


class WorkerFailed(PserverError):
    """The user's code raised in a worker."""


class ResourcesMissing(PserverError):
    """The cluster can never satisfy the request."""


class Stopped(PserverError):
    """The run was asked to end."""


STATUS: dict[type[PserverError], grpc.StatusCode] = {
    ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    ModelMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    MalformedFrame: grpc.StatusCode.INVALID_ARGUMENT,
    EarlyPush: grpc.StatusCode.FAILED_PRECONDITION,
    Fenced: grpc.StatusCode.ABORTED,
    Diverged: grpc.StatusCode.DATA_LOSS,
    ForeignRun: grpc.StatusCode.FAILED_PRECONDITION,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    Busy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    StateLost: grpc.StatusCode.DATA_LOSS,
    CheckpointDamaged: grpc.StatusCode.DATA_LOSS,
    VersionGone: grpc.StatusCode.OUT_OF_RANGE,
    NotInitialised: grpc.StatusCode.FAILED_PRECONDITION,
    NonFinite: grpc.StatusCode.FAILED_PRECONDITION,
    Unreachable: grpc.StatusCode.UNAVAILABLE,
    HeadLost: grpc.StatusCode.UNAVAILABLE,
    NeighbourLost: grpc.StatusCode.UNAVAILABLE,
    ProcessDied: grpc.StatusCode.ABORTED,
    WorkerFailed: grpc.StatusCode.ABORTED,
    ResourcesMissing: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Stopped: grpc.StatusCode.CANCELLED,
    PserverError: grpc.StatusCode.INTERNAL,
}
"""What a call that raises one of ours ends with; the detail is "Class: message"."""

MAX_DETAIL = 1000
"""Characters of a detail: gRPC ends a call with more than it takes, escapes included, in another way."""

_BY_NAME = {cls.__name__: cls for cls in STATUS}


@contextlib.contextmanager
def as_status(context: grpc.ServicerContext) -> Iterator[None]:
    """Ends the call with the status of the error raised inside; any other exception stays a bug."""
    try:
        yield
    except PserverError as error:
        context.abort(*status_of(error))


@contextlib.asynccontextmanager
async def as_stream_status(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """The same on an event loop."""
    try:
        yield
    except PserverError as error:
        await context.abort(*status_of(error))


def status_of(error: PserverError) -> tuple[grpc.StatusCode, str]:
    """Status and detail of a call that raises `error`."""
    text = f"{type(error).__name__}: {error}"
    return STATUS[type(error)], text if len(text) <= MAX_DETAIL else f"{text[:MAX_DETAIL]} ..."


def by_name(name: str, message: str) -> PserverError:
    """The error of the class `name`; WorkerFailed if it is none of ours."""
    return _BY_NAME.get(name, WorkerFailed)(message)


def from_rpc_error(error: grpc.RpcError, peer: str) -> PserverError:
    """Our error for a call to `peer` that ended with a status."""
    name, separator, message = (error.details() or "").partition(": ")
    if separator and name in _BY_NAME:
        return _BY_NAME[name](message)
    if error.code() is grpc.StatusCode.UNKNOWN:  # a handler raised what is none of ours: to call again would not help
        return PserverError(f"{peer} failed ({error.details()}): see its log")
    return Unreachable(f"{peer} does not answer ({error.code().name}: {error.details()}): is it running and reachable from this host?")
