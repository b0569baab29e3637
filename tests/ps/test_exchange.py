"""What a member lets leave, by its state machine alone."""

import numpy as np
import pytest

from ps.exchange import LEAST_SHARE, Exchange
from ps.layout import Run

CHUNKS = 12


def exchange(num_shards: int, window: int) -> Exchange:
    """A step in which everything is ready: every shard has frames of one chunk each, all of them of one tensor."""
    frames = [[Run(chunk, chunk + 1) for chunk in range(CHUNKS)] for _ in range(num_shards)]
    made = Exchange(0, frames, [np.zeros(CHUNKS, np.int64)] * num_shards, window)
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


def test_a_stream_that_ends_gives_its_share_back() -> None:
    of = exchange(3, 8)
    sent(of)
    assert of.in_flight == 8
    of.stream_ended(0)
    assert of.in_flight == 5
    assert sorted(shard for shard, _ in sent(of)) == [0, 0, 2]
