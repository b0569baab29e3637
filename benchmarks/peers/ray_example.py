"""A synchronous parameter server as Ray's documentation teaches it: one actor holds the weights, gradients go through the object store."""

from typing import Any

import numpy as np
import ray
import torch

from benchmarks.workload import LEARNING_RATE, Workload, model_bytes_of, take_part


class ParameterServer:
    """Adds the workers' gradients, updates the weights and hands them out."""

    def __init__(self, workload: Workload) -> None:
        torch.set_num_threads(1)
        self.model = workload.model()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, fused=True)

    def apply_gradients(self, *gradients: list[np.ndarray]) -> list[np.ndarray]:
        for parameter, parts in zip(self.model.parameters(), zip(*gradients, strict=True), strict=True):
            parameter.grad = torch.from_numpy(np.stack(parts).sum(axis=0) / len(parts))
        self.optimizer.step()
        return self.get_weights()

    def get_weights(self) -> list[np.ndarray]:
        return [parameter.detach().numpy() for parameter in self.model.parameters()]


class DataWorker:
    """Computes gradients for the weights it is given."""

    def __init__(self, workload: Workload, rank: int) -> None:
        torch.set_num_threads(1)
        self.workload, self.rank = workload, rank
        self.model = workload.model()

    def compute_gradients(self, weights: list[np.ndarray]) -> list[np.ndarray]:
        with torch.no_grad():
            for parameter, values in zip(self.model.parameters(), weights, strict=True):
                parameter.copy_(torch.tensor(values))
        self.model.zero_grad()
        self.workload.loss(self.model, self.rank).backward()  # type: ignore[no-untyped-call]
        return [parameter.grad.numpy() for parameter in self.model.parameters() if parameter.grad is not None]


def main() -> None:
    workload = Workload.here()
    size = max(100_000_000, model_bytes_of(workload.width) * (2 * workload.workers + 4))
    system = {"worker_niceness": 0}  # 15 by default: on a busy machine its workers would starve beside the other contenders
    ray.init(num_cpus=workload.workers + 1, include_dashboard=False, object_store_memory=size, log_to_driver=False, _system_config=system)
    server: Any = ray.remote(ParameterServer).remote(workload)
    workers: list[Any] = [ray.remote(DataWorker).remote(workload, rank) for rank in range(workload.workers)]
    weights = server.get_weights.remote()

    def step() -> None:
        nonlocal weights
        gradients = [worker.compute_gradients.remote(weights) for worker in workers]
        weights = server.apply_gradients.remote(*gradients)
        ray.wait([weights], fetch_local=False)

    take_part(workload, 0, lambda variant: step)
    ray.shutdown()


if __name__ == "__main__":
    main()
