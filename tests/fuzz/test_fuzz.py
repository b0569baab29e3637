"""A short slice of `make fuzz`, and that it would see what is wrong."""

from pathlib import Path

import pytest

from tests.fuzz.calls import METHODS
from tests.fuzz.campaign import MOST_GROWTH_MB, Campaign
from tests.fuzz.format import Format, try_bytes
from tests.fuzz.formats import FORMATS
from tests.ps.test_security import METHODS as ALL_METHODS


def test_wrong_messages_and_wrong_bytes_are_answered_or_named() -> None:
    campaign = Campaign(examples=3)
    campaign.run(0, "", lambda rounds: True)
    assert campaign.failures == []
    assert campaign.tried >= 2 * (len(METHODS) + len(FORMATS)) and campaign.growth_mb <= MOST_GROWTH_MB


def test_every_method_is_called_and_every_format_is_read_right_first() -> None:
    assert list(METHODS) == ALL_METHODS
    assert len({one.name for one in FORMATS}) == len(FORMATS)


def test_a_reader_that_stumbles_is_named_with_the_seed_that_shows_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stumbles(data: bytes, folder: Path) -> None:
        if data != b"right":
            raise KeyError("x")

    monkeypatch.setattr("tests.fuzz.campaign.FORMATS", [Format("stumbling", lambda: b"right", stumbles)])
    campaign = Campaign(examples=10)
    campaign.run(5, "stumbling", lambda rounds: True)
    (failure,) = campaign.failures
    assert failure.startswith("stumbling, seed 5 (ARGS=\"--seed 5 --only 'stumbling' --seconds 1\"):") and "KeyError: 'x'" in failure
    with pytest.raises(OSError, match="wrong"):
        try_bytes(Format("wrong", lambda: b"", lambda data, folder: (folder / "wrong").read_bytes()), b"", tmp_path)
