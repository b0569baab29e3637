"""Plain TCP from worker-0 to server-0: the model's bytes once; what the links are worth."""

import socket
import subprocess
import sys

from benchmarks.places import command_in, host_of
from benchmarks.workload import Workload, take_part

PORT = 7002


def main() -> None:
    places = Workload.here().places
    receiver = subprocess.Popen(command_in(places, host_of("server", 0), "benchmarks.peers.tcp", "receive"), stdout=subprocess.PIPE)
    assert receiver.stdout
    receiver.stdout.readline()
    subprocess.run(command_in(places, host_of("worker", 0), "benchmarks.peers.tcp", "send"), check=True)
    receiver.wait()


def send() -> None:
    """Takes part, sending."""
    workload = Workload.here()
    payload = bytes(workload.model_bytes)
    with socket.create_connection((workload.places[host_of("server", 0)][1], PORT)) as connection:

        def step() -> None:
            connection.sendall(payload)
            connection.recv(1)

        take_part(workload, 0, lambda variant: step)


def receive() -> None:
    """Takes the bytes and answers each model with one byte, until the sender hangs up."""
    size, got = Workload.here().model_bytes, 0
    with socket.create_server(("", PORT)) as listener:
        print("up", flush=True)
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(1 << 20):
                got += len(data)
                if got == size:
                    connection.send(b"!")
                    got = 0


if __name__ == "__main__":
    {"send": send, "receive": receive}.get("".join(sys.argv[1:]), main)()
