"""One shard as an object: what a contribution does, whatever the order and the threads in which contributions come."""

import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from protos import pserver_pb2 as pb
from ps import frame
from ps.barrier import Verdict
from ps.config import CommConfig, OptimizerConfig
from ps.errors import ModelMismatch, NonFinite, VersionGone
from ps.frame import Bytes
from ps.layout import Rule, Run, TensorSpec
from ps.plan import Plan
from ps.streams import Stream
from tests.ps.bench import Bench, settings, specs_of
from tests.ps.cluster import in_threads
from tests.ps.shards import SGD, SIZES, bench, expected, gradient, same

# -- order ---------------------------------------------------------------------------------------------------------


@given(st.permutations([(rank, chunk) for rank in range(3) for chunk in range(5)]))
def test_any_order_of_arrival_gives_the_bits_of_the_rank_order(order: list[tuple[int, int]]) -> None:
    made = bench(3)
    for rank, chunk in order:
        made.push(rank, 0, Run(chunk, chunk + 1), gradient(made, rank), weight=rank + 1.0)
    assert made.store.version == 1
    assert same(made.values(), expected(made, [1.0, 2.0, 3.0]))


@pytest.mark.parametrize("bound", [0, 70_000, 1 << 30])
def test_threads_give_the_same_bits_under_any_bound_on_early_payload(bound: int) -> None:
    for seed in range(5):
        made = bench(4, comm=CommConfig(out_of_order_bytes=bound))
        most = 0

        def member(rank: int, made: Bench = made, seed: int = seed) -> None:
            nonlocal most
            made.join(rank)
            runs = [Run(c, c + 1) for c in range(5)]
            np.random.default_rng((seed, rank)).shuffle(runs)  # type: ignore[arg-type]
            for run in runs:
                made.push(rank, 0, run, gradient(made, rank))
                most = max(most, made.shard._barrier.early_bytes)

        in_threads([lambda rank=rank: member(rank) for rank in (3, 2, 1, 0)])
        assert same(made.values(), expected(made, [1.0] * 4))
        assert made.shard._barrier.early_bytes == 0 and not made.shard._pending
        assert most <= bound


def test_without_room_for_early_payload_a_rank_waits_for_its_turn_and_the_first_one_never_waits() -> None:
    made = bench(2, comm=CommConfig(out_of_order_bytes=0))
    lines = made.lines
    second = threading.Thread(target=lambda: made.push_all(1, 0, gradient(made, 1)), daemon=True)
    second.start()
    made.push(0, 0, Run(0, 1), gradient(made, 0))
    for chunk in range(1, 5):
        made.push(0, 0, Run(chunk, chunk + 1), gradient(made, 0))
    second.join(10)
    assert not second.is_alive() and made.store.version == 1
    assert {(h.first_chunk, h.num_chunks) for h, _ in lines[0].of_kind(pb.PARAMS)} == {(c, 1) for c in range(5)}


def test_absent_contributions_need_no_room() -> None:
    made = bench(2, comm=CommConfig(out_of_order_bytes=0))
    made.push_all(1, 0, None)
    made.push_all(0, 0, gradient(made, 0))
    assert made.store.version == 1


# -- answers -------------------------------------------------------------------------------------------------------


def test_a_receipt_goes_before_the_answer_whatever_other_ranks_do() -> None:
    """Rank 0, whose turn it is, completes the step while rank 1's receipt is made."""
    made = bench(2)
    completing = threading.Thread(target=lambda: made.push_all(0, 0, gradient(made, 0)), daemon=True)
    answered: list[int] = []

    def receipt(verdict: Verdict) -> None:
        completing.start()
        completing.join(0.2)
        answered.append(len(made.lines[1].of_kind(pb.PARAMS)))

    run, values = Run(0, 5), gradient(made, 1)
    payload = made.payload(values, run)
    header = pb.FrameHeader(kind=pb.PUSH, first_chunk=run.first, num_chunks=len(run), weight=1.0)
    header.digests.extend(frame.payload_digests(payload, made.mine, run))
    made.shard.push(made.member(1), header, run, payload, receipt)
    completing.join(10)
    assert answered == [0] and made.lines[1].of_kind(pb.PARAMS) and made.store.version == 1


