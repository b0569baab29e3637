"""Checkpoints on disk: whole and as they were, on any number of servers, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from ps import frame
from ps.checkpoints.load import Checkpoint
from ps.checkpoints.of_shard import Restoring
from ps.checkpoints.parts import chain, layout_digests
from ps.errors import CheckpointDamaged, MalformedFrame
from ps.frame import Bytes
from ps.layout import Layout, Rule
from ps.store import Store
from tests.ps.bench import KEY
from tests.ps.written import SPECS, written


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
