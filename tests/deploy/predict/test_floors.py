"""Closed forms: small cases by hand, and how they agree with each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.predict import floors

M, B = 100e6, 12.5e6


def test_push_floor_is_the_workers_or_the_servers_links() -> None:
    assert floors.one_way_s(M, 4, 4, B, B) == pytest.approx(8.0)  # 100 MB at 12.5 MB/s
    assert floors.one_way_s(M, 4, 2, B, B) == pytest.approx(16.0)  # each server takes half of four models
    assert floors.one_way_s(M, 4, 2, B, 4 * B) == pytest.approx(8.0)
    assert floors.phased_s(M, 4, 2, B, B) == pytest.approx(32.0)
    assert floors.pipelined_s(M, 4, 4, B, B, frame_bytes=1.25e6) == pytest.approx(8.1)


@given(st.integers(2, 64))
def test_a_server_on_every_workers_host_needs_the_rings_time(workers: int) -> None:
    assert floors.colocated_s(M, workers, workers, B) == pytest.approx(floors.ring_s(M, workers, B))


@given(st.integers(2, 64))
def test_byteps_optimum_is_the_ring_without_helpers_and_the_link_with_enough(workers: int) -> None:
    assert floors.byteps_s(M, workers, 0, B) == pytest.approx(floors.ring_s(M, workers, B))
    assert floors.byteps_s(M, workers, workers, B) == pytest.approx(M / B)


def test_byteps_optimum_by_hand_and_its_limits() -> None:
    assert floors.byteps_s(M, 8, 4, B) == pytest.approx(2 * 8 * 7 * 8.0 / (64 + 32 - 8))
    for workers, helpers in ((1, 0), (4, 5), (4, -1)):
        with pytest.raises(ValueError, match="helpers"):
            floors.byteps_s(M, workers, helpers, B)


def test_more_servers_than_hosts_are_refused() -> None:
    with pytest.raises(ValueError, match="at most one each"):
        floors.colocated_s(M, 2, 3, B)


@given(st.floats(1e5, 1e9), st.floats(1e-6, 1e-2), st.floats(1e5, 1e10), st.integers(1, 4), st.sampled_from([0.5, 0.9, 1.1, 2.0]))
def test_no_other_frame_is_better_than_the_best(model: float, frame_s: float, rate: float, stages: int, factor: float) -> None:
    def exchange_s(frame: float) -> float:
        return model / rate + stages * frame / rate + frame_s * model / frame

    best = floors.best_frame_bytes(model, frame_s, rate, stages)
    assert exchange_s(best) < exchange_s(best * factor)


def test_bubble_of_a_pipeline() -> None:
    assert floors.bubble(1, 4) == 0
    assert floors.bubble(4, 4) == pytest.approx(3 / 7)
