"""What is trained in a history, and what it must come to: a few lines of numpy, without servers, ranks or faults."""

import math
import random
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from ps.codecs import Chunk, Seed, is_lossy, lossy_codec
from ps.config import CommConfig, OptimizerConfig, ServerSettings
from ps.decisions import Decider, EarlyStoppingConfig, PlateauConfig
from ps.frame import Bytes
from ps.layout import Layout, Rule, Run, TensorSpec
from ps.plan import Plan

SIZES = (200, 5, 130, 64)
SEED = 3
LR, MOMENTUM = 0.25, 0.5
"""Powers of two, so that no kernel rounds their products."""
MAX_NORM = 0.75
NAN_STEP = 1
"""Where a gradient is not finite, if such steps are skipped."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Sizes of a history and the features that are on."""

    num_workers: int
    num_servers: int
    steps: int = 3
    big: bool = False
    """The first tensor has two chunks."""
    norm: str = ""
    """"clip" or "skip": steps have two phases."""
    push_format: str = "fp32"
    shared: bool = False
    """Gradients stay in the members' segments."""
    window: int = 8
    bound: int = 1 << 20
    """`comm.out_of_order_bytes`."""
    frame_bytes: int = 1 << 20
    is_driven: bool = True
    """A driver decides at ends of epochs."""
    cut_every: int = 0
    """Versions between two checkpoints; 0: there are none but those that are asked for."""
    num_stages: int = 1
    """Members of every rank."""

    @staticmethod
    def draw(rng: random.Random) -> "Job":
        formats = ("fp32", "fp32", "fp32", "fp32", "int8", "topk")
        job = Job(
            num_workers=rng.choice((1, 2, 2, 2, 2, 2, 3, 4)),
            num_servers=rng.choice((1, 2, 2, 2, 3)),
            steps=rng.choice((2, 2, 3, 4)),
            big=rng.random() < 0.15,
            norm=rng.choice(("", "", "clip", "skip")),
            push_format=rng.choice(formats),
            window=rng.choice((1, 2, 8)),
            bound=rng.choice((0, 1 << 10, 1 << 20)),
            frame_bytes=rng.choice((4096, 1 << 20)),
            is_driven=rng.random() < 0.7,
            cut_every=rng.choice((0, 1, 1, 2)),
        )
        return replace(job, shared=job.push_format == "fp32" and rng.random() < 0.5)

    def split(self, num_stages: int) -> "Job":
        """The same for ranks of several stages, whose gradients travel as they are."""
        return self if num_stages == 1 else replace(self, num_stages=num_stages, push_format="fp32")

    @cached_property
    def specs(self) -> list[TensorSpec]:
        sizes = (8192 + 64, *SIZES[1:]) if self.big else SIZES
        stages = [i * self.num_stages // len(sizes) for i in range(len(sizes))]
        tensors = [
            TensorSpec(name=f"w{i}", shape=(size,), dtype="float64", stage=stage) for i, (size, stage) in enumerate(zip(sizes, stages, strict=True))
        ]
        return [*tensors, TensorSpec(name="sums", shape=(2,), dtype="float64", rule=Rule.SUM, stage=self.num_stages - 1)]

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.specs, self.num_servers)

    @cached_property
    def plan(self) -> Plan:
        return Plan(steps_per_epoch=2, total_steps=self.steps, own_loop=not self.is_driven)

    @cached_property
    def optimizer(self) -> OptimizerConfig:
        max_norm = MAX_NORM if self.norm == "clip" else None
        return OptimizerConfig(lr=LR, momentum=MOMENTUM, max_grad_norm=max_norm, nonfinite="skip" if self.norm == "skip" else "error")

    def is_due(self, version: int) -> bool:
        """Whether a checkpoint of it is taken without anybody's asking."""
        return bool(self.cut_every) and version % self.cut_every == 0

    def settings(self, shard: int) -> ServerSettings:
        comm = CommConfig(out_of_order_bytes=self.bound, push_format=self.push_format, window_frames=self.window)  # type: ignore[arg-type]
        return ServerSettings(
            run_id="explore",
            secret="t",
            shard=shard,
            num_servers=self.num_servers,
            num_workers=self.num_workers,
            num_stages=self.num_stages,
            control_address="driver" if self.is_driven else None,
            optimizer=self.optimizer,
            comm=comm,
        )

    # -- what ranks contribute -------------------------------------------------------------------------------

    def weight(self, rank: int, step: int) -> float:
        """0: the rank has no samples in this step, and is absent everywhere."""
        return 0.0 if self.num_workers > 1 and (rank + 2 * step) % 5 == 4 else float(1 << rank)

    def is_absent(self, tensor: int, rank: int, step: int) -> bool:
        return self.weight(rank, step) == 0.0 or (tensor == 1 and (step == 1 or (rank + step) % 3 == 0))

    def gradient(self, tensor: int, params: Vector, rank: int, step: int) -> Vector:
        """Rounded in every element, so that the order of a sum shows."""
        if tensor == len(self.specs) - 1:
            return np.array([0.1 * (rank + 1) + step, 0.7 + rank])
        if self.norm == "skip" and (tensor, rank, step) == (2, 0, NAN_STEP):
            return np.full(len(params), np.nan)
        return params * (0.3 * (rank + 1)) + 0.1 * (step + 1)

    def initial(self, tensor: int) -> Vector:
        size = self.specs[tensor].num_elements
        return np.zeros(size) if self.specs[tensor].rule is Rule.SUM else np.linspace(-1, 1, size)

    def tensors(self, flat: Bytes) -> list[Vector]:
        """Views of a flat layout."""
        starts = self.layout.tensor_flat.tolist()
        return [flat[at : at + spec.num_bytes].view(np.float64) for at, spec in zip(starts, self.specs, strict=True)]

    def new_decider(self) -> Decider:
        return Decider(EarlyStoppingConfig(), PlateauConfig(metric="train_loss", patience=0, factor=0.5))

    # -- what it must come to --------------------------------------------------------------------------------

    @cached_property
    def reference(self) -> list[Bytes]:
        """Flat layouts of all versions."""
        params = [self.initial(tensor) for tensor in range(len(self.specs))]
        momentum: list[Vector | None] = [None] * len(params)
        residual: dict[tuple[int, int], Vector] = {}
        decider, rate_factor, versions = self.new_decider(), 1.0, [self._flat(params)]
        for step in range(self.steps):
            if step % 2 == 0:
                params[-1] = np.zeros(2)
                if step and self.is_driven:
                    last = self.tensors(versions[-1])[-1]
                    rate_factor = decider.decide(step, {"train_loss": float(last[0])}, validated=True).rate_factor
            left = dict(residual)
            means = [self._mean(tensor, value, step, left) for tensor, value in enumerate(params)]
            factor = self._factor(means[:-1])
            if factor is not None:
                residual = left
                for tensor, mean in enumerate(means):
                    if mean is None:
                        continue
                    if tensor == len(params) - 1:
                        params[tensor] = params[tensor] + mean
                        continue
                    before, mean = momentum[tensor], mean * factor
                    momentum[tensor] = velocity = mean if before is None else MOMENTUM * before + mean
                    params[tensor] = params[tensor] - LR * rate_factor * velocity
            versions.append(self._flat(params))
        return versions

    def _mean(self, tensor: int, params: Vector, step: int, left: dict[tuple[int, int], Vector]) -> Vector | None:
        """The weighted mean in rank order; a sum of the loss tensor. None: absent from all."""
        is_sum = tensor == len(self.specs) - 1
        total: Vector | None = None
        for rank in range(self.num_workers):
            if self.is_absent(tensor, rank, step):
                continue
            sent = self.gradient(tensor, params, rank, step)
            if is_lossy(self.push_format) and not is_sum:
                sent = self._sent(tensor, sent, rank, step, left)
            part = sent if is_sum else sent * self.weight(rank, step)
            total = part if total is None else total + part
        if total is None or is_sum:
            return total
        return total / sum(self.weight(rank, step) for rank in range(self.num_workers))

    def _sent(self, tensor: int, gradient: Vector, rank: int, step: int, left: dict[tuple[int, int], Vector]) -> Vector:
        """What arrives of a gradient and what is left of former ones; the rest is left for the next step."""
        comm = self.settings(0).comm
        codec = lossy_codec(comm.push_format, comm.topk_fraction)
        whole = gradient + left.get((rank, tensor), 0.0)
        chunks = self._chunks(tensor)
        arrived = codec.decode(codec.encode(whole, chunks, Seed(SEED, step, rank)), "float64", chunks)
        left[rank, tensor] = whole - arrived
        return arrived

    def _chunks(self, tensor: int) -> list[Chunk]:
        found = []
        for shard in self.layout.shards:
            for at in np.flatnonzero(shard.tensor == tensor).tolist():
                found.append(Chunk(int(shard.chunks[at]), int(shard.num_bytes[at]) // 8))
        return sorted(found, key=lambda chunk: chunk.id)

    def _factor(self, means: list[Vector | None]) -> float | None:
        """What the gradients are multiplied with; None: the step is skipped."""
        if not self.norm:
            return 1.0
        pieces = [mean[at : at + 8192] for mean in means if mean is not None for at in range(0, len(mean), 8192)]
        squares = [float(torch.from_numpy(piece).square().sum()) for piece in pieces]
        if self.norm == "skip":
            return 1.0 if np.isfinite(squares).all() else None
        return min(1.0, MAX_NORM / (math.sqrt(math.fsum(squares)) + 1e-6))

    def _flat(self, params: list[Vector]) -> Bytes:
        flat = np.zeros(self.layout.flat_bytes, np.uint8)
        for view, value in zip(self.tensors(flat), params, strict=True):
            view[:] = value
        return flat

    def bytes_of(self, shard: int, run: Run, version: int) -> bytes:
        """The reference's bytes of a run."""
        pieces = self.layout.shards[shard].pieces(run)
        flat = self.reference[version]
        return b"".join(flat[piece.flat : piece.flat + piece.num_bytes].tobytes() for piece in pieces)
