import dataclasses
import math

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.comm import CommConfig, parse_rate
from ps.config import OptimizerConfig, ScheduleConfig, ServerSettings, from_json, to_json

FULL = ServerSettings(
    run_id="r",
    secret="t",
    shard=1,
    num_servers=2,
    num_workers=3,
    optimizer=OptimizerConfig(name="adam", lr=0.1, max_grad_norm=1.0),
    schedule=ScheduleConfig(name="cosine", warmup_steps=3),
    comm=CommConfig(bandwidth="200mbit", server_bandwidth={1: "10mbit"}),
)


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (OptimizerConfig, "lr", 0.0),
        (OptimizerConfig, "lr", math.nan),
        (OptimizerConfig, "momentum", 1.0),
        (OptimizerConfig, "momentum", -0.1),
        (OptimizerConfig, "weight_decay", -1.0),
        (OptimizerConfig, "max_grad_norm", 0.0),
        (ScheduleConfig, "warmup_steps", -1),
        (CommConfig, "frame_bytes", 4095),
        (CommConfig, "frame_bytes", (12 << 20) + 1),
        (CommConfig, "window_frames", 0),
        (CommConfig, "out_of_order_bytes", -1),
    ],
)
def test_a_value_out_of_range_is_named_with_its_limit(cls: type, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{key} = {value!r} is out of range: "):
        cls(**{key: value})


@pytest.mark.parametrize("change", [{"beta1": 1.0}, {"beta2": math.nan}, {"eps": 0.0}])
def test_a_value_of_adam_out_of_range_is_named(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"optimizer.{next(iter(change))} = .* is out of range"):
        OptimizerConfig(name="adam", **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"shard": 2}, {"shard": -1}, {"num_workers": 0}])
def test_a_place_outside_of_the_run_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is out of range"):
        dataclasses.replace(FULL, **change)


def test_settings_cross_a_process_boundary_unchanged() -> None:
    assert from_json(ServerSettings, to_json(FULL)) == FULL


@pytest.mark.parametrize(
    "text", ['{"name": "sdg"}', '{"lr": "fast"}', '{"momentum": 2}', "{}x", '{"nonfinite": "ignore"}', '{"momentum_form": "nesterov"}']
)
def test_wrong_json_is_refused(text: str) -> None:
    with pytest.raises((ValueError, pydantic.ValidationError)):
        from_json(OptimizerConfig, text)


@pytest.mark.parametrize(
    ("optimizer", "two_phase"),
    [(OptimizerConfig(), False), (OptimizerConfig(max_grad_norm=1.0), True), (OptimizerConfig(nonfinite="skip"), True)],
)
def test_clipping_and_skipping_need_two_phases(optimizer: OptimizerConfig, two_phase: bool) -> None:
    assert optimizer.two_phase is two_phase


@pytest.mark.parametrize(("text", "rate"), [("8kbit", 1e3), ("200mbit", 25e6), ("1gbit", 125e6), (" 1.5 MBIT ", 187_500.0)])
def test_rates_are_decimal_bits(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@given(st.text(max_size=12))
def test_any_other_text_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="is no rate: write a number above 0"):
        parse_rate(text + "bit")


@pytest.mark.parametrize(("key", "change"), [("bandwidth", {"bandwidth": "fast"}), ("server_bandwidth.1", {"server_bandwidth": {1: "0mbit"}})])
def test_a_wrong_rate_is_named_by_its_key(key: str, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"comm.{key}: .* is no rate"):
        CommConfig(**change)  # type: ignore[arg-type]


def test_a_servers_own_rate_goes_before_the_common_one() -> None:
    comm = FULL.comm
    assert [comm.link_bytes_per_s(shard) for shard in (None, 0, 1)] == [25e6, 25e6, 1.25e6]
    assert CommConfig(server_bandwidth={1: "8kbit"}).link_bytes_per_s(0) is None


def test_rates_of_single_workers_and_what_keeps_to_them() -> None:
    comm = CommConfig(bandwidth="200mbit", worker_bandwidth={1: "8mbit"})
    assert [comm.link_bytes_per_s(worker=rank) for rank in (None, 0, 1)] == [25e6, 25e6, 1e6]
    assert comm.bucket_bytes_per_s(worker=1) == 1e6 and not comm.may_share
    links = dataclasses.replace(comm, shaping="links")
    assert links.link_bytes_per_s(worker=1) == 1e6
    assert links.bucket_bytes_per_s(worker=1) is None and links.may_share
    assert CommConfig(latency="2ms").may_share


@pytest.mark.parametrize(("text", "seconds"), [("2ms", 0.002), ("500us", 0.0005), ("0.1s", 0.1)])
def test_latencies_are_times(text: str, seconds: float) -> None:
    assert CommConfig(latency=text).latency_s == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["2", "ms", "-1ms", "2 minutes"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="comm.latency: .* is no time: write a number and us, ms or s, for example 2ms"):
        CommConfig(latency=text)
