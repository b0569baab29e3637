"""Residuals of lossy push formats: nothing is lost, a repeated push brings the same bytes, a successor goes on with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protos import pserver_pb2 as pb
from ps import frame, segments
from ps.codecs import CODECS, Codec, Int8, TopK
from ps.config import CommConfig
from ps.errors import ResourcesMissing, StateLost
from ps.layout import Layout, Rule, Run, ShardLayout, TensorSpec
from ps.rank_state import RankState
from ps.segments import SegmentBusy, read_segment

SPECS = [
    TensorSpec(name="w", shape=(3, 8192), dtype="float32"),
    TensorSpec(name="b", shape=(100,), dtype="float32"),
    TensorSpec(name="d", shape=(700,), dtype="float64"),
    TensorSpec(name="n", shape=(5,), dtype="float32", rule=Rule.MEAN),
]
LAYOUTS = {servers: Layout(SPECS, servers) for servers in (1, 2, 4)}
LOSSY: dict[str, Codec] = {"int8": Int8(), "topk": TopK(0.05)}


def state_of(name: str, memory: np.ndarray | None = None, *, skip_nonfinite: bool = False) -> RankState:
    memory = np.zeros(RankState.size_bytes(LAYOUTS[1]), np.uint8) if memory is None else memory
    return RankState(memory, LAYOUTS[1], LOSSY[name], seed=1, rank=2, skip_nonfinite=skip_nonfinite, key=name.ljust(32).encode())


def gradient(seed: int) -> np.ndarray:
    """A flat layout."""
    flat = np.zeros(LAYOUTS[1].flat_bytes, np.uint8)
    rng = np.random.default_rng(seed)
    for spec, start in zip(SPECS, LAYOUTS[1].tensor_flat.tolist(), strict=True):
        flat[start : start + spec.num_bytes] = rng.standard_normal(spec.num_elements).astype(spec.dtype).view(np.uint8)
    return flat


def runs_of(layout: ShardLayout, frame_bytes: int) -> list[Run]:
    return [run for run in layout.frames(frame_bytes) if run.stop <= layout.num_optimizer]


def pushed(state: RankState, values: np.ndarray, step: int, *, servers: int = 1, frame_bytes: int = 1 << 20) -> dict[int, bytes]:
    """The record of every chunk, by its number in the whole layout."""
    records = {}
    for shard in LAYOUTS[servers].shards:
        for run in reversed(runs_of(shard, frame_bytes)):
            payload = state.encode(shard, run, values, step)
            chunks = frame.chunks_of(shard, run)
            name = "int8" if isinstance(state._codec, Int8) else "topk"
            ends = np.cumsum(CODECS[name].sizes(payload, shard.block_of(run).dtype, chunks)).tolist()
            records |= {chunk.id: payload[a:b].tobytes() for chunk, a, b in zip(chunks, [0, *ends], ends, strict=False)}
    return records


def elements(flat: np.ndarray) -> np.ndarray:
    """Those of all tensors with an optimizer, in float64."""
    starts = LAYOUTS[1].tensor_flat.tolist()
    return np.concatenate([flat[a : a + s.num_bytes].view(s.dtype).astype(float) for s, a in zip(SPECS[:3], starts, strict=False)])


def decoded(state: RankState, records: dict[int, bytes]) -> np.ndarray:
    flat, shard = np.zeros(LAYOUTS[1].flat_bytes, np.uint8), LAYOUTS[1].shards[0]
    for i in range(shard.num_optimizer):
        run = Run(i, i + 1)
        payload = np.frombuffer(records[int(shard.chunks[i])], np.uint8)
        values = state._codec.decode(payload, shard.block_of(run).dtype, frame.chunks_of(shard, run))
        frame.land(values.view(np.uint8), flat, shard, run, flat=True)
    return elements(flat)


@given(st.sampled_from(sorted(LOSSY)), st.lists(st.sampled_from(["push", "again", "skip", "absent"]), min_size=1, max_size=12), st.integers(0, 99))
@example("int8", ["push"] * 40, 0)
@example("topk", ["push"] * 40, 0)
@settings(max_examples=40)
def test_what_was_sent_and_what_is_left_is_all_that_was_to_be_pushed(name: str, events: list[str], seed: int) -> None:
    state, shard = state_of(name), LAYOUTS[1].shards[0]
    asked = np.zeros(len(elements(gradient(0))))
    sent, moved = np.zeros_like(asked), np.ones_like(asked)
    for step, event in enumerate(events):
        values = gradient(seed * 1000 + step)
        if event == "absent":
            for run in runs_of(shard, 4096):
                state.keep(shard, run, step)
        else:
            records = pushed(state, values, step)
            if event == "again":
                assert pushed(state, values, step, frame_bytes=4096) == records
            if event != "skip":
                asked, moved = asked + elements(values), moved + np.abs(elements(values))
                sent += decoded(state, records)
        state.settle(step, skipped=event == "skip")
    error = np.abs(sent + elements(state.residual(len(events))) - asked)
    assert (error <= moved * len(events) * 16 * np.finfo(np.float32).eps).all()


@pytest.mark.parametrize("name", sorted(LOSSY))
def test_a_chunk_has_the_same_bytes_for_any_number_of_servers_and_any_size_of_frames(name: str) -> None:
    found = []
    for servers, frame_bytes in ((1, 1 << 20), (2, 4096), (4, 65536)):
        state = state_of(name)
        for step in range(3):
            records = pushed(state, gradient(step), step, servers=servers, frame_bytes=frame_bytes)
            state.settle(step, skipped=False)
        found.append(records)
    assert found[0] == found[1] == found[2] and len(found[0]) == 5


@pytest.mark.parametrize("name", sorted(LOSSY))
def test_a_successor_that_is_at_the_same_step_pushes_the_same_bytes(name: str) -> None:
    memory = np.zeros(RankState.size_bytes(LAYOUTS[1]), np.uint8)
    dead = state_of(name, memory)
    pushed(dead, gradient(0), 0)
    dead.settle(0, skipped=False)
    records = pushed(dead, gradient(1), 1)
    successor = state_of(name, memory)
    successor.resume(1, skipped=False)
    assert pushed(successor, gradient(1), 1) == records


def test_a_step_that_is_done_once_more_after_it_was_applied_leaves_no_trace() -> None:
    state, shard = state_of("int8"), LAYOUTS[1].shards[0]
    for step in (0, 1):
        pushed(state, gradient(step), step)
        state.settle(step, skipped=False)
    before = [state.residual(version).copy() for version in (1, 2)]
    assert len(pushed(state, gradient(7), 1)) == 5
    state.keep(shard, Run(0, 1), 1)
    assert state.version == 2
    assert all((state.residual(version) == kept).all() for version, kept in zip((1, 2), before, strict=True))


@pytest.mark.parametrize("skipped", [False, True])
def test_a_successor_that_has_not_seen_the_end_of_a_step_learns_it_when_it_joins(skipped: bool) -> None:
    memory = np.zeros(RankState.size_bytes(LAYOUTS[1]), np.uint8)
    dead = state_of("int8", memory)
    pushed(dead, gradient(0), 0)
    dead.settle(0, skipped=False)
    before = dead.residual(1).copy()
    pushed(dead, gradient(1), 1)
    successor = state_of("int8", memory)
    successor.resume(2, skipped=skipped)
    assert (successor.residual(2) == before).all() == skipped
    assert successor.version == 2


def test_lost_memory_is_named_with_what_to_do() -> None:
    state_of("int8").resume(0, skipped=False)
    for version in (1, 2, 7):
        with pytest.raises(StateLost, match=rf"rank 2 joins at version {version}, .* is of version 0: its memory went with its host"):
            state_of("int8").resume(version, skipped=False)


def test_memory_of_another_format_or_model_is_not_taken_for_ones_own() -> None:
    memory = np.zeros(RankState.size_bytes(LAYOUTS[1]), np.uint8)
    dead = state_of("int8", memory)
    pushed(dead, gradient(0), 0)
    dead.settle(0, skipped=False)
    assert not state_of("int8", memory).is_new
    other = state_of("topk", memory)
    assert other.is_new and other.version == 0 and not other.residual(1).any()


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(segments, "SHM", tmp_path)
    return tmp_path


def opened(rank: int = 0, generation: int = 1) -> RankState:
    member = pb.Member(rank=rank, generation=generation, incarnation=1)
    return RankState.open("run", member, LAYOUTS[2], CommConfig(push_format="int8"), seed=0, skip_nonfinite=False)


def test_a_file_is_one_ranks_of_one_generation_and_outlives_its_process_only(shm: Path) -> None:
    first, other, later = opened(), opened(rank=1), opened(generation=2)
    assert len(list(shm.iterdir())) == 3
    with pytest.raises(ResourcesMissing, match="rank 0 cannot have .* belongs to a living process"):
        opened()
    first.settle(0, skipped=False)
    first.close(remove=False)
    successor = opened()
    assert successor.version == 1 and not successor.is_new
    for state in (successor, other, later):
        state.close()
    assert not list(shm.iterdir())


@pytest.mark.parametrize("skips", [False, True])
def test_what_a_dead_rank_had_yet_to_send_is_read_out_of_a_copy_of_its_memory(shm: Path, skips: bool) -> None:
    state = opened()
    pushed(state, gradient(0), 0, servers=2)
    left = state.packed(1)

    def behind(read: Callable[[str], Any]) -> Any:
        comm = CommConfig(push_format="int8")
        return RankState.left_behind(read, "run", 1, 0, 1, LAYOUTS[2], comm, seed=0, skip_nonfinite=skips)

    with pytest.raises(SegmentBusy, match="belongs to a living process"):
        behind(read_segment)
    state.close(remove=False)
    (path,) = shm.iterdir()
    before = path.read_bytes()
    if skips:
        with pytest.raises(StateLost, match="died before it knew whether step 0 was skipped"):
            behind(read_segment)
    else:
        assert behind(read_segment).tolist() == left.tolist()
    assert path.read_bytes() == before
    for lost in (lambda _: None, lambda _: np.zeros(100, np.uint8), lambda _: np.zeros(len(before), np.uint8)):
        with pytest.raises(StateLost):
            behind(lost)


def test_a_dead_ranks_file_stays_while_the_run_has_its_driver(shm: Path) -> None:
    with segments.run_mark("run"):
        opened().close(remove=False)
        segments.remove_dead_segments()
        assert len(list(shm.iterdir())) == 2
    assert not list(shm.iterdir())
    opened().close(remove=False)
    segments.remove_dead_segments()
    assert not list(shm.iterdir())
