"""A server process: one shard behind two gRPC servers, from its settings to its end. `python -m ps.server`."""

import argparse
import contextlib
import logging
import os
import platform
import resource
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from protos import pserver_pb2 as pb
from ps.addresses import listen_host
from ps.checkpoints.saver import Saver
from ps.config import ServerSettings, from_json
from ps.control_client import ControlClient, Heart, Progress
from ps.control_port import ControlPort
from ps.data_port import DataPort
from ps.errors import MISCONFIGURED, ConfigError, PserverError, Stopped
from ps.failpoints import hit
from ps.host import ShardHost
from ps.key_files import settings_of_server
from ps.ledger import RowBuffer
from ps.logs import configure_logging
from ps.memory import keep_freed_memory
from ps.metrics import Meter, metered, tell_row
from ps.roles import DRIVER, member_name
from ps.security import RunGuard, StreamGuard, check_plaintext
from ps.segments import run_mark
from ps.transport.rpc import Bindable, Peer, bind, bind_within, new_server
from ps.transport.shaping import Link
from ps.transport.streams import StreamServer

log = logging.getLogger(__name__)


class Server:
    """A running shard server: `data_port` for streams, `control_port` for health, Join and Stop."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings = replace(settings, host=listen_host(settings.host, settings.comm.interface))
        check_plaintext(settings.host, allowed=settings.security.allow_plaintext, tls=settings.tls)
        self.rows = RowBuffer()
        self.host = ShardHost(settings, self.rows)
        self.host.recover()
        callers = settings.run_id, settings.secret
        link = Link(settings.comm.bucket_bytes_per_s(settings.shard))
        handlers = DataPort(self.host, link, settings.comm, settings.num_members).handlers()
        self._data = StreamServer(StreamGuard(*callers), handlers, settings.host)
        self._control = new_server("control", RunGuard(*callers), num_roles=settings.num_members + 3)  # driver, reader, itself
        self._control.add_generic_rpc_handlers((ControlPort(self.host).handlers(),))
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._control)
        self.data_port = self._bind(self._data, settings.data_port)
        self.control_port = self._bind(self._control, settings.control_port)

    def _bind(self, server: Bindable, port: int) -> int:
        host, tls = self.settings.host, self.settings.tls
        return bind(server, host, port, tls) if port else bind_within(server, host, self.settings.comm.ports, tls)

    @property
    def data_address(self) -> str:
        return f"{self.settings.host}:{self.data_port}"

    @property
    def control_address(self) -> str:
        return f"{self.settings.host}:{self.control_port}"

    def start(self) -> None:
        self._data.start()
        self._control.start()
        self._health.set("", health_pb2.HealthCheckResponse.SERVING)

    def wait(self, on_wait: float) -> None:
        """Returns when the process is asked to end; logs every `on_wait` seconds who holds up a step that stands still."""
        version = -1
        while not self.host.stopping.wait(on_wait):
            missing = self.host.waits_for()
            if missing and self.host.version == version:
                names = ", ".join(f"{member_name(number, self.settings.num_stages)} ({chunks} chunks)" for number, chunks in missing.items())
                log.warning("shard %d at version %d waits for %s", self.settings.shard, version, names)
            version = self.host.version

    def stop(self, grace_s: float) -> None:
        """Ends streams and calls, gives ports and memory back. Idempotent."""
        self._health.enter_graceful_shutdown()
        self.host.close(Stopped(f"server {self.settings.shard} ends"))
        data, control = self._data.stop(grace_s), self._control.stop(grace_s)
        with contextlib.suppress(TimeoutError):
            data.result(grace_s + 1)
        control.wait(grace_s + 1)


def build_server(settings: ServerSettings) -> Server:
    """A started server. Raises ConfigError if it may not listen where it is told to."""
    server = Server(settings)
    server.start()
    return server


def environment(num_threads: int) -> pb.Environment:
    """What this process computes with."""
    return pb.Environment(
        host=socket.gethostname(),
        pid=os.getpid(),
        python=platform.python_version(),
        torch=torch.__version__,
        pserver=metadata.version("pserver"),
        num_threads=num_threads,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
    )


SWITCH_INTERVAL_S = 3e-4
"""Python's default of 5 ms is as long as a thread sums and updates megabytes: threads that have done so would wait for each other."""


def serve(settings_json: str, meter: Meter | None = None) -> int:
    """Runs a server until it is asked to end; the exit code, and what ended it as a line on stderr. `meter`: where metrics go, if there
    shall be any, in place of an endpoint."""
    try:
        settings = from_json(ServerSettings, settings_json)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        keep_freed_memory()
        torch.set_num_threads(1)  # slices of a kernel must not depend on the machine; the streams' threads work in parallel
        with run_mark(settings.run_id), metered(settings.metrics, 1 + settings.shard, meter) as meter:
            _serve(settings, meter)
    except (ConfigError, ValueError, OSError) as error:
        return _misconfigured(error)
    except PserverError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _misconfigured(error: Exception) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return MISCONFIGURED


def _serve(settings: ServerSettings, meter: Meter | None) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)  # strangers' connections are files too
    server = build_server(settings)
    if meter:
        server.rows.on_row = partial(tell_row, meter)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: server.host.yield_place(signal.Signals(number).name))
    log.info("server %d of run %s listens on %s (control %s)", settings.shard, settings.run_id, server.data_address, server.control_address)
    heart = None
    try:
        if settings.control_address:
            heart = _attach(server)
        server.wait(settings.timeouts.barrier_log_s)
    finally:
        if server.host.saver:
            server.host.saver.close()
        server.stop(settings.timeouts.stop_s / 3)
        if heart:
            heart.stop()


def _attach(server: Server) -> Heart:
    """Registers with the driver and starts to beat."""
    settings = server.settings
    assert settings.control_address
    peer = Peer(DRIVER, settings.control_address, settings.credentials, settings.timeouts)
    client = ControlClient(peer, "server", settings.shard)
    client.register(environment(1), server.data_address, server.control_address)
    hit("server.registered")
    heart = Heart(
        client,
        server.rows,
        lambda: Progress(server.host.version, waits_for=sorted(server.host.waits_for())),
        server.host.request_stop,
        on_fenced=server.host.yield_place,
        every_s=settings.timeouts.heartbeat_s,
        orphan_after_s=settings.timeouts.orphan_after_s,
        clock=time.monotonic,
    )
    if settings.saving:
        server.host.saver = Saver(client, settings.saving)
    heart.start()
    return heart


def main() -> int:
    """Entry point: settings as JSON from `--config FILE` or standard input."""
    parser = argparse.ArgumentParser(prog="python -m ps.server", description="Hold one shard of the parameters.")
    parser.add_argument("--config", type=Path, help="JSON file with the settings of ps.config.ServerSettings; standard input if left out")
    parser.add_argument("--certs", type=Path, help="folder with the shard's certificate, made by `pserver certs`; with --config")
    arguments = parser.parse_args()
    configure_logging()
    try:
        settings = settings_of_server(arguments.config, arguments.certs) if arguments.config else sys.stdin.read()
    except (ConfigError, ValueError, OSError) as error:
        return _misconfigured(error)
    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
