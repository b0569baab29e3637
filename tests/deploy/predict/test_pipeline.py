"""Ranks that are split over stages in the model of a step: the closed form of the bubble, small cases by hand, and what travels where."""

import math
from dataclasses import replace

import pytest

from deploy.predict import floors
from deploy.predict.classes import EVERY, ROUGH
from deploy.predict.costs import Costs
from deploy.predict.scenario import Pipeline, Scenario, equal_tensors
from deploy.predict.simulate import simulate
from ps.config import CommConfig
from ps.errors import ConfigError

FREE = Costs(**{name: 0.0 for name in vars(Costs()) if name.endswith("_s")}, wire_overhead=1.0)
MB = 1 << 20


def staged(stages: int, micro: int = 1, passed: float = 0.0, model_bytes: int = 64, **changes: object) -> Scenario:
    """One rank of equal stages of a tensor each, one server, no limit of any link; forward takes 1 s, backward 2 s, and nothing else costs."""
    specs = tuple(replace(spec, stage=stage) for stage, spec in enumerate(equal_tensors(model_bytes, stages)))
    equal = (1 / stages,) * stages
    pipeline = Pipeline(forward_shares=equal, backward_shares=equal, passed_bytes=(passed,) * (stages - 1), micro_batches=micro)
    usual = {"forward_s": 1.0, "backward_s": 2.0, "num_workers": 1, "num_servers": 1, "costs": FREE, "comm": CommConfig()}
    return Scenario(specs=specs, pipeline=pipeline, **(usual | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("micro", [1, 2, 3, 8])
def test_bubble_of_equal_stages_is_the_closed_form(stages: int, micro: int) -> None:
    found = simulate(staged(stages, micro, num_workers=2))
    assert found.step_s == pytest.approx((micro + stages - 1) / micro * 3 / stages)
    assert found.bubble_s / found.step_s == pytest.approx(floors.bubble(stages, micro))
    assert found.compute_s == pytest.approx(3 / stages)


def test_the_longest_stage_sets_the_pace_and_its_neighbours_wait() -> None:
    uneven = Pipeline(forward_shares=(0.25, 0.75), backward_shares=(0.25, 0.75), passed_bytes=(0.0,), micro_batches=4)
    found = simulate(replace(staged(2), pipeline=uneven))
    # the first forward and the last backward of the first stage are alone, the second stage's eight passes are in between
    assert found.step_s == pytest.approx(0.25 / 4 + 3 * 0.75 + 2 * 0.25 / 4)
    assert found.compute_s == pytest.approx(2.25) and found.bubble_s == pytest.approx(3 * 0.25 / 4)


def test_what_stages_pass_takes_their_links_and_as_long_as_it_travels() -> None:
    comm = CommConfig(bandwidth="8mbit")
    one = simulate(staged(2, passed=500_000, comm=comm))
    assert one.step_s == pytest.approx(3 + 2 * 0.5, rel=1e-3)  # and the few bytes of the model
    far = simulate(staged(2, passed=500_000, comm=comm, latency_s=0.25))
    assert far.step_s == pytest.approx(3 + 2 * 0.75 + 2 * 0.25, rel=1e-3)  # a push and its answer travel too
    # of four micro-batches the activations of one travel while the next is computed, if that takes longer
    hidden = simulate(staged(2, 4, passed=400_000, comm=comm, hosts="apart"))
    assert hidden.step_s == pytest.approx((4 + 1) / 4 * 1.5 + 2 * 0.1, rel=0.1)
    assert simulate(staged(2, passed=500_000, hosts="one")).step_s == pytest.approx(3), "on one host there is no link"


@pytest.mark.parametrize("hosts", ["apart", "colocated"])
def test_stages_push_their_own_blocks_only(hosts: str) -> None:
    comm = CommConfig(bandwidth="8mbit", frame_bytes=32768)
    idle = {"forward_s": 0.0, "backward_s": 0.0, "num_workers": 2, "num_servers": 4, "comm": comm, "hosts": hosts, "model_bytes": 4 * MB}
    found = simulate(staged(4, **idle))  # type: ignore[arg-type]
    # of a quarter of the model, half of the workers have a quarter beside them
    assert found.worker_bytes == pytest.approx(MB if hosts == "apart" else MB * 7 / 8)
    # a server answers either rank with a quarter of the model; one beside a worker not all of that, but there is also what that one pushes
    floor_s = floors.transfer_s(2 * MB if hosts == "apart" else 2 * MB - MB / 4 + 3 / 4 * MB, 1e6)
    assert floor_s < found.step_s < 1.15 * floor_s


def test_a_sum_waits_for_that_stage_of_every_rank_and_for_no_other() -> None:
    costs = replace(FREE, sum_byte_s=1 / 32)
    found = simulate(staged(2, num_workers=3, costs=costs, stragglers={1: 2.0}))
    assert found.step_s == pytest.approx(2 * 3.0 + 2.0), "after the slow rank's gradient two sums of a second each: its own, and rank 2's"
    assert found.compute_s == 3.0


def test_steps_without_overlap_push_when_backward_is_over() -> None:
    scenario = staged(2, model_bytes=2 * 32768, comm=CommConfig(bandwidth="8mbit"))
    frame_s = 32768 / 1e6
    assert simulate(scenario).step_s == pytest.approx(3 + 2 * frame_s)
    two_layers = tuple(replace(spec, stage=i // 2) for i, spec in enumerate(equal_tensors(4 * 32768, 4)))
    early, late = (simulate(replace(scenario, specs=two_layers, overlap=overlap)).step_s for overlap in (True, False))
    assert early == pytest.approx(3 + 2 * frame_s) and late == pytest.approx(3 + 3 * frame_s)


def test_stages_of_equal_ranks_taken_together_give_what_all_of_them_give() -> None:
    options = {
        "num_workers": 16,
        "num_servers": 2,
        "comm": CommConfig(bandwidth="400mbit", frame_bytes=1 << 18),
        "costs": Costs(),
        "cores_per_host": 8,
    }
    many = staged(2, 2, passed=2e6, model_bytes=2 * MB, **options)  # type: ignore[arg-type]
    together, alone = simulate(many, ROUGH), simulate(many, EVERY)
    assert together.step_s == pytest.approx(alone.step_s, rel=0.01) and together.num_events < alone.num_events
    assert together.bubble_s == pytest.approx(alone.bubble_s, rel=0.05)
    assert "workers 0-2 (stage 0) up" in together.busy and "worker 31 up" in alone.busy


def test_a_stage_without_parameters_has_nothing_to_wait_for() -> None:
    scenario = staged(2, 2)
    found = simulate(replace(scenario, specs=tuple(replace(spec, stage=1) for spec in scenario.specs)))
    assert found.step_s < 3 * 3 / 4 + 1e-9 and math.isfinite(found.bubble_s)


def test_links_and_servers_on_hosts_are_counted_by_members() -> None:
    assert simulate(staged(2, passed=1e5, comm=CommConfig(bandwidth="80mbit"), worker_links={1: 1e5})).step_s > 3 + 2 * 0.99
    staged(2, num_servers=2, hosts="colocated")
    with pytest.raises(ConfigError, match="3 servers on the hosts of 2 workers"):
        staged(2, num_servers=3, hosts="colocated")
    with pytest.raises(ConfigError, match="link of worker 2: there are 0 to 1"):
        staged(2, worker_links={2: 1.0})
