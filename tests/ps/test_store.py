"""The durable state of a shard, killed between any two writes: every kill is a copy of the buffer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.errors import VersionGone
from ps.frame import Bytes
from ps.layout import Layout, Rule, Run, TensorSpec
from ps.store import EMPTY, Store
from tests.ps.bench import KEY

SPECS = [
    TensorSpec(name="w", shape=(9000,), dtype="float64"),
    TensorSpec(name="b", shape=(3,), dtype="float32"),
    TensorSpec(name="f", shape=(70,), dtype="float32", rule=Rule.FROZEN),
    TensorSpec(name="m", shape=(4,), dtype="float32", rule=Rule.MEAN),
]
SHARD = Layout(SPECS, 1).shards[0]
RUNS = [run for run in SHARD.frames(4096) if run.stop <= SHARD.num_versioned]
NORMS = 3


def attach(memory: Bytes, *, slots: int = 1, key: bytes = KEY) -> Store:
    return Store(memory, SHARD, slots=slots, num_norms=NORMS, key=key)


def fresh() -> tuple[Bytes, Store]:
    memory = np.zeros(Store.size_bytes(SHARD, slots=1, num_norms=NORMS), np.uint8)
    store = attach(memory)
    store.format()
    return memory, store


def initialised() -> tuple[Bytes, Store]:
    memory, store = fresh()
    for run in SHARD.frames(4096):
        store.params(0, run)[:] = 0
    store.words[:] = 0
    return memory, store


def written(store: Store, version: int, run: Run) -> bool:
    """Whether parameters, slots and update counts of the run are those of `version` (see `update`)."""
    if (store.params(version, run) != version).any():
        return False
    if SHARD.block_of(run).rule is not Rule.OPTIMIZER:
        return True
    return all((slot == version).all() for slot in store.state(version, run)) and bool((store.updates(version, run) == version).all())


def update(store: Store, step: int, run: Run) -> None:
    """Every byte of version t is t."""
    store.params(step + 1, run)[:] = step + 1
    if SHARD.block_of(run).rule is Rule.OPTIMIZER:
        for slot in store.state(step + 1, run):
            slot[:] = step + 1
        store.updates(step + 1, run)[:] = step + 1


def writes(store: Store, step: int, runs: list[Run]) -> list[object]:
    """The writes of a step, one by one, in the order of the shard."""
    todo: list[object] = []
    for run in runs:
        todo += [
            lambda: store.raise_oldest(step),
            lambda run=run: store.fill_next(step, run),
            lambda run=run: update(store, step, run),
            lambda run=run: store.commit(step, run),
        ]
    return todo


def test_new_memory_holds_nothing_until_it_is_formatted_and_initialised() -> None:
    memory = np.zeros(Store.size_bytes(SHARD, slots=1, num_norms=NORMS), np.uint8)
    assert not attach(memory).attach()
    attach(memory).format()
    store = attach(memory)
    assert store.attach() and not store.initialised and store.version == -1 and store.oldest == -1 and store.recorded_step == -1
    assert not store.readable(0)


def test_memory_of_another_model_run_or_generation_is_not_attached() -> None:
    memory, _ = fresh()
    assert not attach(memory, key=bytes(32)).attach()


@given(st.permutations(RUNS), st.permutations(RUNS), st.data())
def test_a_kill_between_any_two_writes_leaves_a_whole_version(first: list[Run], second: list[Run], data: st.DataObject) -> None:
    memory, store = initialised()
    todo = writes(store, 0, first) + writes(store, 1, second)
    for write in todo[: data.draw(st.integers(0, len(todo)))]:
        write()  # type: ignore[operator]
    survivor = attach(memory.copy())
    assert survivor.attach()
    version = survivor.version
    for asked in range(3):
        if survivor.readable(asked):
            assert asked in (version, version - 1)
            assert all(written(survivor, asked, run) for run in RUNS)
    assert survivor.readable(version)
    for run in RUNS:
        step = int(survivor.words[run.first])
        assert written(survivor, step, run)
        if step == version and version < 2:
            for write in writes(survivor, step, [run]):
                write()  # type: ignore[operator]
    assert survivor.version == min(version + 1, 2) and all(written(survivor, survivor.version, run) for run in RUNS)


def test_the_last_version_is_readable_until_it_is_about_to_be_overwritten() -> None:
    _, store = initialised()
    for write in writes(store, 0, RUNS):
        write()  # type: ignore[operator]
    store.check_readable(0)
    store.check_readable(1)
    store.raise_oldest(1)
    store.check_readable(1)
    for gone in (0, 2, -1):
        with pytest.raises(VersionGone, match=f"holds version 1, not {gone}: join again"):
            store.check_readable(gone)


def test_oldest_never_falls() -> None:
    _, store = initialised()
    store.raise_oldest(5)
    store.raise_oldest(3)
    assert store.oldest == 5


def test_a_record_is_valid_only_when_it_is_whole() -> None:
    memory, store = initialised()
    store.record(3, np.array([1.0, 2.0, 3.0]))
    before = memory.copy()
    store.record(4, np.array([4.0, 5.0, 6.0]))
    assert (attach(memory).recorded_step, attach(memory).norms.tolist()) == (4, [4.0, 5.0, 6.0])
    assert (attach(before).recorded_step, attach(before).norms.tolist()) == (3, [1.0, 2.0, 3.0])
    seen = []

    class Watched(np.ndarray):
        """Tells what a kill at this write would leave."""

        def __setitem__(self, key: object, value: object) -> None:
            seen.append(attach(memory).recorded_step)
            super().__setitem__(key, value)  # type: ignore[index]

    store.norms = store.norms.view(Watched)
    store.record(5, np.array([7.0, 8.0, 9.0]))
    assert seen == [-1] and attach(memory).recorded_step == 5


def test_a_decision_survives_and_is_valid_only_when_it_is_whole() -> None:
    memory, store = initialised()
    assert (store.decided, store.rate_factor) == (-1, 1.0)
    store.decide(7, 0.25)
    survivor = attach(memory.copy())
    assert (survivor.decided, survivor.rate_factor) == (7, 0.25)


def test_a_decision_that_is_cut_short_leaves_the_one_before() -> None:
    class Killed(Exception):
        """In the middle of a decision."""

    class DiesWhenRead:
        def __float__(self) -> float:
            raise Killed

    memory, store = initialised()
    for version, factor in ((3, 0.5), (6, 0.25), (9, 0.125)):
        before = (store.decided, store.rate_factor)
        with pytest.raises(Killed):
            store.decide(version, DiesWhenRead())  # type: ignore[arg-type]
        assert (attach(memory).decided, attach(memory).rate_factor) == before
        store.decide(version, factor)
        assert (attach(memory).decided, attach(memory).rate_factor) == (version, factor)


def test_frozen_chunks_have_one_copy_and_no_word() -> None:
    _, store = initialised()
    frozen = SHARD.blocks[-1].run
    assert np.shares_memory(store.params(0, frozen), store.params(1, frozen))
    for write in writes(store, 0, RUNS):
        write()  # type: ignore[operator]
    assert store.version == 1 and store.words[frozen.first] == 0


def test_a_shard_without_versioned_chunks_never_holds_anybody_back() -> None:
    for specs in ([], [TensorSpec(name="f", shape=(3,), dtype="float32", rule=Rule.FROZEN)]):
        shard = Layout(specs, 1).shards[0]
        store = Store(np.zeros(Store.size_bytes(shard, slots=0, num_norms=0), np.uint8), shard, slots=0, num_norms=0, key=KEY)
        store.format()
        store.words[:] = 0
        assert store.version == EMPTY and store.initialised


def test_copies_slots_and_counts_do_not_overlap() -> None:
    memory, store = fresh()
    run = SHARD.blocks[0].run
    parts = [store.params(v, run) for v in (0, 1)] + [slot for v in (0, 1) for slot in store.state(v, run)]
    parts += [store.updates(v, run) for v in (0, 1)] + [store.words, store.norms]
    assert not any(np.shares_memory(a, b) for i, a in enumerate(parts) for b in parts[:i])
    assert all(part.ctypes.data % 64 == memory.ctypes.data % 64 for part in parts)
