"""Hosts in racks, with and without aggregators: small cases by hand, the closed form, and classes of racks against every host by itself."""

from dataclasses import replace

import pytest

from deploy.predict import floors
from deploy.predict.classes import EVERY, ROUGH
from deploy.predict.costs import Costs
from deploy.predict.inputs import Wishes, scenario_by_hand
from deploy.predict.plan import floor_s, plan, ring_step_s
from deploy.predict.scenario import Racks, Scenario, equal_tensors, tensors_of
from deploy.predict.simulate import simulate
from ps.config import CommConfig
from ps.errors import ConfigError
from tests.deploy.predict.test_simulate import FRAME_S, FREE, MB, scenario

PAIRS = Racks(size=2)


def one_frame(racks: Racks, **changes: object) -> Scenario:
    """Four workers, two in a rack; one server; one frame of 32,768 bytes, which every link of a host carries in FRAME_S."""
    return scenario(specs=tensors_of({"only.weight": (8192, 1)}), num_servers=1, racks=racks, **changes)


def test_what_leaves_a_rack_shares_its_uplink() -> None:
    # two frames of each rack at a fifth of a link's rate; the server's link would carry all four in less; back likewise
    assert simulate(one_frame(replace(PAIRS, uplink_bytes_per_s=2e5))).step_s == pytest.approx(2 * 2 * 5 * FRAME_S)
    assert simulate(one_frame(PAIRS)).step_s == pytest.approx(2 * 4 * FRAME_S)


def test_an_aggregator_pushes_one_contribution_for_its_rack() -> None:
    # two frames into each aggregator, one out of it, two into the server, and all the way back
    assert simulate(one_frame(replace(PAIRS, aggregator_bytes_per_s=1e6))).step_s == pytest.approx(2 * (2 + 2) * FRAME_S)
    thin = replace(PAIRS, aggregator_bytes_per_s=1e6, uplink_bytes_per_s=2e5)
    assert simulate(one_frame(thin)).step_s == pytest.approx(2 * (2 + 5) * FRAME_S)


def test_sums_of_a_rack_cost_its_aggregator() -> None:
    costs = replace(FREE, sum_byte_s=1 / 32768)
    flat, summed = (simulate(one_frame(replace(PAIRS, aggregator_bytes_per_s=rate), costs=costs)).step_s for rate in (None, 1e6))
    assert flat == pytest.approx(8 * FRAME_S + 4) and summed == pytest.approx(8 * FRAME_S + 2 + 2)


@pytest.mark.parametrize("aggregator", [None, 4e6])
@pytest.mark.parametrize("uplink", [5e5, 4e6])
def test_an_exchange_reaches_the_floor_of_racks(aggregator: float | None, uplink: float) -> None:
    fine = CommConfig(bandwidth="8mbit", frame_bytes=32768, window_frames=64)
    racks = Racks(size=2, uplink_bytes_per_s=uplink, aggregator_bytes_per_s=aggregator)
    of = scenario(specs=equal_tensors(4 * MB, 32), num_workers=4, num_servers=2, comm=fine, racks=racks)
    assert floor_s(of) < simulate(of).step_s < 1.12 * floor_s(of)


def test_floor_of_racks_by_hand() -> None:
    ways = (100e6, 40, 4, 12.5e6, 12.5e6)
    assert floors.racks_s(*ways, rack_size=10, uplink_bytes_per_s=6.25e6) == pytest.approx(160)  # ten models on half a link
    summed = {"uplink_bytes_per_s": 6.25e6, "aggregator_bytes_per_s": 125e6}
    assert floors.racks_s(*ways, rack_size=10, **summed) == pytest.approx(16)  # one model on half a link
    assert floors.racks_s(*ways, rack_size=10, **(summed | {"aggregator_bytes_per_s": 12.5e6})) == pytest.approx(80)  # ten into one host


@pytest.mark.parametrize("aggregator", [None, 1.25e9])
def test_classes_of_racks_give_what_all_hosts_give(aggregator: float | None) -> None:
    of = scenario(
        specs=equal_tensors(4 * MB, 16),
        num_workers=30,  # the last rack has fewer
        forward_s=0.01,
        backward_s=0.02,
        comm=CommConfig(bandwidth="2gbit", frame_bytes=262144, window_frames=8),
        costs=Costs(),
        cores_per_host=8,
        racks=Racks(size=4, uplink_bytes_per_s=2.5e8, aggregator_bytes_per_s=aggregator),
    )
    assert simulate(of, ROUGH).step_s == pytest.approx(simulate(of, EVERY).step_s, rel=0.02)


def test_the_plan_says_whether_aggregators_pay() -> None:
    thin = one_frame(replace(PAIRS, uplink_bytes_per_s=2e5))
    found = plan(thin)
    assert found.bottleneck == "time on racks' uplinks" and "2 racks of 2 workers" in found.text() and "it pays, 30%" in found.text()
    assert found.to_dict()["step_s_by_racks"] == pytest.approx({"without aggregators": 20 * FRAME_S, "with an aggregator in each": 14 * FRAME_S})
    assert "it does not pay" in plan(replace(thin, racks=PAIRS)).text()
    assert ring_step_s(thin) == pytest.approx(floors.ring_s(32768, 4, 2e5))


def test_wishes_of_racks() -> None:
    wished = {"model_bytes": "1MB", "compute_ms": 1.0, "workers": 4}
    found = scenario_by_hand(Wishes(**wished, rack_size=2, uplink="8mbit", aggregator_bandwidth="80mbit"))  # type: ignore[arg-type]
    assert found.racks == Racks(size=2, uplink_bytes_per_s=1e6, aggregator_bytes_per_s=1e7) and found.num_racks == 2
    for wrong in ({"uplink": "8mbit"}, {"rack_size": 2, "uplink": "wide"}, {"rack_size": 2, "colocate": True}):
        with pytest.raises(ConfigError):
            scenario_by_hand(Wishes(**wished, **wrong))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="topk"):
        scenario_by_hand(Wishes(**wished, rack_size=2, aggregator_bandwidth="8mbit", push_format="topk"))  # type: ignore[arg-type]
