"""Axes, points, and what they change: pure."""

from dataclasses import replace

import pytest

from deploy.config import Config, ScalingConfig, TaskConfig
from deploy.simulation.wishes import Wishes
from deploy.sweep.grid import Point, changes, parse_axes, points_of, wishes_of
from ps.config import OptimizerConfig
from ps.errors import ConfigError
from workers.config import TrainConfig

BASE = Config(task=TaskConfig(name="digits"), train=TrainConfig(batch_size=32), scaling=ScalingConfig(num_workers=2))


def test_a_grid_is_all_combinations_and_values_have_their_types() -> None:
    axes = parse_axes(["workers=1,2", "bandwidth=100mbit,1gbit", "optimizer.nesterov=true", "lr=0.1"])
    points = points_of(axes)
    assert [tuple(point.values.values()) for point in points] == [(workers, rate, True, 0.1) for workers in (1, 2) for rate in ("100mbit", "1gbit")]
    assert points[0].name == "workers-1_bandwidth-100mbit_nesterov-True_lr-0.1"
    assert Point({"a": 1, "b": 2}).key == Point({"b": 2, "a": 1}).key
    assert points_of([])[0].values == {}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["workers"], "write KEY=VALUE,VALUE, for example workers=1,2,4"),
        (["workers=1,,2"], "write KEY=VALUE,VALUE"),
        (["worker=1"], "unknown key worker: did you mean workers"),
        (["workers=1", "scaling.num_workers=2"], "scaling.num_workers has come before"),
        (["workers=1,1"], "a value comes twice"),
    ],
)
def test_what_is_no_axis_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_axes(texts)


def changed(text: str, scaling: str | None = None, base: Config = BASE) -> list[list[str]]:
    axes = parse_axes(text.split())
    return [changes(point, base, scaling, axes) for point in points_of(axes)]  # type: ignore[arg-type]


def test_strong_scaling_keeps_the_global_batch_and_weak_scaling_a_workers() -> None:
    assert changed("workers=1,4", "strong") == [
        [f"scaling.num_workers={workers}", "train.batch_size=", "train.global_batch_size=64"] for workers in (1, 4)
    ]
    weak = [[f"scaling.num_workers={workers}", "train.global_batch_size=", "train.batch_size=32"] for workers in (1, 4)]
    assert changed("workers=1,4", "weak") == changed("workers=1,4") == weak
    whole = replace(BASE, train=TrainConfig(global_batch_size=64))
    assert changed("workers=1,4", None, whole) == changed("workers=1,4", "strong")
    assert changed("workers=1,4", "weak", whole) == weak


def test_a_batch_rule_refers_to_the_smallest_batch_of_the_grid_unless_the_config_says_more() -> None:
    sets = changed("batch=16,64 lr_scaling=none,sqrt")
    assert [text for text in sets[3] if text.startswith("optimizer")] == ["optimizer.lr_scaling=sqrt", "optimizer.reference_batch_size=32"]
    assert "optimizer.reference_batch_size=" in sets[2] and "train.batch_size=64" in sets[3]
    known = replace(BASE, optimizer=OptimizerConfig(lr_scaling="sqrt", reference_batch_size=128))
    assert "optimizer.reference_batch_size=128" in changed("batch=16 lr_scaling=linear", None, known)[0]


def test_axes_of_links_are_simulated_and_others_are_not() -> None:
    (point,) = points_of(parse_axes(["workers=2", "bandwidth=1gbit", "colocate=true", "cpus=0.5", "straggler=rank=1,factor=2"]))
    assert wishes_of(point) == Wishes(bandwidth="1gbit", colocate=True, cpus=0.5, stragglers=("rank=1,factor=2",))
    assert wishes_of(points_of(parse_axes(["workers=2"]))[0]) is None
    for text, message in (("cpus=many", "give a number of cores"), ("colocate=maybe", "true or false")):
        with pytest.raises(ConfigError, match=message):
            wishes_of(points_of(parse_axes([text]))[0])
