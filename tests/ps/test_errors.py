import inspect
import re

import grpc
import pytest

from ps import errors
from ps.errors import (
    MAX_DETAIL,
    STATUS,
    Fenced,
    MalformedFrame,
    PserverError,
    Unreachable,
    WorkerFailed,
    as_status,
    by_name,
    from_rpc_error,
    status_of,
)

TREE = [cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, PserverError) and cls is not PserverError]


class Ended(Exception):
    """What `abort` raises in a servicer."""


class Context:
    """The part of a servicer's context that ends calls."""

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.status = code, details
        raise Ended


class Rpc(grpc.RpcError):
    """A call that ended with a status."""

    def __init__(self, code: grpc.StatusCode, details: str | None) -> None:
        self.code = lambda: code
        self.details = lambda: details


@pytest.mark.parametrize("cls", TREE)
def test_every_error_has_a_status_and_a_place_in_the_tree(cls: type[PserverError]) -> None:
    assert STATUS[cls] not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)
    assert re.search(rf"[├└]── {cls.__name__} ", errors.__doc__ or "")


def test_the_tree_draws_no_error_that_does_not_exist() -> None:
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    assert sorted(drawn) == sorted(cls.__name__ for cls in TREE)


@pytest.mark.parametrize("cls", TREE)
def test_an_error_crosses_the_wire_as_itself(cls: type[PserverError]) -> None:
    context = Context()
    with pytest.raises(Ended), as_status(context):  # type: ignore[arg-type]
        raise cls("chunk 3: of shard 1")
    code, details = context.status
    assert code is STATUS[cls]
    arrived = from_rpc_error(Rpc(code, details), "server 1")
    assert type(arrived) is cls and str(arrived) == "chunk 3: of shard 1"


def test_a_bug_is_not_translated() -> None:
    context = Context()
    with pytest.raises(ZeroDivisionError), as_status(context):  # type: ignore[arg-type]
        _ = 1 / 0
    assert not hasattr(context, "status")


@pytest.mark.parametrize("details", [None, "", "failed to connect", "Socket: closed", "KeyError: 3"])
def test_any_other_status_is_a_peer_that_does_not_answer(details: str | None) -> None:
    error = from_rpc_error(Rpc(grpc.StatusCode.UNAVAILABLE, details), "server 1 at 127.0.0.1:1")
    assert isinstance(error, Unreachable) and "server 1 at 127.0.0.1:1 does not answer (UNAVAILABLE" in str(error)


def test_names_of_errors_are_found_and_foreign_ones_are_the_users_code() -> None:
    assert isinstance(by_name("Fenced", "x"), Fenced)
    assert isinstance(by_name("SystemError", "x"), WorkerFailed)


def test_a_long_message_is_cut_before_grpc_ends_the_call_in_another_way() -> None:
    code, details = status_of(MalformedFrame("é" * 20_000))
    assert code is grpc.StatusCode.INVALID_ARGUMENT and details == f"MalformedFrame: {'é' * (MAX_DETAIL - 16)} ..."
