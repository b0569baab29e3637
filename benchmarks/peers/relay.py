"""A bare relay on `grpc.aio`: every message of a stream is answered by one as long, and nothing is done with it. What the transport alone costs."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from benchmarks.peers.stubs import OPTIONS
from benchmarks.workload import Workload, take_part

_METHOD = "/relay.Relay/Steps"


async def _steps(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> None:
    async for data in requests:
        await context.write(data)


async def _serve() -> None:
    """Prints its port, and serves until it is ended."""
    server = grpc.aio.server(options=OPTIONS)
    _, service, method = _METHOD.split("/")
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {method: grpc.stream_stream_rpc_method_handler(_steps)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def main() -> None:
    """All streams of one server, in one process."""
    workload = Workload.here()
    loop = asyncio.new_event_loop()
    payload = bytes(workload.model_bytes)

    async def opened() -> list[Any]:
        channels = [grpc.aio.insecure_channel(workload.stub["data"], options=OPTIONS) for _ in range(workload.workers)]
        return [channel.stream_stream(_METHOD)() for channel in channels]

    calls = loop.run_until_complete(opened())

    async def exchange(call: Any) -> None:
        await call.write(payload)
        assert len(await call.read()) == len(payload)

    async def all_exchange() -> None:
        await asyncio.gather(*map(exchange, calls))

    take_part(workload, 0, lambda variant: lambda: loop.run_until_complete(all_exchange()))


if __name__ == "__main__":
    asyncio.run(_serve()) if sys.argv[1:] == ["serve"] else main()
