"""Cuts of a shard in mid-training, and checkpoints on disk: whole and as they were, or refused by name."""

import dataclasses
import json
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from protos import pserver_pb2 as pb
from ps import frame
from ps.checkpoints.load import Checkpoint
from ps.checkpoints.manifest import Manifest, PartRecord, digest_of, records_of, to_hex
from ps.checkpoints.of_shard import Restoring
from ps.checkpoints.parts import ShardData, chain, layout_digests, shard_shape
from ps.config import CheckpointConfig, OptimizerConfig, Saving
from ps.errors import CheckpointDamaged, ConfigError, Fenced, MalformedFrame, VersionGone
from ps.frame import Bytes
from ps.layout import Layout, Rule, Run, TensorSpec
from ps.optimizers import num_slots
from ps.plan import Plan
from ps.store import Store
from tests.ps.bench import KEY, Bench, settings
from tests.ps.cluster import in_threads

SPECS = [
    TensorSpec(name="w", shape=(3, 7000), dtype="float64"),
    TensorSpec(name="b", shape=(5,), dtype="float32"),
    TensorSpec(name="running", shape=(9,), dtype="float32", rule=Rule.MEAN),
    TensorSpec(name="fixed", shape=(70,), dtype="float32", rule=Rule.FROZEN),
]
ADAM = OptimizerConfig(name="adam", lr=0.1)
EVERY_2 = Saving(config=CheckpointConfig(every_steps=2), file=None)


def bench(num_workers: int = 2, memory: Bytes | None = None, **changes: Any) -> Bench:
    made = Bench(SPECS, settings(num_workers, **{"optimizer": ADAM, "saving": EVERY_2, **changes}), memory)
    if memory is None:
        made.init(made.flat(1.0))
    return made


def gradient(made: Bench, rank: int, step: int) -> Bytes:
    rng = np.random.default_rng((rank, step))
    return made.flat([rng.standard_normal(spec.shape) for spec in made.layout.specs])


def step(made: Bench, number: int) -> None:
    for rank in range(made.config.num_workers):
        made.push_all(rank, number, gradient(made, rank, number))


def as_cut(made: Bench, version: int) -> bytes:
    """What a cut of the version must hold, straight from the store."""
    slots = made.store.slots
    data = np.zeros(shard_shape(made.layout, 0, slots).data_bytes, np.uint8)
    into = ShardData(data, made.mine, slots)
    at = 0
    for block in made.mine.blocks:
        for piece in frame.payload_parts(made.store.copy_of(version, block.run), made.mine, block.run, flat=False):
            into.params[at : at + len(piece)] = piece
            at += len(piece)
    optimizer = [block.run for block in made.mine.blocks if block.rule is Rule.OPTIMIZER]
    for slot in range(slots):
        pieces = [p for run in optimizer for p in frame.payload_parts(made.store.slot_copy(version, slot), made.mine, run, flat=False)]
        into.slots[slot][:] = np.concatenate(pieces)
    for run in optimizer:
        into.updates[run.span] = made.store.updates(version, run)
    return data.tobytes()


def steps_seen(made: Bench, count: int) -> dict[int, bytes]:
    """What the store holds of every version while it stands."""
    seen = {}
    for number in range(count):
        step(made, number)
        seen[number + 1] = as_cut(made, number + 1)
    return seen


# -- cuts ----------------------------------------------------------------------------------------------------------


def test_the_versions_that_are_due_are_cut_as_they_were_when_they_are_written_over() -> None:
    made = bench()
    seen = steps_seen(made, 7)
    assert made.cuts == {2: seen[2], 4: seen[4]}  # 6 will be when step 7 comes
    assert not made.given_up


@cache
def _undisturbed() -> bytes:
    return steps_seen(bench(), 2)[2]


