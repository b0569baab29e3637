"""What a shard refuses, and that it leaves no trace: early, diverged and fenced contributions."""

import threading

import pytest

from protos import pserver_pb2 as pb
from ps.config import CommConfig
from ps.errors import Diverged, EarlyPush, Fenced, Stopped
from ps.layout import Run
from tests.ps.bench import Bench, Line, settings, specs_of
from tests.ps.cluster import in_threads
from tests.ps.shards import bench, expected, gradient, same


def test_an_early_push_is_refused_and_leaves_no_trace() -> None:
    made = bench(1)
    with pytest.raises(EarlyPush, match="rank 0 pushed step 1 of shard 0, which is at version 0"):
        made.push(0, 1, Run(0, 1), gradient(made, 0))
    assert made.shard.waits_for() == {0: 5}


def test_before_version_0_every_push_is_early() -> None:
    made = Bench(specs_of(3), settings(1))
    with pytest.raises(EarlyPush, match="at version -1"):
        made.push(0, 0, Run(0, 1), made.flat(1.0))


@pytest.mark.parametrize("change", ["bytes", "weight", "absent"])
def test_another_contribution_for_the_same_step_is_diverged(change: str) -> None:
    made = bench(2)
    made.push_all(0, 0, gradient(made, 0))
    other = {"bytes": gradient(made, 1), "weight": gradient(made, 0), "absent": None}[change]
    with pytest.raises(Diverged, match=r"rank 0 pushed other bytes for step 0, chunks 0\.\.0 of shard 0"):
        made.push(0, 0, Run(0, 1), other, weight=2.0 if change == "weight" else 1.0)
    made.push_all(1, 0, gradient(made, 1))
    assert same(made.values(), expected(made, [1.0, 1.0])), "the first contribution stands"


@pytest.mark.parametrize("change", ["bytes", "weight", "absent"])
def test_where_bits_are_not_promised_it_is_answered_as_if_it_were_the_same(change: str) -> None:
    made = bench(2, exact=False)
    made.push_all(0, 0, gradient(made, 0))
    line = made.join(0, incarnation=2)
    made.verdicts.clear()
    made.push(0, 0, Run(0, 1), None if change == "absent" else gradient(made, int(change == "bytes")), 1.0 + (change == "weight"), incarnation=2)
    assert made.verdicts == [(0, "DIVERGED")]
    made.push_all(1, 0, gradient(made, 1))
    assert same(made.values(), expected(made, [1.0, 1.0])), "the first contribution stands"
    assert [header.first_chunk for header, _ in line.of_kind(pb.PARAMS)] == [0]


def test_a_frame_that_is_diverged_in_one_chunk_leaves_nothing_half_done() -> None:
    made = bench(2)
    made.push(0, 0, Run(0, 1), gradient(made, 0))
    mixed = gradient(made, 0)
    mixed[:8] = 7
    with pytest.raises(Diverged):
        made.push(0, 0, Run(0, 3), mixed)
    in_threads([lambda: made.join(0, incarnation=2) and None], timeout_s=5)


def test_an_older_incarnation_is_fenced_everywhere() -> None:
    made = bench(2)
    line = made.join(0, 1)
    made.join(0, 2)
    assert isinstance(line.ended, Fenced)
    for call in (
        lambda: made.push(0, 0, Run(0, 1), gradient(made, 0), incarnation=1),
        lambda: made.join(0, 1),
        lambda: made.shard.open_stream(made.member(0, 1), line.stream),
        lambda: made.shard.learn_norms(made.member(0, 1), pb.FrameHeader()),
    ):
        with pytest.raises(Fenced):
            call()


def test_a_late_stream_of_an_older_session_does_not_end_the_living_one() -> None:
    made = bench(1)
    old = made.member(0)
    living = made.join(0)
    with pytest.raises(Fenced, match="has joined again since session"):
        made.shard.open_stream(old, Line().stream)
    assert living.ended is False
    made.push_all(0, 0, gradient(made, 0))
    assert living.of_kind(pb.PARAMS)


def test_another_generation_is_fenced() -> None:
    made = bench(1)
    for generation in (0, 2):
        with pytest.raises(Fenced, match=f"of generation {generation}"):
            made.shard.join(pb.Member(rank=0, incarnation=5, generation=generation))


def test_a_higher_incarnation_forgets_what_was_not_summed_and_keeps_what_was() -> None:
    made = bench(3)
    made.push(0, 0, Run(0, 1), gradient(made, 0))
    made.push(1, 0, Run(0, 1), gradient(made, 1))  # next in order: summed
    made.push(1, 0, Run(1, 2), gradient(made, 2))  # out of order: queued, and from a gradient that is no more
    made.join(1, 2)
    assert made.shard._barrier.early_bytes == 0
    made.push(1, 0, Run(0, 1), gradient(made, 1), incarnation=2)
    made.push(1, 0, Run(1, 2), gradient(made, 1), incarnation=2)
    assert [verdict for _, verdict in made.verdicts[-2:]] == ["DUPLICATE", "ACCEPTED"]
    for chunk in range(5):
        made.push(0, 0, Run(chunk, chunk + 1), gradient(made, 0))
        made.push(1, 0, Run(chunk, chunk + 1), gradient(made, 1), incarnation=2)
        made.push(2, 0, Run(chunk, chunk + 1), gradient(made, 2))
    assert same(made.values(), expected(made, [1.0] * 3))


def test_a_shard_that_ends_wakes_and_ends_everybody() -> None:
    made = bench(2, comm=CommConfig(out_of_order_bytes=0))
    line = made.join(1)

    def wait() -> None:
        with pytest.raises(Stopped):
            made.push_all(1, 0, gradient(made, 1))

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    made.shard.end(Stopped("the server ends"))
    waiting.join(10)
    assert not waiting.is_alive() and isinstance(line.ended, Stopped)
    with pytest.raises(Stopped):
        made.push_all(0, 0, gradient(made, 0))
