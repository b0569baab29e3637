"""Frames suit the link that was measured, and no bit depends on them."""

import logging
from typing import Any

import pytest
from torch import nn

from ps.config import CommConfig
from ps.pacing import Pacing, Probe, Windows, exact_bytes, pacing_of, windows_of
from tests.ps.cluster import Cluster, Member, cluster, exchange, in_threads, start

KIB, MBIT = 1 << 10, 1e6 / 8
FAST = 500e6
"""Beyond it frames are as long as they get."""
WINDOWS = Windows(8, 16)


@pytest.mark.parametrize(
    ("link", "delay_s", "windows", "frame_bytes", "window_frames", "wide_frames"),
    [
        (1 * MBIT, 0.001, (8, 16), 32 * KIB, 8, 16),
        (50 * MBIT, 0.0004, (8, 16), 32 * KIB, 8, 16),  # as short as processors have time for
        (100 * MBIT, 0.0004, (8, 16), 64 * KIB, 8, 16),
        (200 * MBIT, 0.0004, (8, 16), 128 * KIB, 8, 16),
        (400 * MBIT, 0.0004, (8, 16), 512 * KIB, 8, 16),  # bytes alone cost them much
        (1000 * MBIT, 0.0002, (8, 16), 1024 * KIB, 8, 16),
        (2500 * MBIT, 0.0002, (8, 16), 4096 * KIB, 8, 8),  # no more than 32 MiB on their way
        (16_000 * MBIT, 0.0001, (8, 16), 4096 * KIB, 8, 8),
        (16_000 * MBIT, 0.0001, (3, 3), 4096 * KIB, 3, 3),  # no longer, however few there are
        (16_000 * MBIT, 0.0001, (12, 24), 2048 * KIB, 12, 16),
        (16_000 * MBIT, 0.0001, (64, 64), 1024 * KIB, 64, 64),
        (100 * MBIT, 0.05, (8, 16), 64 * KIB, 20, 20),  # twice what is on its way in a round trip
        (10_000 * MBIT, 0.2, (8, 16), 4096 * KIB, 64, 64),
        (50 / 6 * MBIT, 0.0004, (3, 3), 32 * KIB, 3, 3),
        (100 / 6 * MBIT, 0.05, (3, 3), 32 * KIB, 7, 7),
        (50 * MBIT, 0.0004, (32, 64), 32 * KIB, 32, 64),
    ],
)
def test_frames_are_short_on_thin_links_and_the_window_covers_the_delay(
    link: float, delay_s: float, windows: tuple[int, int], frame_bytes: int, window_frames: int, wide_frames: int
) -> None:
    found = pacing_of(link, delay_s, Windows(*windows))
    assert (found.frame_bytes, found.window_frames, found.wide_frames) == (frame_bytes, window_frames, wide_frames)


@pytest.mark.parametrize(
    ("ranks", "servers", "least", "wide"),
    [
        (1, 1, 8, 16),
        (2, 4, 8, 16),
        (4, 4, 8, 16),
        (16, 16, 32, 64),
        (64, 64, 64, 64),
        (6, 1, 3, 3),  # ranks that share servers' links share queues
        (6, 2, 4, 4),
        (5, 4, 8, 8),
    ],
)
def test_the_window_has_two_frames_for_every_server_and_few_where_ranks_share_one(ranks: int, servers: int, least: int, wide: int) -> None:
    assert windows_of(ranks, servers) == (least, wide)


@pytest.mark.parametrize("burst_bytes", [0, 32 * KIB])
@pytest.mark.parametrize("delay_s", [0.0004, 0.04])
@pytest.mark.parametrize("link", [1 * MBIT, 50 * MBIT, 1000 * MBIT, 16_000 * MBIT])
def test_a_link_is_told_from_its_echoes_in_little_time(link: float, delay_s: float, burst_bytes: int) -> None:
    probe, spent_s = Probe(WINDOWS), 0.0
    for size in probe.rounds():
        seconds = delay_s + max(0, size - burst_bytes) / link
        spent_s += seconds
        probe.echoed(size, seconds)
    assert probe.pacing
    assert probe.pacing.delay_s == delay_s
    assert 0.99 * min(link, FAST) <= probe.pacing.link_bytes_per_s <= 2.01 * link
    assert spent_s < 1.0