@hypothesis_settings(max_examples=15)
@given(st.permutations([(rank, chunk) for rank in range(2) for chunk in range(6)]))
def test_any_order_of_arrival_gives_the_same_cut(order: list[tuple[int, int]]) -> None:
    made = bench()
    for number in range(4):
        for rank, chunk in order:
            run = next(r for r in made.mine.frames(1) if r.first == chunk)
            if run.stop <= made.mine.num_versioned:
                made.push(rank, number, run, gradient(made, rank, number))
    assert made.cuts == {2: _undisturbed()}


def test_ranks_in_threads_give_the_same_cuts() -> None:
    wanted = bench(3)
    seen = steps_seen(wanted, 6)
    made = bench(3)
    for number in range(6):
        in_threads([lambda rank=rank, number=number: made.push_all(rank, number, gradient(made, rank, number)) for rank in range(3)])
    assert made.cuts == {2: seen[2], 4: seen[4]}


def test_whoever_writes_over_a_run_that_is_being_copied_waits_for_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(1)
    seen = steps_seen(made, 3)  # version 2 is still there, and due
    copying, go_on = threading.Event(), threading.Event()

    def held(name: str) -> None:
        if name == "shard.cut" and threading.current_thread().name == "taker":
            copying.set()
            go_on.wait(10)

    monkeypatch.setattr("ps.checkpoints.cut.hit", held)
    assert made._cuts
    cuts = made._cuts
    taker = threading.Thread(target=lambda: cuts.take(2, lambda: None), name="taker")
    taker.start()
    assert copying.wait(10)
    writer = threading.Thread(target=lambda: step(made, 3))
    writer.start()
    writer.join(0.05)
    assert writer.is_alive()
    go_on.set()
    taker.join(10)
    writer.join(10)
    assert made.cuts == {2: seen[2]}


def test_a_cut_that_nobody_has_finished_writing_keeps_its_bytes_and_the_next_one_is_given_up() -> None:
    made = bench()
    made.holds_cut = True
    seen = steps_seen(made, 8)
    assert made.cuts == {2: seen[2]}
    assert made.given_up == {4: "the one before is still being written", 6: "the one before is still being written"}


@pytest.mark.parametrize("runs_before_the_kill", [0, 1, 3])
def test_a_successor_cuts_what_is_still_whole_and_gives_up_the_rest(runs_before_the_kill: int) -> None:
    made = bench(1)
    seen = steps_seen(made, 3)
    runs = [run for run in made.mine.frames(4096) if run.stop <= made.mine.num_versioned]
    for run in runs[:runs_before_the_kill]:
        made.push(0, 3, run, gradient(made, 0, 3))
    again = bench(1, made.memory.copy())
    for run in runs[runs_before_the_kill:]:
        again.push(0, 3, run, gradient(again, 0, 3))
    assert again.cuts == ({} if runs_before_the_kill else {2: seen[2]})
    for number in (4, 5):
        step(again, number)
    assert again.cuts.get(4) == steps_seen(bench(1), 6)[4]
    assert again.given_up == ({2: "a part of it went with a process"} if runs_before_the_kill else {})


def test_a_version_that_stands_is_cut_when_it_is_asked_for_and_one_that_is_gone_is_not() -> None:
    made = bench()
    seen = steps_seen(made, 3)
    made.shard.cut(3)
    assert made.cuts[3] == seen[3]
    with pytest.raises(VersionGone):
        made.shard.cut(1)
    with pytest.raises(ConfigError):
        bench(saving=None).shard.cut(0)


def test_a_shard_of_nothing_that_changes_is_cut_when_it_is_asked_for() -> None:
    made = Bench([dataclasses.replace(SPECS[3], name="a")], settings(1, saving=EVERY_2))
    made.init(made.flat(2.0))
    made.shard.cut(8)
    assert np.frombuffer(made.cuts[8], np.float32).tolist() == [2.0] * 70


# -- on disk -------------------------------------------------------------------------------------------------------

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


