"""Every method of every service wants the run's token and id; methods are enumerated from the descriptors."""

from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from grpc_health.v1 import health_pb2

from protos import pserver_pb2 as pb
from ps.control import Control
from ps.control_service import ControlServicer
from ps.errors import ConfigError
from ps.security import RunGuard, call_metadata, check_plaintext, new_token
from tests.ps.cluster import TOKEN, cluster

SERVICES = [*pb.DESCRIPTOR.services_by_name.values(), *health_pb2.DESCRIPTOR.services_by_name.values()]
METHODS = [f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods]
ON_DATA_PORT = {"/pserver.Shard/Init", "/pserver.Shard/Steps", "/pserver.Shard/Pull"}
WRONG = {
    "no token": ((), grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated: the call does not carry this run's token"),
    "another token": (call_metadata("RUN", "u" * 64), grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated: "),
    "part of the token": (call_metadata("RUN", TOKEN[:-1]), grpc.StatusCode.UNAUTHENTICATED, "Unauthenticated: "),
    "another run": (call_metadata("other", TOKEN), grpc.StatusCode.FAILED_PRECONDITION, "ForeignRun: the call belongs to run 'other'"),
    "no run": ((("pserver-token", TOKEN),), grpc.StatusCode.FAILED_PRECONDITION, "ForeignRun: the call belongs to run None"),
}


@pytest.fixture(scope="module")
def channels() -> Iterator[dict[str, grpc.Channel]]:
    """A channel to whoever serves each method."""
    servicer = ControlServicer(Control(1, 1), 1, on_epoch=lambda epoch: False, on_rows=lambda rows: None, on_step=lambda rank, step: None)
    with cluster(1, 1) as servers:
        driver = grpc.server(futures.ThreadPoolExecutor(2), interceptors=[RunGuard(servers.settings.run_id, TOKEN)])
        driver.add_generic_rpc_handlers((servicer.handlers(),))
        port = driver.add_insecure_port("127.0.0.1:0")
        driver.start()
        data, control, theirs = (grpc.insecure_channel(a) for a in (servers.addresses[0].data, servers.addresses[0].control, f"127.0.0.1:{port}"))
        made = {m: theirs if ".Control/" in m else data if m in ON_DATA_PORT else control for m in METHODS}
        yield made | {"run": servers.settings.run_id}  # type: ignore[dict-item]
        for channel in (data, control, theirs):
            channel.close()
        driver.stop(0).wait()


def call(channel: grpc.Channel, method: str, metadata: object) -> grpc.RpcError | None:
    """Calls with an empty message; how it ended."""
    try:
        for _ in channel.stream_stream(method)(iter([b""]), metadata=metadata, timeout=5):
            break
    except grpc.RpcError as error:
        return error
    return None


def test_there_are_services_to_be_checked() -> None:
    assert {"/pserver.Shard/Steps", "/pserver.Control/Register", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"} < set(METHODS)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("method", [*METHODS, "/pserver.Shard/None"])
def test_a_call_without_the_runs_secret_is_refused(method: str, wrong: str, channels: dict[str, grpc.Channel]) -> None:
    metadata, code, details = WRONG[wrong]
    channel = channels.get(method, channels["/pserver.Shard/Join"])
    error = call(channel, method, [(key, channels["run"] if value == "RUN" else value) for key, value in metadata])
    assert error is not None and error.code() is code and error.details().startswith(details)


@pytest.mark.parametrize("method", [method for method in METHODS if not method.endswith(("/Stop", "/List"))])
def test_a_call_with_the_runs_secret_reaches_its_method(method: str, channels: dict[str, grpc.Channel]) -> None:
    error = call(channels[method], method, call_metadata(str(channels["run"]), TOKEN))
    assert error is None or error.code() not in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)
    assert error is None or "ForeignRun" not in error.details()


def test_tokens_are_long_and_never_the_same() -> None:
    assert len({new_token() for _ in range(100)}) == 100 and len(new_token()) == 64


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_plaintext_off_loopback_must_be_allowed(host: str) -> None:
    with pytest.raises(ConfigError, match=r"set security.allow_plaintext = true"):
        check_plaintext(host, allowed=False)
    check_plaintext(host, allowed=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_plaintext_on_loopback_is_no_risk(host: str) -> None:
    check_plaintext(host, allowed=False)