@pytest.mark.parametrize("stalled", range(3, 9))
def test_a_stall_is_not_taken_for_a_thin_link(stalled: int) -> None:
    """Whichever echo it keeps waiting."""
    probe = Probe(WINDOWS)
    for number, size in enumerate(probe.rounds()):
        probe.echoed(size, 0.001 + size / (1000 * MBIT) + (0.2 if number == stalled else 0.0))
    assert number > stalled and probe.pacing
    assert probe.pacing.link_bytes_per_s == pytest.approx(1000 * MBIT, rel=0.05)


def test_the_log_says_what_was_measured_and_chosen() -> None:
    assert str(pacing_of(6.1e6, 0.0004, WINDOWS)) == "link 6.1 MB/s, 0.4 ms: 8 frames (16 in the end) of 32 KiB"
    assert str(pacing_of(6.1e6, 0.0004, Windows(4, 4))) == "link 6.1 MB/s, 0.4 ms: 4 frames of 32 KiB"


@pytest.mark.parametrize(
    ("push", "pull", "exact_kib"), [("fp32", "fp32", 32), ("bf16", "fp32", 32), ("fp32", "fp16", 32), ("bf16", "bf16", 64), ("int8", "fp16", 64)]
)
def test_frames_are_as_long_on_the_link_in_every_format(push: Any, pull: Any, exact_kib: int) -> None:
    assert exact_bytes(pacing_of(50 * MBIT, 0.001, WINDOWS), CommConfig(push_format=push, pull_format=pull)) == exact_kib * KIB


def test_nothing_is_known_before_the_first_echo() -> None:
    probe = Probe(WINDOWS)
    next(iter(probe.rounds()))
    assert probe.pacing is None


def joined(servers: Cluster, model: nn.Module) -> list[Member]:
    members = [servers.member(rank, model) for rank in range(servers.num_workers)]
    in_threads([lambda member=member: start(member) for member in members])
    return members


@pytest.mark.alone
def test_a_thin_link_is_found_out_at_join(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ps.client")
    with cluster(1, 2, comm=CommConfig(bandwidth="50mbit")) as servers:
        (member,) = joined(servers, nn.Linear(64, 64))
        assert member.client.pacing.frame_bytes == 32 * KIB
        assert member.client.pacing.link_bytes_per_s < 2 * 50 * MBIT
        assert f"rank 0: {member.client.pacing}" in caplog.text


@pytest.mark.alone
def test_a_latency_is_felt_both_ways_and_not_where_memory_is_shared() -> None:
    with cluster(1, 2, comm=CommConfig(shared_memory=False, latency="20ms")) as servers:
        (member,) = joined(servers, nn.Linear(64, 64))
        assert 0.04 <= member.client.pacing.delay_s < 0.2
        exchange(member, 0, 1.0)
    with cluster(1, 1, comm=CommConfig(latency="10s")) as servers:
        (member,) = joined(servers, nn.Linear(64, 64))
        exchange(member, 0, 1.0)


@pytest.mark.parametrize("comm", [CommConfig(shared_memory=False, frame_bytes=4096, window_frames=2), CommConfig()])
def test_no_link_is_measured_where_the_settings_or_the_memory_say_enough(comm: CommConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ps.client")
    with cluster(2, 2, comm=comm) as servers:
        for member in joined(servers, nn.Linear(64, 64)):
            assert member.client.pacing == Pacing()
    assert "link" not in caplog.text


def test_a_stream_that_breaks_while_the_link_is_measured_is_opened_again(caplog: pytest.LogCaptureFixture) -> None:
    with cluster(1, 2, comm=CommConfig(shared_memory=False)) as servers:
        member = servers.member(0, nn.Linear(64, 64))
        line = member.client._state.lines[1]
        probe = line.probe

        def broken(num_bytes: int) -> None:
            if num_bytes:
                line._stream.cancel()  # or the echo may be quicker
            probe(num_bytes)

        line.probe = broken  # type: ignore[method-assign]
        start(member)
        assert member.client.pacing == Pacing()
        exchange(member, 0, 1.0)
    assert "stream to server 1 broke: joining again" in caplog.text