def restored(checkpoint: Checkpoint, num_servers: int) -> list[Bytes]:
    """Flat layouts of values, state and updates (as bytes by chunk) after it was given to so many servers."""
    layout, slots = Layout(SPECS, num_servers), checkpoint.manifest.slots
    flats = [np.zeros(layout.flat_bytes, np.uint8) for _ in range(1 + slots)]
    updates = np.zeros(len(layout), np.int64)
    for mine in layout.shards:
        store = Store(np.zeros(Store.size_bytes(mine, slots=slots, num_norms=0), np.uint8), mine, slots=slots, num_norms=0, key=KEY)
        store.format()
        restoring = Restoring(store, checkpoint.version, 4, 0.5)
        frames = [frame.decode(data) for data in checkpoint.frames(layout, mine.index)]
        for header, payload in frames[1:]:
            restoring.take(header, payload)
        restoring.check_whole()
        store.restore(6, 4, 0.5)
        assert store.initialised and (store.decided, store.rate_factor) == (4, 0.5)
        assert not store.readable(5) and (not mine.num_versioned or store.readable(6))
        for block in mine.blocks:
            for piece in mine.pieces(block.run):
                place = slice(piece.flat, piece.flat + piece.num_bytes)
                flats[0][place] = store.copy_of(6, block.run)[piece.local : piece.local + piece.num_bytes]
                for slot in range(slots) if block.rule is Rule.OPTIMIZER else ():
                    flats[1 + slot][place] = store.slot_copy(6, slot)[piece.local : piece.local + piece.num_bytes]
            if block.rule is Rule.OPTIMIZER:
                updates[mine.chunks[block.run.span]] = store.updates(6, block.run)
    return [*flats, updates.view(np.uint8)]


@pytest.mark.parametrize("num_servers", [1, 2, 3, 5])
def test_a_checkpoint_is_dealt_to_any_number_of_servers(num_servers: int, tmp_path: Path) -> None:
    first = Checkpoint(written(tmp_path / "a", 2))
    wanted, found = restored(first, 2), restored(first, num_servers)
    assert wanted[0].any() and all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))
    other = Checkpoint(written(tmp_path / "b", num_servers))
    assert all(np.array_equal(a, b) for a, b in zip(wanted, restored(other, 3), strict=True))
    assert other.manifest.digest == first.manifest.digest
    assert first.manifest.history[0]["train_loss"] != first.manifest.history[0]["train_loss"]


def test_a_part_is_a_safetensors_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a", 2)
    found = [safetensors.numpy.load_file(path.with_name(f"shard-{s}.safetensors")) for s in (0, 1)]
    assert {name for part in found for name in part} >= {"params/w", "params/fixed", "state.0/w", "state.1/b", "updates"}
    assert sum(len(part["params/w"]) for part in found) == 21_000
    Checkpoint(path)


