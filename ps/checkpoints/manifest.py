"""What a checkpoint is of: beside its parts, as JSON that carries its own digest."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from ps.agreement import MAX_TENSORS
from ps.checkpoints.parts import FORMAT, Digests
from ps.errors import CheckpointDamaged
from ps.layout import Layout, Rule, TensorSpec
from ps.plan import Plan

_MAX_DIMENSIONS = 64
_MAX_SLOTS = 8
_MAX_SHARDS = 1 << 10


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """One file."""

    file: str
    """Its name, in the folder of the manifest."""
    size_bytes: int
    digests: str = field(repr=False)
    """xxh3-64 of every chunk's values, 16 hexadecimal digits each, in the part's order."""
    state_digests: str = field(default="", repr=False)
    """Of every chunk's optimizer state, likewise."""


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """One tensor of the model."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    rule: int
    group: int
    stage: int = 0


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything but the bytes."""

    run: str
    version: int
    """Steps applied: the next step of every rank, with which its sampler goes on."""
    epoch: int
    """Epochs that have ended."""
    step_in_epoch: int
    generation: int
    time_s: float
    versions: dict[str, str]
    """Of what computed."""
    config: dict[str, Any]
    """The run's, resolved."""
    tensors: tuple[TensorRecord, ...]
    initial_digests: str = field(repr=False)
    """xxh3-64 of every chunk of version 0, in layout order."""
    plan: Plan
    slots: int
    """Tensors of optimizer state per parameter."""
    decided: int
    """Version of the newest decision; -1: none."""
    rate_factor: float
    """What decisions have made of the scheduled learning rate."""
    history: list[dict[str, Any]]
    """Rows of metrics.jsonl up to the version: decisions follow from them."""
    shards: tuple[PartRecord, ...]
    ranks: tuple[PartRecord, ...]
    """What each worker's push format has yet to send; none if it leaves nothing out."""
    digest: str
    """BLAKE2b over all chunks' digests in layout order, values first: the same for every number of servers."""

    def _check(self) -> None:
        """Raises ValueError for what no run could have had."""
        specs = self.specs
        if len(specs) > MAX_TENSORS or any(len(spec.shape) > _MAX_DIMENSIONS or min(spec.shape, default=0) < 0 for spec in specs):
            raise ValueError(f"{len(specs)} tensors, of shapes that cannot be")
        if not 0 <= self.slots <= _MAX_SLOTS or not 1 <= len(self.shards) <= _MAX_SHARDS:
            raise ValueError(f"{self.slots} tensors of optimizer state on {len(self.shards)} servers")
        if self.version < 0 or self.plan.steps_per_epoch < 1 or self.plan.total_steps < 1 or self.plan.validate_every < 0:
            raise ValueError(f"version {self.version} of {self.plan}")
        for row in self.history:
            if not isinstance(row.get("step"), int) or not isinstance(row.get("epoch"), int) or "digest" not in row:
                raise ValueError("a row of metrics without a step")

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=t.name, shape=t.shape, dtype=t.dtype, rule=Rule(t.rule), group=t.group, stage=t.stage) for t in self.tensors)

    def to_json(self) -> bytes:
        body = _canonical(_packed(asdict(self)))
        return _canonical({"format": FORMAT, "blake2b": _sum(body), "manifest": json.loads(body)}) + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Manifest":
        """Raises CheckpointDamaged."""
        try:
            outer = json.loads(data)
            format, said, body = int(outer["format"]), outer["blake2b"], outer["manifest"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointDamaged(f"{where} is no manifest of a checkpoint, or is cut short") from error
        if format > FORMAT:
            raise CheckpointDamaged(f"{where} was written by a newer pserver (format {format}, this one reads {FORMAT})")
        if _sum(_canonical(body)) != said:
            raise CheckpointDamaged(f"{where} has been changed: its digest is another one")
        try:
            found = TypeAdapter(cls).validate_python(_unpacked(body))
            found._check()
        except (ValidationError, ValueError, OverflowError) as error:
            raise CheckpointDamaged(f"{where} is not as this version of pserver writes it: {' '.join(str(error).split())[:300]}") from error
        return found


def records_of(specs: Sequence[TensorSpec]) -> tuple[TensorRecord, ...]:
    return tuple(TensorRecord(name=s.name, shape=s.shape, dtype=s.dtype, rule=int(s.rule), group=s.group, stage=s.stage) for s in specs)


def to_hex(digests: Digests) -> str:
    return digests.astype(">u8").tobytes().hex()


def from_hex(text: str) -> Digests:
    """Raises ValueError."""
    return np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64)


def digest_of(layout: Layout, version: int, values: Sequence[Digests], states: Sequence[Digests]) -> str:
    """Of all chunks, in layout order; `values` and `states` by shard."""
    found = np.zeros((2, len(layout)), np.uint64)
    for shard, its, state in zip(layout.shards, values, states, strict=True):
        found[0, shard.chunks] = its
        found[1, shard.chunks[: shard.num_optimizer]] = state
    return hashlib.blake2b(version.to_bytes(8, "little") + found.astype("<u8").tobytes(), digest_size=32).hexdigest()


def _sum(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=32).hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _packed(value: Any) -> Any:
    """With numbers that JSON has no form for as {"float": "nan"}."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if isinstance(value, Mapping):
        return {key: _packed(inner) for key, inner in value.items()}
    return [_packed(inner) for inner in value] if isinstance(value, list | tuple) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        return float(value["float"]) if value.keys() == {"float"} else {key: _unpacked(inner) for key, inner in value.items()}
    return [_unpacked(inner) for inner in value] if isinstance(value, list) else value