def test_every_member_is_answered_with_the_bytes_of_the_next_version() -> None:
    made = bench(2)
    lines = made.lines
    for rank in range(2):
        made.push_all(rank, 0, gradient(made, rank))
    for line in lines:
        answers = line.of_kind(pb.PARAMS)
        assert {header.step for header, _ in answers} == {1}
        assert sorted(c for h, _ in answers for c in range(h.first_chunk, h.first_chunk + h.num_chunks)) == list(range(5))
        for header, payload in answers:
            run = Run(header.first_chunk, header.first_chunk + header.num_chunks)
            assert payload.tobytes() == made.store.params(1, run)[: len(payload)].tobytes()


@pytest.mark.parametrize(("shard", "turns"), [(0, [0, 1, 2]), (1, [1, 2, 0])])
def test_every_shard_answers_another_rank_first(shard: int, turns: list[int]) -> None:
    made = Bench(specs_of(20_000), settings(3, optimizer=SGD, shard=shard, num_servers=2))
    made.init(made.flat(1.0))
    answered: list[int] = []
    for rank in range(3):
        made.join(rank)
        stream = Stream(send=lambda data, rank=rank: answered.append(rank), end=lambda error: None)  # type: ignore[misc]
        made.shard.open_stream(made.member(rank), stream)
    answered.clear()
    for rank in range(3):
        made.push(rank, 0, Run(0, 1), made.flat(0.5))
    assert answered == turns


def test_a_push_of_an_applied_step_is_answered_with_bytes_as_long_as_they_exist() -> None:
    made = bench(1)
    line = made.join(0)
    for step in range(2):
        made.push_all(0, step, gradient(made, 0, step))
    line.sent.clear()
    made.push(0, 1, Run(0, 1), gradient(made, 0, 1))
    made.push(0, 0, Run(0, 1), gradient(made, 0, 0))
    made.push(0, 2, Run(4, 5), gradient(made, 0, 2))  # version 1 is about to be overwritten: the verdict alone
    made.push(0, 0, Run(0, 1), gradient(made, 0, 0))
    assert [verdict for _, verdict in made.verdicts[-4:]] == ["ALREADY_APPLIED", "ALREADY_APPLIED", "ACCEPTED", "ALREADY_APPLIED"]
    assert [(header.first_chunk, header.step) for header, _ in line.of_kind(pb.PARAMS)] == [(0, 2), (0, 1), (4, 3)]


def test_a_duplicate_counts_once_and_is_owed_an_answer() -> None:
    made = bench(2)
    made.join(0)
    made.push_all(0, 0, gradient(made, 0))
    line = made.join(0)  # a new stream of the same incarnation: what was sent to the old one is lost
    made.push_all(0, 0, gradient(made, 0))
    assert made.verdicts[-5:] == [(0, "DUPLICATE")] * 5
    made.push_all(1, 0, gradient(made, 1))
    assert same(made.values(), expected(made, [1.0, 1.0]))
    assert len(line.of_kind(pb.PARAMS)) == 5


def test_a_stream_without_pushes_is_sent_nothing() -> None:
    made = bench(2)
    for rank in range(2):
        made.push_all(rank, 0, gradient(made, rank))
    line = made.join(0)
    made.push_all(1, 1, gradient(made, 1))
    assert [header.kind for header, _ in line.sent] == [pb.READY]


# -- absent --------------------------------------------------------------------------------------------------------


def test_absent_from_all_is_not_updated_and_absent_from_some_counts_its_samples() -> None:
    made = bench(2, specs=specs_of(3, 3, 3), optimizer=OptimizerConfig(lr=0.5, momentum=0.9))
    for step in range(3):
        for rank in range(2):
            made.push(rank, step, Run(0, 1), made.flat(1.0), weight=2.0)
            made.push(rank, step, Run(1, 2), made.flat(1.0) if rank == 1 else None, weight=2.0)
            made.push(rank, step, Run(2, 3), None, weight=2.0)
    full, half, none = made.values()
    np.testing.assert_allclose(1.0 - half, (1.0 - full) / 2)
    assert (none == 1.0).all()
    assert made.store.updates(3, Run(0, 3)).tolist() == [3, 3, 0]