def _flip(at: Callable[[int], int]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[at(len(data))] ^= 4
        path.write_bytes(data)

    return change


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _newer_part(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"pserver_format":"1"', b'"pserver_format":"2"'))


def _newer_manifest(path: Path) -> None:
    outer = json.loads(path.read_bytes())
    path.write_text(json.dumps({**outer, "format": 2}))


def _foreign(path: Path) -> None:
    outer = json.loads(path.read_bytes())
    path.write_text(json.dumps({**outer, "manifest": {**outer["manifest"], "version": 7}}))


PART, MANIFEST = "shard-1.safetensors", "manifest.json"
DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    (PART, Path.unlink, "cannot be read: No such file"),
    (PART, _cut_short, "is cut short or overwritten"),
    (PART, lambda path: path.write_bytes(b""), "is no part of a checkpoint"),
    (PART, _flip(lambda size: 3), "is no part of a checkpoint"),
    (PART, _flip(lambda size: 60), "header is damaged|in place of|newer|another model"),
    (PART, _flip(lambda size: size // 3), "is damaged: values of w"),
    (PART, _flip(lambda size: size - 400), "is damaged: optimizer state of"),
    (PART, _flip(lambda size: size - 1), "is damaged: optimizer state of"),
    (PART, lambda path: path.write_bytes(path.with_name("shard-0.safetensors").read_bytes()), "holds shard 0 of 2 in place of shard 1 of 2"),
    (PART, lambda path: path.write_bytes(written(path.parent / "x", version=8).with_name(PART).read_bytes()), "is of version 8 in place of 6"),
    (PART, lambda path: path.write_bytes(written(path.parent / "x", seed=1).with_name(PART).read_bytes()), "is damaged: values of"),
    (PART, lambda path: path.write_bytes(written(path.parent / "x", 3).with_name(PART).read_bytes()), "holds shard 1 of 3 in place of"),
    (PART, _newer_part, "was written by a newer pserver"),
    (MANIFEST, Path.unlink, "cannot be read: No such file"),
    (MANIFEST, _cut_short, "is no manifest of a checkpoint, or is cut short"),
    (MANIFEST, _flip(lambda size: size // 2), "has been changed|is no manifest"),
    (MANIFEST, _newer_manifest, "was written by a newer pserver"),
    (MANIFEST, _foreign, "has been changed"),
]


@pytest.mark.parametrize(("file", "damage", "named"), DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_damage_named(file: str, damage: Callable[[Path], None], named: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a")
    damage(path.with_name(file))
    with pytest.raises(CheckpointDamaged, match=f"{file} .*({named})"):
        Checkpoint(path)


def test_every_byte_of_a_part_counts(tmp_path: Path) -> None:
    path = written(tmp_path / "a")
    part = path.with_name(PART)
    data = part.read_bytes()
    for at in np.linspace(0, len(data) - 1, 40).astype(int).tolist():
        part.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(CheckpointDamaged):
            Checkpoint(path)


# -- restored shards -----------------------------------------------------------------------------------------------


def test_what_an_older_generation_sends_after_a_rollback_counts_for_nothing() -> None:
    made = bench(1)
    steps_seen(made, 4)
    again = Bench(SPECS, settings(1, optimizer=ADAM, saving=EVERY_2, generation=2), made.memory.copy())
    again_values = again.store.copy_of(4, Run(0, 1)).copy()
    header = pb.FrameHeader(kind=pb.ABSENT, step=4, first_chunk=0, num_chunks=1, weight=1.0)
    for incarnation in (1, 2):
        with pytest.raises(Fenced):
            again.shard.join(pb.Member(rank=0, incarnation=incarnation, generation=1))
        with pytest.raises(Fenced):
            again.shard.push(pb.Member(rank=0, incarnation=incarnation, generation=1, session=1), header, Run(0, 1), np.zeros(0, np.uint8), print)
    assert again.store.version == 4 and np.array_equal(again.store.copy_of(4, Run(0, 1)), again_values)


def test_a_shard_that_was_not_given_everything_is_not_restored(tmp_path: Path) -> None:
    checkpoint = Checkpoint(written(tmp_path / "a"))
    layout = Layout(SPECS, 1)
    mine, slots = layout.shards[0], checkpoint.manifest.slots
    frames = [frame.decode(data) for data in checkpoint.frames(layout, 0)]
    for left_out in range(1, len(frames)):
        store = Store(np.zeros(Store.size_bytes(mine, slots=slots, num_norms=0), np.uint8), mine, slots=slots, num_norms=0, key=KEY)
        store.format()
        restoring = Restoring(store, 6, -1, 1.0)
        for index, (header, payload) in enumerate(frames[1:], 1):
            if index != left_out:
                restoring.take(header, payload)
        with pytest.raises(MalformedFrame, match="chunks are missing"):
            restoring.check_whole()


def test_the_chain_of_digests_is_the_same_for_every_number_of_servers() -> None:
    flat = np.arange(Layout(SPECS, 1).flat_bytes % 251, dtype=np.uint8)
    flat = np.resize(flat, Layout(SPECS, 1).flat_bytes)
    links = {chain("before", 3, layout_digests(Layout(SPECS, servers), flat)) for servers in (1, 2, 3)}
    flat[17] ^= 1
    assert len(links) == 1 and chain("before", 3, layout_digests(Layout(SPECS, 1), flat)) not in links
