"""Checkpoints on disk, made without a run."""

from pathlib import Path

import numpy as np

from ps.checkpoints.manifest import Manifest, PartRecord, digest_of, records_of, to_hex
from ps.checkpoints.parts import ShardData, shard_shape
from ps.config import OptimizerConfig
from ps.layout import Layout, Rule, TensorSpec
from ps.optimizers import num_slots
from ps.plan import Plan

SPECS = [
    TensorSpec(name="w", shape=(3, 7000), dtype="float64"),
    TensorSpec(name="b", shape=(5,), dtype="float32"),
    TensorSpec(name="running", shape=(9,), dtype="float32", rule=Rule.MEAN),
    TensorSpec(name="fixed", shape=(70,), dtype="float32", rule=Rule.FROZEN),
]
ADAM = OptimizerConfig(name="adam", lr=0.1)

PLAN = Plan(4, 1000)


def written(folder: Path, num_servers: int = 2, version: int = 6, seed: int = 0) -> Path:
    """A checkpoint of noise; the path of its manifest."""
    folder.mkdir()
    layout, slots = Layout(SPECS, num_servers), num_slots(ADAM)
    values, states, records = [], [], []
    for index, mine in enumerate(layout.shards):
        rng = np.random.default_rng(seed)
        whole = rng.integers(0, 255, 3 * layout.flat_bytes, np.uint8)
        shape = shard_shape(layout, index, slots)
        data = np.zeros(shape.data_bytes, np.uint8)
        part = ShardData(data, mine, slots)
        packed = [np.concatenate([whole[s * layout.flat_bytes + mine.flat[c] :][: mine.num_bytes[c]] for c in range(len(mine))]) for s in range(3)]
        part.params[:] = packed[0]
        for slot in range(slots):
            part.slots[slot][:] = packed[1 + slot][: len(part.slots[slot])]
        part.updates[:] = mine.chunks[: mine.num_optimizer] + 3
        header = shape.header(version)
        (folder / f"shard-{index}.safetensors").write_bytes(header + data.tobytes())
        values.append(part.digests())
        states.append(part.state_digests())
        records.append(
            PartRecord(
                file=f"shard-{index}.safetensors",
                size_bytes=len(header) + len(data),
                digests=to_hex(values[-1]),
                state_digests=to_hex(states[-1]),
            )
        )
    manifest = Manifest(
        run="run",
        version=version,
        epoch=1,
        step_in_epoch=2,
        generation=1,
        time_s=1.5,
        versions={},
        config={},
        tensors=records_of(layout.specs),
        initial_digests=to_hex(np.arange(len(layout), dtype=np.uint64)),
        plan=PLAN,
        slots=slots,
        decided=4,
        rate_factor=0.5,
        history=[{"epoch": 1, "step": 4, "train_loss": float("nan"), "digest": "0"}],
        shards=tuple(records),
        ranks=(),
        digest=digest_of(layout, version, values, states),
    )
    path = folder / "manifest.json"
    path.write_bytes(manifest.to_json())
    return path