@pytest.mark.parametrize(("name", "momentum"), [("sgd", 0.9), ("adam", None)])
def test_updates_are_counted_per_chunk_so_that_a_first_update_may_come_late(name: str, momentum: float | None) -> None:
    late = bench(1, specs=specs_of(3, 3), optimizer=OptimizerConfig(name=name, lr=0.5, momentum=momentum))  # type: ignore[arg-type]
    for step in range(4):
        late.push(0, step, Run(0, 1), late.flat(0.3 + step))
        late.push(0, step, Run(1, 2), late.flat(0.3 + (step - 2)) if step >= 2 else None)
    soon = bench(1, specs=specs_of(3, 3), optimizer=late.config.optimizer)
    for step in range(2):
        soon.push(0, step, Run(0, 2), soon.flat(0.3 + step))
    assert np.array_equal(late.values()[1], soon.values()[0])


def test_a_rank_without_samples_weighs_nothing() -> None:
    made = bench(3)
    for rank, weight in ((0, 1.0), (1, 3.0)):
        made.push_all(rank, 0, gradient(made, rank), weight)
    made.push_all(2, 0, None, 0.0)
    assert same(made.values(), expected(made, [1.0, 3.0]))


def test_frozen_chunks_are_outside_of_the_barrier_and_never_change() -> None:
    specs = [*specs_of(3), TensorSpec(name="f", shape=(5,), dtype="float64", rule=Rule.FROZEN)]
    made = bench(1, specs=specs)
    made.push_all(0, 0, made.flat(1.0))
    assert made.store.version == 1 and made.shard.waits_for() == {0: 1}
    assert (made.values()[1] == 1.0).all()


# -- other rules ---------------------------------------------------------------------------------------------------


def sums_and(*rules: Rule) -> list[TensorSpec]:
    return [*specs_of(2), *(TensorSpec(name=f"r{i}", shape=(2,), dtype="float64", rule=rule) for i, rule in enumerate(rules))]


def test_a_floating_buffer_becomes_the_weighted_mean_and_sums_are_added_within_an_epoch() -> None:
    made = Bench(sums_and(Rule.MEAN, Rule.SUM), settings(2), plan=Plan(steps_per_epoch=2, total_steps=9))
    made.init(made.flat(0.0))
    seen = []
    for step in range(3):
        made.push_all(0, step, made.flat(2.0), 1.0)
        made.push_all(1, step, made.flat(6.0), 3.0)
        seen.append([float(value[0]) for value in made.values()[1:]])
    assert seen == [[5.0, 8.0], [5.0, 16.0], [5.0, 8.0]]


def test_the_sums_of_an_epoch_start_anew_even_if_its_first_step_has_no_samples() -> None:
    made = Bench(sums_and(Rule.SUM), settings(1), plan=Plan(steps_per_epoch=2, total_steps=9))
    made.init(made.flat(0.0))
    for step in range(4):
        made.push_all(0, step, None if step == 2 else made.flat(2.0), 0.0 if step == 2 else 1.0)
    assert made.values()[1].tolist() == [2.0, 2.0]


