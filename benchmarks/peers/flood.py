"""Who should not be there: `python -m benchmarks.peers.flood KIND HOST:PORT TLS COUNT` floods a port until it is ended. Mostly without gRPC's
library, which keeps to windows. Prints a line when all connections have been tried.

silent  connections that say nothing
slow    connections that say one byte of a call after the other, twice a second
push    unauthenticated streams of 100 MB, again and again, as far as gRPC's library lets them go
rude    the same, window or not, on a new connection each time
calls   unauthenticated calls, as many as are answered
"""

import asyncio
import contextlib
import ssl
import sys
from collections.abc import Awaitable, Callable

import grpc.aio

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
DATA, HEADERS = 0, 1
END_STREAM, END_HEADERS = 1, 4
PUSH_BYTES = 100_000_000
MESSAGE_BYTES = 1_000_000
PART_BYTES = 16_384
SLOW_S = 0.5
BURST = 50
PAUSE_S = {"silent": SLOW_S, "slow": SLOW_S, "push": 0.01, "rude": 0.01, "calls": 0.01}
"""Before what has ended is begun again: calls that fail at once would only take the processors from everybody, by gRPC's threads that never sleep."""


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def call(stream: int, method: str) -> bytes:
    """The headers of a gRPC call without any token; literal, as HPACK allows."""
    entries = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "x", "content-type": "application/grpc", "te": "trailers"}
    block = b"".join(b"\x00" + bytes([len(k)]) + k.encode() + bytes([len(v)]) + v.encode() for k, v in entries.items())
    return frame(HEADERS, END_HEADERS, stream, block)


async def silent(stream: Stream) -> None:
    await stream[0].read()


async def slow(stream: Stream) -> None:
    for byte in HELLO + call(1, "/pserver.Shard/Steps") + frame(DATA, 0, 1, bytes(PART_BYTES)):
        stream[1].write(bytes([byte]))
        await stream[1].drain()
        with contextlib.suppress(TimeoutError):
            if not await asyncio.wait_for(stream[0].read(4096), SLOW_S):
                return


async def push(address: str, tried: asyncio.Event) -> None:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        while True:
            with contextlib.suppress(grpc.RpcError):
                call: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream("/pserver.Shard/Steps")
                async for _ in call(iter([bytes(MESSAGE_BYTES)] * (PUSH_BYTES // MESSAGE_BYTES))):
                    pass
            tried.set()
            await asyncio.sleep(PAUSE_S["push"])


async def rude(stream: Stream) -> None:
    reading = asyncio.create_task(stream[0].read())
    stream[1].write(HELLO + call(1, "/pserver.Shard/Steps"))
    part = frame(DATA, 0, 1, bytes(PART_BYTES))
    try:
        for _ in range(PUSH_BYTES // PART_BYTES):
            stream[1].write(part)
            await stream[1].drain()
            if reading.done():
                break
    finally:
        await asyncio.gather(reading, return_exceptions=True)


async def calls(stream: Stream) -> None:
    stream[1].write(HELLO)
    for first in range(1, 1 << 30, 2 * BURST):
        burst = range(first, first + 2 * BURST, 2)
        stream[1].write(b"".join(call(number, "/pserver.Shard/Describe") + frame(DATA, END_STREAM, number, bytes(5)) for number in burst))
        await stream[1].drain()
        if not await stream[0].read(1 << 16):
            return


KINDS: dict[str, Callable[[Stream], Awaitable[None]]] = {"silent": silent, "slow": slow, "rude": rude, "calls": calls}


async def again_and_again(kind: str, host: str, port: int, tls: ssl.SSLContext | None, tried: asyncio.Event) -> None:
    how = KINDS[kind]
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            stream = await asyncio.open_connection(host, port, ssl=None if kind == "silent" else tls)
            tried.set()
            try:
                await how(stream)
            finally:
                stream[1].close()
        tried.set()
        await asyncio.sleep(PAUSE_S[kind])


async def flood(kind: str, address: str, tls: ssl.SSLContext | None, count: int) -> None:
    host, _, port = address.rpartition(":")
    tried = [asyncio.Event() for _ in range(count)]
    work = [push(address, event) if kind == "push" else again_and_again(kind, host, int(port), tls, event) for event in tried]
    tasks = [asyncio.create_task(one) for one in work]
    await asyncio.gather(*(event.wait() for event in tried))
    print("all are there", flush=True)
    await asyncio.gather(*tasks)


def anybody() -> ssl.SSLContext:
    """Encrypts, trusts everybody, and has no certificate."""
    made = ssl.create_default_context()
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.set_alpn_protocols(["h2"])
    return made


if __name__ == "__main__":
    _, kind, address, encrypted, count = sys.argv
    asyncio.run(flood(kind, address, anybody() if encrypted == "tls" else None, int(count)))
