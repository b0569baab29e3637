"""How long a server is asked again."""

import pytest

from ps.control import ServerAddress
from ps.errors import Unreachable
from ps.patience import Patience

HERE, THERE = ServerAddress(0, "a:1", "a:2"), ServerAddress(0, "a:3", "a:4")
ERROR = Unreachable("server 0 does not answer")


def test_a_server_is_asked_again_for_so_long_and_then_its_error_is_raised() -> None:
    patience = Patience(40.0)
    for now_s in (100.0, 120.0, 140.0):
        patience.failed(HERE, ERROR, now_s)
    with pytest.raises(Unreachable, match="server 0 does not answer"):
        patience.failed(HERE, ERROR, 140.1)


def test_a_server_that_was_started_again_has_a_time_of_its_own() -> None:
    patience = Patience(40.0)
    patience.failed(HERE, ERROR, 100.0)
    patience.failed(THERE, ERROR, 139.0)
    patience.failed(THERE, ERROR, 179.0)
    with pytest.raises(Unreachable):
        patience.failed(THERE, ERROR, 179.1)


def test_an_answer_begins_the_time_anew() -> None:
    patience = Patience(40.0)
    patience.failed(HERE, ERROR, 100.0)
    patience.succeeded()
    patience.failed(HERE, ERROR, 150.0)
    patience.failed(HERE, ERROR, 190.0)
    with pytest.raises(Unreachable):
        patience.failed(HERE, ERROR, 190.1)
