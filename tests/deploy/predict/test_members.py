"""The order in which a worker of the model lets its frames leave."""

from typing import Any

import pytest

from deploy.predict.classes import Frame, ServerClass
from deploy.predict.members import _places, _rank_0s_times
from deploy.predict.scenario import layers_of
from ps.config import CommConfig
from tests.deploy.predict.test_simulate import scenario


def frame(layer: int) -> Frame:
    return Frame(exact_bytes=10, push_bytes=10, pull_bytes=10, layers=(layer,))


@pytest.mark.parametrize(("byte_s", "places"), [(0.0, (2, 0, 1)), (0.02, (1, 0, 2)), (0.005, (2, 0, 1))])
def test_an_earlier_layer_goes_before_what_is_left_of_a_later_one_once_rank_0_has_it(byte_s: float, places: tuple[int, ...]) -> None:
    """Layer 1 is ready after 0.1 s, layer 0 after 0.2."""
    assert _places((frame(0), frame(1), frame(1)), (0.2, 0.1), byte_s) == places


def times(host: int = 0, **changes: Any) -> tuple[tuple[float, ...], float]:
    """Of rank 0, with four servers that have a quarter of 16 layers each: 1.6 MB in all, for links of 1 MB/s. They are on hosts of class 1."""
    made = scenario(**changes)
    quarters = tuple(Frame(exact_bytes=25_000, push_bytes=25_000, pull_bytes=25_000, layers=(layer,)) for layer in range(16))
    return _rank_0s_times(made, layers_of(made.specs), host, [ServerClass(0, 4, 1.0, 1e6, 1, quarters)])


def test_rank_0s_times_are_those_of_its_backward_and_its_link() -> None:
    made_s, byte_s = times(backward_s=0.6, stragglers={0: 2.0})
    assert made_s == pytest.approx([0.075 * (16 - layer) for layer in range(16)])
    assert byte_s == pytest.approx(4 / 1e6)


@pytest.mark.parametrize(
    "changes",
    [
        {"comm": CommConfig()},  # no link
        {"comm": CommConfig(bandwidth="8mbit", frame_bytes=65536, window_frames=8)},  # nobody measures it
        {"overlap": False},
        {"backward_s": 1.7},  # the link waits for gradients
        {"stragglers": {0: 3.0}},
        {"hosts": "colocated", "host": 1, "backward_s": 1.3},  # a quarter stays on the host
    ],
)
def test_elsewhere_the_earliest_layer_that_is_ready_goes_first(changes: dict[str, Any]) -> None:
    assert times(**({"backward_s": 0.6} | changes)) == ((0.0,) * 16, 0.0)
