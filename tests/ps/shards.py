"""A shard with three tensors, gradients for it, and what must come of them."""

import numpy as np

from ps.config import OptimizerConfig
from ps.frame import Bytes
from ps.layout import TensorSpec
from tests.ps.bench import Bench, settings, specs_of

SGD = OptimizerConfig(lr=0.5)
SIZES = (20_000, 3, 8192)


def bench(num_workers: int, *, specs: list[TensorSpec] | None = None, optimizer: OptimizerConfig = SGD, **changes: object) -> Bench:
    made = Bench(specs or specs_of(*SIZES), settings(num_workers, optimizer=optimizer, **changes))
    made.init(made.flat(1.0))
    return made


def gradient(made: Bench, rank: int, step: int = 0) -> Bytes:
    rng = np.random.default_rng((rank, step))
    return made.flat([rng.standard_normal(spec.shape) for spec in made.layout.specs])


def expected(made: Bench, weights: list[float], lr: float = 0.5) -> list[np.ndarray]:
    """The weighted mean in rank order, then a plain step."""
    flats = [gradient(made, rank).view(np.float64) for rank in range(len(weights))]
    total = flats[0] * weights[0]
    for flat, weight in zip(flats[1:], weights[1:], strict=True):
        total = total + flat * weight
    mean = (total / sum(weights)).view(np.uint8)
    starts = made.layout.tensor_flat.tolist()
    return [1.0 - lr * mean[at : at + s.num_bytes].view(np.float64).reshape(s.shape) for s, at in zip(made.layout.specs, starts, strict=True)]


def same(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
