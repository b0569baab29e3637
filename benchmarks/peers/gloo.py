"""What DDP does with the gradients, and nothing else: all-reduce over gloo between virtual hosts; variants are bucket sizes in MB."""

import os
import subprocess

import torch
from torch import distributed

from benchmarks.places import command_in, host_of
from benchmarks.workload import Step, Workload, take_part

VARIANTS = ["1", "5", "25"]


def main() -> None:
    workload = Workload.here()
    master = workload.places[host_of("worker", 0)][1]
    environment = {**os.environ, "MASTER_ADDR": master, "MASTER_PORT": "7001", "WORLD_SIZE": str(workload.workers), "GLOO_SOCKET_IFNAME": "eth0"}
    members = [
        subprocess.Popen(command_in(workload.places, host_of("worker", rank), "benchmarks.peers.gloo"), env={**environment, "RANK": str(rank)})
        for rank in range(workload.workers)
    ]
    for member in members:
        member.wait()


def member() -> None:
    """One rank. All buckets are on their way at once, as at the end of a backward pass without compute."""
    torch.set_num_threads(1)
    workload = Workload.here()
    distributed.init_process_group("gloo")
    elements = workload.model_bytes // 4

    def step_of(variant: str) -> Step:
        buckets = torch.ones(elements).split(int(variant) * 1_000_000 // 4)  # type: ignore[no-untyped-call]

        def step() -> None:
            for work in [distributed.all_reduce(bucket, async_op=True) for bucket in buckets]:
                work.wait()

        return step

    take_part(workload, distributed.get_rank(), step_of)
    distributed.destroy_process_group()


if __name__ == "__main__":
    member() if "RANK" in os.environ else main()
