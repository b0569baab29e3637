"""Cuts of a shard in mid-training: the bytes of their version, whatever the timing."""

import dataclasses
import threading
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from protos import pserver_pb2 as pb
from ps import frame
from ps.checkpoints.parts import ShardData, shard_shape
from ps.config import CheckpointConfig, Saving
from ps.errors import ConfigError, Fenced, VersionGone
from ps.frame import Bytes
from ps.layout import Rule, Run
from tests.ps.bench import Bench, settings
from tests.ps.cluster import in_threads
from tests.ps.written import ADAM, SPECS

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


def test_a_successor_does_not_cut_a_version_of_which_its_predecessor_had_written_over_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(1)
    steps_seen(made, 3)
    left: list[Bytes] = []

    def killed(name: str) -> None:
        if name == "shard.written" and not left:
            left.append(made.memory.copy())  # a run of step 3 is written, but does not count yet

    monkeypatch.setattr("ps.work.hit", killed)
    step(made, 3)
    again = bench(1, left[0])
    step(again, 3)
    assert 2 not in again.cuts
    assert again.given_up == {2: "a part of it went with a process"}
    for number in (4, 5):
        step(again, number)
    assert again.cuts == {4: steps_seen(bench(1), 5)[4]}


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
