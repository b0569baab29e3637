"""What a member lets leave, by its state machine alone."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.exchange import LEAST_SHARE, Exchange
from ps.layout import Run
from ps.order import Schedule, scheduled
from ps.pacing import Windows

CHUNKS = 12


def exchange(num_shards: int, window: int) -> Exchange:
    """A step in which everything is ready: every shard has frames of one chunk each, all of them of one tensor."""
    frames = [[Run(chunk, chunk + 1) for chunk in range(CHUNKS)] for _ in range(num_shards)]
    made = Exchange(0, frames, [np.zeros(CHUNKS, np.int64)] * num_shards, Windows(window, window))
    made.begin(0)
    made.ready([0])
    return made


def sent(of: Exchange) -> list[tuple[int, int]]:
    return list(iter(of.next_frame, None))


@pytest.mark.parametrize(("num_shards", "window", "share"), [(3, 8, LEAST_SHARE), (2, 8, 4), (1, 8, 8), (4, 64, 12)])
def test_a_shard_that_keeps_what_it_gets_has_its_share_of_the_window(num_shards: int, window: int, share: int) -> None:
    of = exchange(num_shards, window)
    on_their_way = sent(of)
    assert len(on_their_way) == of.in_flight == min(window, num_shards * share)
    left = 0
    while any(shard for shard, _ in on_their_way):
        for shard, frame in on_their_way:
            if shard:
                of.receipt(shard, frame)
                left += 1
        on_their_way = [(shard, frame) for shard, frame in on_their_way if not shard] + sent(of)
    assert left == (num_shards - 1) * CHUNKS, "nothing of the others waits for it"
    assert len(on_their_way) == of.in_flight == share or num_shards == 1


def in_flight(of: Exchange, on_their_way: list[tuple[int, int]], returned: int, times: int) -> list[int]:
    """How many frames each shard has on its way after receipts of one shard alone, so many times all that it has."""
    for _ in range(times):
        for found in [found for found in on_their_way if found[0] == returned]:
            of.receipt(*found)
            on_their_way.remove(found)
        on_their_way += sent(of)
    return [sum(shard == its for its, _ in on_their_way) for shard in range(2)]


def test_a_shard_whose_frames_get_through_sooner_does_not_run_ahead() -> None:
    of = exchange(2, 8)
    on_their_way = sent(of)
    assert in_flight(of, on_their_way, 1, times=1) == [4, 3], "two frames ahead, and one more"
    assert in_flight(of, on_their_way, 1, times=2) == [4, 1]
    assert in_flight(of, on_their_way, 0, times=1) == [4, 3], "less far ahead: it goes on"
    assert in_flight(of, on_their_way, 0, times=3) == [0, 4], "nothing waits for what has got all"


def test_a_shard_does_not_wait_for_one_of_which_nothing_is_ready() -> None:
    of = Exchange(0, [[Run(i, i + 1) for i in range(CHUNKS)]] * 2, [np.zeros(CHUNKS, np.int64), np.ones(CHUNKS, np.int64)], Windows(8, 8))
    of.begin(0)
    of.ready([1])
    assert in_flight(of, sent(of), 1, times=2) == [0, 4]


def test_how_far_a_shard_is_counts_in_its_own_frames() -> None:
    of = Exchange(0, [[Run(i, i + 1) for i in range(count)] for count in (24, 8)], [np.zeros(24, np.int64), np.zeros(8, np.int64)], Windows(8, 8))
    of.begin(0)
    of.ready([0])
    on_their_way = sent(of)
    assert in_flight(of, on_their_way, 0, times=2) == [4, 4], "12 of 24 and 4 of 8"
    assert in_flight(of, on_their_way, 1, times=1) == [4, 3], "5 of 8 are two more than 12 of 24, in frames of the first one"


def test_the_window_is_wider_once_all_frames_are_ready() -> None:
    of = Exchange(0, [[Run(i, i + 1) for i in range(CHUNKS)]] * 2, [np.arange(CHUNKS)] * 2, Windows(4, 12))
    for step in range(2):
        of.begin(step)
        of.ready(range(1, CHUNKS))
        assert len(sent(of)) == 4, "the first layer's frames would wait behind more"
        of.ready([0])
        later = sent(of)
        assert of.in_flight == 12
        assert later[:2] == [(0, 0), (1, 0)]
        for shard in range(2):
            of.stream_ended(shard)
            of.landed(shard, Run(0, CHUNKS))


def test_a_stream_that_ends_gives_its_share_back() -> None:
    of = exchange(3, 8)
    sent(of)
    assert of.in_flight == 8
    of.stream_ended(0)
    assert of.in_flight == 5
    assert sorted(shard for shard, _ in sent(of)) == [0, 0, 2]


def test_the_last_window_of_a_step_awaits_no_credit() -> None:
    of = exchange(2, 8)  # 24 frames, of which a shard may have 4 on their way
    awaited, on_their_way = [], []
    while True:
        while found := of.next_frame():
            awaited.append(of.awaits(*found))
            on_their_way.append(found)
        if not on_their_way:
            break
        of.receipt(*on_their_way.pop(0))
    assert awaited == [True] * 16 + [False] * 8


def test_a_shard_with_more_frames_than_its_share_awaits_credit_in_spite_of_a_wide_window() -> None:
    of = Exchange(0, [[Run(i, i + 1) for i in range(8)], [Run(0, 1)]], [np.zeros(8, np.int64), np.zeros(1, np.int64)], Windows(10, 10))
    of.begin(0)
    of.ready([0])
    awaited = [(found[0], of.awaits(*found)) for found in iter(of.next_frame, None)]
    assert awaited == [(0, True), (1, False), (0, True), (0, True), (0, False), (0, False)]


def test_what_must_be_pushed_again_is_left() -> None:
    of = exchange(1, CHUNKS)
    sent(of)
    of.landed(0, Run(0, 5))
    of.stream_ended(0)
    assert [of.awaits(*found) for found in sent(of)] == [False] * (CHUNKS - 5)
    narrow = exchange(1, 4)
    first = sent(narrow)
    for shard, frame in first:
        narrow.receipt(shard, frame)
    narrow.landed(0, Run(4, CHUNKS))
    narrow.stream_ended(0)
    assert [narrow.awaits(*found) for found in sent(narrow)] == [False] * 4


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 12), st.integers(0, 12), st.randoms(use_true_random=False))
def test_every_frame_can_leave_with_the_credits_that_are_awaited_alone(frames: list[int], window: int, wider: int, random: Random) -> None:
    """Other receipts come with answers, which may need all that has not left. Tensors become ready, and a stream ends, at any time."""
    of = Exchange(
        0, [[Run(i, i + 1) for i in range(count)] for count in frames], [np.arange(count) for count in frames], Windows(window, window + wider)
    )
    of.begin(0)
    unready = list(range(max(frames)))
    random.shuffle(unready)
    broken, on_their_way, left = random.randrange(2 * len(frames)), set[tuple[int, int]](), set[tuple[int, int]]()
    while True:
        for found in sent(of):
            on_their_way.add(found)
            left.add(found)
        awaited = sorted(its for its in on_their_way if of.awaits(*its))
        if unready and (not awaited or random.random() < 0.5):
            of.ready([unready.pop()])
        elif broken < len(frames) and (not awaited or random.random() < 0.2):
            of.stream_ended(broken)
            on_their_way, left = ({its for its in kept if its[0] != broken} for kept in (on_their_way, left))
            broken = len(frames)
        elif awaited or of.overdue():
            its = random.choice([its for its in on_their_way if of.awaits(*its)])
            of.receipt(*its)
            on_their_way.remove(its)
        else:
            break
    assert len(left) == sum(frames)


def test_receipts_that_had_time_are_asked_for_when_a_stream_ends_and_nothing_may_leave() -> None:
    of = Exchange(0, [[Run(i, i + 1) for i in range(3)], [Run(0, 1)]], [np.zeros(3, np.int64), np.zeros(1, np.int64)], Windows(2, 2))
    of.begin(0)
    of.ready([0])
    for found in sent(of):
        of.receipt(*found)
    assert sent(of) == [(0, 1), (0, 2)] and not of.awaits(0, 1) and not of.awaits(0, 2)
    assert not of.overdue(), "nothing has to leave"
    of.stream_ended(1)
    assert of.next_frame() is None
    assert of.overdue() == [0] and of.awaits(0, 1) and of.awaits(0, 2)
    assert not of.overdue(), "they are on their way"
    of.receipt(0, 1)
    assert of.next_frame() == (1, 0)


# -- the order of frames ---------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.5, 1.0, 2.5]), st.sampled_from([0.0, 0.3, 1.0])),
        min_size=1,
        max_size=20,
    )
)
def test_a_schedule_is_that_of_somebody_who_looks_at_every_end(frames: list[tuple[int, float, float]]) -> None:
    keys = [(layer, index) for index, (layer, _, _) in enumerate(frames)]
    left, now_s, expected = set(range(len(frames))), 0.0, []
    while left:
        now_s = max(now_s, min(frames[index][1] for index in left))
        chosen = min((index for index in left if frames[index][1] <= now_s), key=lambda index: keys[index])
        expected.append(chosen)
        left.remove(chosen)
        now_s += frames[chosen][2]
    assert scheduled(keys, [ready for _, ready, _ in frames], [takes for _, _, takes in frames]) == expected


def test_a_schedule_pays_where_frames_of_all_shards_wait_for_the_link_that_these_share() -> None:
    takes_s = [[1.0, 2.0], [3.0]]  # each as long as if its shard had half of the link
    assert Schedule([0.5, 2.9], takes_s, 2).pays
    assert not Schedule([0.5, 3.1], takes_s, 2).pays
    assert not Schedule([0.5, 3.1], [[0.0, 0.0], [3.0]], 1).pays, "of a shard beside it nothing takes the link"


LAYERS, EACH, BACKWARD_S, CHUNK_S = 16, 2, 0.056, 0.044
"""A link that needs half as long again as backward: of every layer something stays behind."""


def left_by(seed: int, *, is_fixed: bool) -> list[tuple[float, int]]:
    """When each frame leaves, one after the other, of a rank whose link is up to 20% quicker or slower from frame to frame (seed 0: it is not)."""
    tensors = np.repeat(np.arange(LAYERS), EACH)
    of = Exchange(0, [[Run(i, i + 1) for i in range(len(tensors))]], [tensors], Windows(1, 1))
    ready_s = {layer: (LAYERS - layer) * BACKWARD_S for layer in range(LAYERS)}
    schedule = Schedule([ready_s[layer] for layer in range(LAYERS)], [[CHUNK_S] * len(tensors)], 1)
    of.prioritise({layer: layer for layer in range(LAYERS)}, schedule if is_fixed else None)
    of.begin(0)
    random, now_s, found = Random(seed), 0.0, list[tuple[float, int]]()
    coming = [(ready_s[layer], layer) for layer in reversed(range(LAYERS))]
    while len(found) < len(tensors):
        while coming and coming[0][0] <= now_s + 1e-9:
            of.ready([coming.pop(0)[1]])
        frame = of.next_frame()
        if frame is None:
            now_s = coming[0][0]
            continue
        now_s += CHUNK_S * (random.uniform(0.8, 1.2) if seed else 1.0)
        found.append((now_s, frame[1]))
        of.receipt(*frame)
    return found


def apart_s(ranks: list[list[tuple[float, int]]]) -> float:
    """Between the first rank's frame and the last one's, of which the sum is complete, on average."""
    times = [{frame: at for at, frame in left} for left in ranks]
    return float(np.mean([max(one[frame] for one in times) - min(one[frame] for one in times) for frame in times[0]]))


def test_ranks_whose_links_pause_push_the_same_frames_all_the_same() -> None:
    """Else each leaves others behind when an earlier layer is ready, and their sums wait for the end of the step."""
    assert left_by(0, is_fixed=True) == left_by(0, is_fixed=False), "rank 0 itself changes nothing"
    fixed, free = (apart_s([left_by(seed, is_fixed=is_fixed) for seed in range(4)]) for is_fixed in (True, False))
    assert free > 2 * fixed, (fixed, free)
