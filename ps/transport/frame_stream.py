"""A member's end of a training stream, on the process's event loop: a thread or two for each stream cost three times as much."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError, Executor
from typing import Any

import grpc
import grpc.aio

from ps.credentials import Tls
from ps.errors import PserverError, Unreachable, from_rpc_error
from ps.roles import Role
from ps.security import Metadata
from ps.transport.delay import delayed
from ps.transport.rpc import open_channel_on_loop
from ps.transport.shaping import Link
from ps.transport.streams import Outbox, run

_CLOSES_WITHIN_S = 5.0
Take = Callable[[bytes], Callable[[], object] | None]
"""Called on the loop with every frame; returns what would take long, for a thread. The next frame waits for it."""


class FrameStream:
    """Frames both ways, on a connection of its own. Thread-safe; the loop itself may not `close` it.

    `on_end` is called once, on the loop, with Unreachable if the connection broke, else what the server or `take` has raised; not after
    `close`. What takes long runs in `threads`. `latency_s`: by how much frames travel longer than they do, each way.
    """

    def __init__(
        self,
        address: str,
        role: Role,
        tls: Tls | None,
        metadata: Metadata,
        *,
        link: Link,
        latency_s: float,
        threads: Executor,
        take: Take,
        on_end: Callable[[FrameStream, PserverError], None],
    ) -> None:
        self._address, self._role, self._tls, self._metadata = address, role, tls, metadata
        self._link = link
        self._latency_s = latency_s
        self._threads = threads
        self._take = take
        self._on_end = on_end
        self._outbox: Outbox[bytes] = Outbox()
        self._call: Any = None

    def open(self) -> None:
        """Begins; returns at once."""
        self._serving = run(self._serve())

    def send(self, data: bytes) -> None:
        """Queues a frame; never blocks."""
        self._outbox.put(data)

    def drop(self) -> None:
        """Ends the stream soon; what is queued may be lost."""
        self._serving.cancel()

    def close(self) -> None:
        """The same, and waits until the connection is closed."""
        self.drop()
        with contextlib.suppress(CancelledError, TimeoutError):
            self._serving.result(_CLOSES_WITHIN_S)

    async def _serve(self) -> None:
        name = f"server {self._role.index} at {self._address}"
        error: PserverError = Unreachable(f"{name} has ended the stream")
        try:
            async with open_channel_on_loop(self._address, self._role, self._tls) as channel:
                await self._exchange(channel)
        except grpc.aio.AioRpcError as broken:
            error = from_rpc_error(broken, name)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise
        except PserverError as ours:
            error = ours
        self._on_end(self, error)

    async def _exchange(self, channel: grpc.aio.Channel) -> None:
        call: Any
        self._call = call = channel.stream_stream("/pserver.Shard/Steps")(metadata=self._metadata)
        writing = asyncio.create_task(self._write(call))
        loop = asyncio.get_running_loop()
        try:
            async for data in self._travelling(_read(call)):
                await self._link.receiving(len(data))
                if rest := self._take(data):
                    await loop.run_in_executor(self._threads, rest)
        finally:
            writing.cancel()
            call.cancel()

    async def _write(self, call: Any) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # the reader learns why
            async for data in self._travelling(self._sent()):
                await self._link.sending(len(data))
                await call.write(data)

    async def _sent(self) -> AsyncIterator[bytes]:
        while True:
            yield await self._outbox.get()

    def _travelling(self, frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Frames that have a way to go as long as the settings say."""
        return delayed(frames, self._latency_s) if self._latency_s else frames


async def _read(call: Any) -> AsyncIterator[bytes]:
    while (data := await call.read()) is not grpc.aio.EOF:
        yield data
