"""PyTorch DDP over gloo on this machine, fused Adam; variants "BUCKET_MB:VIEWS"."""

import os
import socket
import subprocess
import sys

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.workload import LEARNING_RATE, Step, Workload, take_part

VARIANTS = [f"{bucket_mb}:{views}" for bucket_mb in (5, 25, 100) for views in ("views", "copies")]


def main() -> None:
    workload = Workload.here()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(workload.workers)}
    command = [sys.executable, "-m", __spec__.name]
    members = [subprocess.Popen(command, env={**environment, "RANK": str(rank)}) for rank in range(workload.workers)]
    for member in members:
        member.wait()


def member() -> None:
    """One rank."""
    torch.set_num_threads(1)
    workload = Workload.here()
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    current: list[object] = []

    def step_of(variant: str) -> Step:
        current.clear()  # the model before, with its buckets
        model, step = _variant(workload, rank, variant)
        current.append(model)
        return step

    take_part(workload, rank, step_of)
    distributed.destroy_process_group()


def _variant(workload: Workload, rank: int, variant: str) -> tuple[object, Step]:
    bucket_mb, views = variant.split(":")
    model = DistributedDataParallel(workload.model(), bucket_cap_mb=int(bucket_mb), gradient_as_bucket_view=views == "views")
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        workload.loss(model, rank).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return model, step


if __name__ == "__main__":
    member() if "RANK" in os.environ else main()
