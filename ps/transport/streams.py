"""Servers of long streams: all of them on one event loop per process, which costs a third of a thread or two per stream.

The loop only moves bytes and does what is over in a moment; it never waits for a lock that is held for long.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import lru_cache
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from ps.memory import SpareMemory
from ps.security import StreamGuard
from ps.transport.rpc import stream_options

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Starts `work` on the process's loop, from any other thread."""
    return asyncio.run_coroutine_threadsafe(work, _loop(os.getpid()))


@lru_cache(maxsize=1)
def _loop(pid: int) -> asyncio.AbstractEventLoop:
    """One loop for all servers of a process, which lives as long: gRPC's completion queue cannot serve several without noise."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="streams", daemon=True).start()
    asyncio.run_coroutine_threadsafe(_give_back(), loop)
    return loop


LOOK_EVERY_S = 1.0


async def _give_back() -> None:
    """What floods have left."""
    memory = SpareMemory()
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        await asyncio.to_thread(memory.look)


class StreamServer:
    """A server of streams, every method guarded. Its methods are called from other threads than the loop's."""

    def __init__(self, guard: StreamGuard, handler: grpc.GenericRpcHandler, host: str) -> None:
        """`host`: where it will listen."""

        async def make() -> grpc.aio.Server:
            server = grpc.aio.server(interceptors=[guard], options=stream_options(host))
            server.add_generic_rpc_handlers((handler,))
            return server

        self._server = run(make()).result()

    def add_insecure_port(self, address: str) -> int:
        """As grpc.Server's."""
        return self._server.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """As grpc.Server's."""
        return self._server.add_secure_port(address, server_credentials)

    def start(self) -> None:
        run(self._server.start()).result()

    def stop(self, grace_s: float) -> Future[None]:
        """Ends all calls within `grace_s`."""
        return run(self._server.stop(grace_s))


class Outbox(Generic[T]):
    """Items from any thread, in order, for one task of the loop. Made on the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._items: deque[T] = deque()
        self._lock = threading.Lock()  # guards _bytes
        self._bytes = 0
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()

    def put(self, item: T) -> None:
        """Never blocks."""
        self._items.append(item)
        self._count(item, 1)
        if threading.get_ident() == self._thread:
            self._filled.set()
        else:
            self._loop.call_soon_threadsafe(self._filled.set)

    async def get(self) -> T:
        """The oldest item, as soon as there is one."""
        while not self._items:
            self._filled.clear()
            await self._filled.wait()
        item = self._items.popleft()
        self._count(item, -1)
        self._drained.set()
        return item

    def _count(self, item: T, sign: int) -> None:
        if isinstance(item, bytes):
            with self._lock:
                self._bytes += sign * len(item)

    async def below(self, limit_bytes: int) -> None:
        """Returns as soon as the frames that nobody has taken are at most so long."""
        while self._bytes > limit_bytes:
            self._drained.clear()
            await self._drained.wait()
