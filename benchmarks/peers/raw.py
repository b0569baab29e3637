"""The rate of bare gRPC: bytes on one long-lived stream between two processes, no serializers; variants are message sizes in MiB, and, of what
is divided among several streams, their number: "1 x 4".
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from benchmarks.workload import Step, Workload, model_bytes_of, take_part

VARIANTS = ["1", "2", "4"]
SEVERAL = ["1 x 1", "1 x 2", "1 x 4"]
MOST = 4
_LIMITS = [("grpc.max_receive_message_length", 8 << 20), ("grpc.max_send_message_length", 8 << 20)]


def main() -> None:
    workload = Workload.here()
    server = subprocess.Popen([sys.executable, "-m", __spec__.name, "server"], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    port = int(server.stdout.readline())
    options = [*_LIMITS, ("grpc.use_local_subchannel_pool", 1)]  # every channel has a connection of its own
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", options=options)) for _ in range(MOST)]
        sends: list[grpc.StreamUnaryMultiCallable[bytes, bytes]] = [channel.stream_unary("/raw/Send") for channel in channels]
        threads = stack.enter_context(ThreadPoolExecutor(MOST))
        size = model_bytes_of(workload.width)

        def step_of(variant: str) -> Step:
            mib, _, count = variant.partition(" x ")
            message, streams = bytes(int(mib) << 20), sends[: int(count or 1)]
            part = [message] * (size // len(message) // len(streams))
            return lambda: list(threads.map(lambda send: send(iter(part)), streams))

        take_part(workload, 0, step_of)
    server.terminate()
    server.wait()


def serve() -> None:
    def take(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        for _ in messages:
            pass
        return b""

    server = grpc.server(ThreadPoolExecutor(MOST), options=_LIMITS)
    handler = grpc.method_handlers_generic_handler("raw", {"Send": grpc.stream_unary_rpc_method_handler(take)})
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    serve() if sys.argv[1:] else main()