def test_other_buffers_must_be_equal_and_a_difference_ends_the_run_for_everybody() -> None:
    made = Bench([*specs_of(2), TensorSpec(name="n", shape=(), dtype="int64", rule=Rule.EQUAL)], settings(2))
    made.init(made.flat([np.zeros(2), np.array(0)]))
    lines = made.lines
    for rank in range(2):
        made.push_all(rank, 0, made.flat([np.zeros(2), np.array(1)]))
    assert int(made.values()[1]) == 1
    made.push_all(0, 1, made.flat([np.zeros(2), np.array(2)]))
    with pytest.raises(ModelMismatch, match="differs on rank 1"):
        made.push_all(1, 1, made.flat([np.zeros(2), np.array(3)]))
    assert all(isinstance(line.ended, ModelMismatch) for line in lines)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_ends_the_run_and_names_tensor_and_step(value: float) -> None:
    made = bench(2, specs=specs_of(3, 9000))
    lines = made.lines
    made.push_all(0, 0, gradient(made, 0))
    bad = [np.ones(3), np.ones(9000)]
    bad[1][8999] = value
    with pytest.raises(NonFinite, match="mean gradient of w1 is not finite at step 0: lower optimizer.lr"):
        made.push_all(1, 0, made.flat(bad))
    assert all(isinstance(line.ended, NonFinite) for line in lines), "nobody waits for a step that never ends"
    with pytest.raises(NonFinite):
        made.push_all(1, 0, made.flat(bad))


def test_finite_numbers_whose_sum_overflows_are_finite() -> None:
    made = bench(1, specs=specs_of(3, dtype="float32"))
    made.push_all(0, 0, made.flat(3e38))
    assert made.store.version == 1


# -- reading -------------------------------------------------------------------------------------------------------


def test_a_reader_gets_whole_versions_or_hears_that_they_are_gone() -> None:
    made = bench(1)
    made.push_all(0, 0, gradient(made, 0))
    assert made.shard.answers.pull_version(-1) == 1 and made.shard.answers.pull_version(0) == 0
    old = made.values(0)
    assert all((value == 1.0).all() for value in old)
    made.push(0, 1, Run(0, 1), gradient(made, 0, 1))
    made.values(1)
    with pytest.raises(VersionGone):
        made.values(0)


def test_a_version_that_goes_while_it_is_copied_is_gone() -> None:
    made = bench(1)
    made.push_all(0, 0, gradient(made, 0))
    before: Callable[[int, Run], Bytes] = made.store.copy_of

    def copy_slowly(version: int, run: Run) -> Bytes:
        made.store.copy_of = before  # type: ignore[method-assign]
        made.push_all(0, 1, gradient(made, 0, 1))
        return before(version, run)

    made.store.copy_of = copy_slowly  # type: ignore[method-assign]
    with pytest.raises(VersionGone):
        made.shard.answers.encode_params(0, Run(0, 1))


def test_a_shard_starts_again_from_its_memory() -> None:
    whole, killed = bench(2), bench(2)
    for step in range(3):
        for rank in range(2):
            whole.push_all(rank, step, gradient(whole, rank, step))
    for step, rank in itertools.product(range(2), range(2)):
        killed.push_all(rank, step, gradient(killed, rank, step))
    killed.push(0, 2, Run(0, 3), gradient(killed, 0, 2))
    killed.push(1, 2, Run(0, 2), gradient(killed, 1, 2))  # chunks 0 and 1 are at version 3, a sum is lost
    again = Bench(specs_of(*SIZES), killed.config, memory=killed.memory.copy())
    assert again.store.version == 2 and again.store.words.tolist() == [3, 3, 2, 2, 2]
    for rank in range(2):
        again.push_all(rank, 2, gradient(again, rank, 2))
    assert [verdict for _, verdict in again.verdicts[:2]] == ["ALREADY_APPLIED"] * 2
    assert same(again.values(), whole.values())


@hypothesis_settings(max_examples=60)
@given(st.data())
def test_init_is_idempotent_in_any_order(data: st.DataObject) -> None:
    made = Bench(specs_of(*SIZES), settings(1))
    line = made.join(0)
    values = gradient(made, 0)
    order = data.draw(st.permutations([Run(c, c + 1) for c in range(5)] * 2))
    for run in order:
        assert not made.store.initialised or all(made.store.words >= 0)
        made.shard.init(run, made.payload(values, run))
    assert [header.kind for header, _ in line.sent] == [pb.READY]
    assert made.store.version == 0 and np.array_equal(made.values()[0].ravel(), values[: 8 * SIZES[0]].view(np.float64))
