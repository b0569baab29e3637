"""The model of a step: exact small cases, closed forms where they hold, and what must grow with what."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.predict import floors
from deploy.predict.costs import Costs
from deploy.predict.events import Clock, Cores, Machine
from deploy.predict.scenario import Scenario, equal_tensors, layers_of, tensors_of
from deploy.predict.simulate import simulate
from ps.config import CommConfig
from ps.errors import ConfigError

FREE = Costs(**{name: 0.0 for name in vars(Costs()) if name.endswith("_s")}, wire_overhead=1.0)
MB = 1 << 20


def scenario(**changes: object) -> Scenario:
    """4 workers and 4 servers on 8 Mbit/s links of their own; 1 MiB and 16 tensors; nothing costs anything."""
    usual = {
        "specs": equal_tensors(MB, 16),
        "forward_s": 0.0,
        "backward_s": 0.0,
        "num_workers": 4,
        "num_servers": 4,
        "comm": CommConfig(bandwidth="8mbit"),  # which asks for frames of 32 KiB
        "costs": FREE,
    }
    return Scenario(**(usual | changes))  # type: ignore[arg-type]


def two_layers(**changes: object) -> Scenario:
    """One worker, one server, two layers of one chunk each: 32,768 bytes, which take 32.768 ms on the link."""
    specs = tensors_of({"first.weight": (8192, 1), "second.weight": (8192, 1)})
    return scenario(specs=specs, num_workers=1, num_servers=1, **changes)


FRAME_S = 32768 / 1e6


def test_step_without_overlap_by_hand() -> None:
    # forward and backward, two frames up one after the other, the first one's answer down beside the second, whose answer comes last
    found = simulate(two_layers(forward_s=0.1, backward_s=0.2, overlap=False))
    assert found.step_s == pytest.approx(0.3 + 3 * FRAME_S)
    assert found.compute_s == pytest.approx(0.3) and found.exposed_s == pytest.approx(3 * FRAME_S)


def test_step_with_overlap_by_hand() -> None:
    # the second layer's frame travels up and down while backward makes the first one's gradient; then the first layer's frame goes and comes
    # back, and the next forward waits for it: nothing else is exposed
    found = simulate(two_layers(forward_s=0.1, backward_s=0.2))
    assert found.step_s == pytest.approx(0.3 + 2 * FRAME_S)


def test_only_the_last_micro_batch_makes_gradients_that_leave() -> None:
    # of eight, its backward takes 25 ms for each layer, less than a frame: the second layer's frame keeps the first one's waiting
    found = simulate(two_layers(backward_s=0.4, micro_batches=8))
    assert found.step_s == pytest.approx(0.4 - 0.025 + 3 * FRAME_S)
    assert simulate(two_layers(backward_s=0.4)).step_s == pytest.approx(0.4 + 2 * FRAME_S)


@pytest.mark.parametrize("on_host", [True, False])
def test_each_layer_is_installed_before_its_forward(on_host: bool) -> None:
    found = simulate(two_layers(forward_s=0.1, backward_s=0.2, costs=replace(FREE, install_byte_s=1 / 65536), computes_on_host=on_host))
    assert found.step_s == pytest.approx(1.3 + 2 * FRAME_S)


def test_costs_by_hand() -> None:
    costs = replace(FREE, push_frame_s=1.0, take_frame_s=2.0, sum_byte_s=3 / 32768, apply_byte_s=4 / 32768, answer_frame_s=5.0, land_frame_s=6.0)
    one = tensors_of({"only.weight": (8192, 1)})
    found = simulate(scenario(specs=one, num_workers=1, num_servers=1, costs=costs))
    assert found.step_s == pytest.approx(21 + 2 * FRAME_S)
    # two ranks on one host with one core: everything of workers and server takes its turn but for the one update and its two sums
    both = simulate(scenario(specs=one, num_workers=2, num_servers=1, costs=costs, hosts="one", cores_per_host=1, comm=CommConfig()))
    assert both.step_s == pytest.approx(2 * (1 + 2 + 3 + 5 + 6) + 4)
    assert both.worker_bytes == 0


def test_sums_wait_for_their_rank() -> None:
    # rank 0 comes a second late: rank 1's contribution lies there, and both are added after it
    costs = replace(FREE, sum_byte_s=1 / 32768)
    one = tensors_of({"only.weight": (8192, 1)})
    late = [simulate(scenario(specs=one, num_workers=2, num_servers=1, backward_s=2.0, costs=costs, stragglers={r: 1.5})).step_s for r in (0, 1)]
    assert late[0] == pytest.approx(late[1] + 1)


def test_exchange_reaches_the_links_floor() -> None:
    fine = CommConfig(bandwidth="8mbit", frame_bytes=32768, window_frames=64)
    for workers, servers in ((4, 4), (4, 2), (2, 4)):
        found = simulate(scenario(specs=equal_tensors(4 * MB, 32), num_workers=workers, num_servers=servers, comm=fine))
        rate = (4 * MB, workers, servers, 1e6, 1e6)
        assert floors.one_way_s(*rate) < found.step_s < 1.035 * floors.pipelined_s(*rate, frame_bytes=servers * 32768)


def test_colocated_servers_give_the_rings_time_and_as_many_helpers_byteps_optimum() -> None:
    found = simulate(scenario(specs=equal_tensors(4 * MB, 32), hosts="colocated"))
    assert found.step_s == pytest.approx(floors.ring_s(4 * MB, 4, 1e6), rel=0.03)
    assert found.step_s == pytest.approx(floors.byteps_s(4 * MB, 4, 0, 1e6), rel=0.03)
    helpers = simulate(scenario(specs=equal_tensors(16 * MB, 128)))
    assert helpers.step_s == pytest.approx(floors.byteps_s(16 * MB, 4, 4, 1e6), rel=0.03)


def test_steps_that_hide_everything_are_compute_and_stragglers_count() -> None:
    wide = CommConfig(bandwidth="100gbit")
    assert simulate(scenario(forward_s=1.0, backward_s=2.0, comm=wide)).efficiency > 0.99
    slow = simulate(scenario(forward_s=1.0, backward_s=2.0, comm=wide, stragglers={2: 2.0}))
    assert slow.step_s == pytest.approx(6.0, rel=0.01) and slow.compute_s == 6.0


def test_cores_of_one_host_are_shared() -> None:
    found = simulate(scenario(forward_s=1.0, backward_s=2.0, hosts="one", comm=CommConfig(), cores_per_host=2))
    assert found.step_s == pytest.approx(6.0, rel=0.01)  # four ranks on two cores
    on_devices = simulate(scenario(forward_s=1.0, backward_s=2.0, hosts="one", comm=CommConfig(), cores_per_host=2, computes_on_host=False))
    assert on_devices.step_s == pytest.approx(3.0, rel=0.01)


def test_half_the_bytes_take_half_the_time() -> None:
    comm = CommConfig(bandwidth="8mbit", frame_bytes=65536)
    halves = CommConfig(bandwidth="8mbit", frame_bytes=65536, push_format="bf16", pull_format="bf16")
    specs = equal_tensors(4 * MB, 16)
    assert simulate(scenario(specs=specs, comm=halves)).step_s == pytest.approx(simulate(scenario(specs=specs, comm=comm)).step_s / 2, rel=1e-3)


def test_a_narrow_window_waits_for_its_round_trips() -> None:
    # a frame up and there, its credit down and back with its answer; the second one up and there; its answer down and back
    narrow = CommConfig(bandwidth="8mbit", frame_bytes=32768, window_frames=1)
    assert simulate(two_layers(latency_s=0.1, comm=narrow)).step_s == pytest.approx(4 * FRAME_S + 0.4)
    assert simulate(two_layers(latency_s=0.1)).step_s == pytest.approx(3 * FRAME_S + 0.2)


def test_the_window_is_wider_once_all_frames_are_ready() -> None:
    def step_s(window: int | None, **changes: object) -> float:
        comm = CommConfig(bandwidth="8mbit", frame_bytes=32768, window_frames=window)
        return simulate(scenario(specs=equal_tensors(4 * MB, 32), comm=comm, **changes)).step_s

    one_by_one = {"backward_s": 4.0}
    assert step_s(None, **one_by_one) == step_s(8, **one_by_one) != step_s(16, **one_by_one)
    at_once = {"overlap": False, "costs": Costs()}
    assert step_s(None, **at_once) == step_s(16, **at_once) != step_s(8, **at_once)


def test_credits_come_back_behind_the_answers_before_them() -> None:
    # four frames of one layer: all of them up, then the last one's answer down; or each up after the answer that brings the credit of the one before
    specs = tensors_of({"only.weight": (4 * 8192, 1)})
    wide, narrow = (
        simulate(
            scenario(specs=specs, num_workers=1, num_servers=1, comm=CommConfig(bandwidth="8mbit", frame_bytes=32768, window_frames=window))
        ).step_s
        for window in (8, 1)
    )
    assert wide == pytest.approx(5 * FRAME_S)
    assert narrow == pytest.approx(8 * FRAME_S)


def test_work_of_the_kernel_for_links_takes_a_processor_of_the_host_that_receives() -> None:
    # the answer takes the worker's core for a second while it computes for two
    one = tensors_of({"only.weight": (8192, 1)})
    costs = replace(FREE, kernel_byte_s=1 / 32768)
    bare, working = (
        simulate(scenario(specs=one, num_workers=1, num_servers=1, forward_s=2.0, comm=CommConfig(bandwidth="100gbit"), cores_per_host=1, costs=c))
        for c in (FREE, costs)
    )
    assert bare.step_s == pytest.approx(2.0, rel=1e-3)
    assert working.step_s == pytest.approx(3.0, rel=1e-3)


def test_same_inputs_give_the_same_bits() -> None:
    first, second = (simulate(scenario(costs=Costs(), backward_s=0.1, cores_per_host=2)) for _ in range(2))
    assert first == second


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from(["apart", "one"]), st.sampled_from([0.0, 0.05]))
def test_thinner_links_slower_ranks_and_fewer_cores_never_help(workers: int, servers: int, hosts: str, compute_s: float) -> None:
    base = scenario(
        specs=equal_tensors(MB // 4, 6),
        num_workers=workers,
        num_servers=servers,
        hosts=hosts,
        forward_s=compute_s,
        backward_s=2 * compute_s,
        costs=Costs(),
        cores_per_host=2.0,
    )
    step_s = simulate(base).step_s
    assert step_s >= base.compute_s
    for worse in (
        replace(base, comm=replace(base.comm, bandwidth="2mbit")),
        replace(base, cores_per_host=1.0),
        replace(base, latency_s=0.2),
        replace(base, costs=Costs().scaled(10)),
        replace(base, backward_s=base.backward_s + 1),
    ):
        assert simulate(worse).step_s >= step_s * 0.98


def test_what_cannot_be_is_named() -> None:
    for wrong in ({"num_workers": 0}, {"hosts": "colocated", "num_servers": 5}, {"stragglers": {4: 2.0}}, {"worker_links": {-1: 1.0}}):
        with pytest.raises(ConfigError):
            scenario(**wrong)


def test_layers_share_the_compute() -> None:
    layers = layers_of(tensors_of({"a.weight": (10, 30), "a.bias": (10,), "b.weight": (10, 10), "c.weight": (5,)}))
    assert layers.of_tensor == (0, 0, 1, 2) and layers.shares == (0.75, 0.25, 0.0) and layers.num_bytes == (1240, 400, 20)
    convolutions = layers_of(tensors_of({"a.weight": (8, 3, 3, 3), "b.weight": (64, 8, 3, 3)}))
    assert convolutions.shares == (0.5, 0.5)
    assert math.fsum(layers_of(equal_tensors(MB)).shares) == pytest.approx(1)


def test_virtual_hosts_share_the_cores_of_their_machine() -> None:
    # four ranks compute at once: on hosts of their own in one second, on two cores in two
    apart = scenario(forward_s=0.5, backward_s=0.5, comm=CommConfig(frame_bytes=32768))
    assert simulate(apart).step_s == pytest.approx(1.0)
    found = simulate(replace(apart, machine_cores=2.0))
    assert found.step_s == pytest.approx(2.0)
    assert found.busy["cores of the machine"] == pytest.approx(1.0, rel=0.1)


def test_a_quota_of_virtual_hosts_holds_beside_the_cores_that_they_share() -> None:
    apart = scenario(forward_s=0.5, backward_s=0.5, comm=CommConfig(frame_bytes=32768), machine_cores=3.0)
    assert simulate(apart).step_s == pytest.approx(4 / 3)
    assert simulate(replace(apart, cores_per_host=0.5)).step_s == pytest.approx(2.0)  # 4 halves are less than 3 cores
    assert simulate(replace(apart, cores_per_host=0.8, machine_cores=2.0)).step_s == pytest.approx(2.0)


def test_cores_that_some_hosts_may_not_use_are_for_the_others() -> None:
    """A machine of 2 cores: one host of a quarter, two of as much as there is."""
    clock = Clock()
    machine = Machine(2.0)
    small, *large = (Cores(clock, cores, 1, machine) for cores in (0.25, 2.0, 2.0))
    ends: dict[str, float] = {}
    small.work(1.0, 1, lambda: ends.update(small=clock.now_s))
    for name, host in zip("ab", large, strict=True):
        host.work(0.875, 1, lambda name=name: ends.update({name: clock.now_s}))  # type: ignore[misc]
    clock.run()
    assert ends == pytest.approx({"small": 4.0, "a": 1.0, "b": 1.0})
    assert small.busy_s == pytest.approx(1.0)


def test_uneven_shares_of_a_link_make_a_step_longer_and_are_always_the_same() -> None:
    crowded = scenario(num_servers=1)
    uneven = replace(crowded, costs=replace(FREE, unfairness=0.4))
    assert simulate(uneven).step_s > 1.05 * simulate(crowded).step_s
    assert simulate(uneven) == simulate(uneven)


def test_ranks_that_measure_a_link_at_once_each_find_their_part_of_it() -> None:
    links = CommConfig(bandwidth="400mbit")
    assert scenario(comm=links).pacing.frame_bytes == 512 << 10
    assert scenario(comm=links, num_servers=1).pacing.frame_bytes == 64 << 10
    thin = replace(links, server_bandwidth={1: "20mbit"})
    assert scenario(comm=thin).pacing.frame_bytes == 32 << 10, "an echo of all servers is as late as that of the thinnest link"
