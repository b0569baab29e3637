"""What a comparison makes of its records."""

import math
import re

import pytest

from deploy.measure.comparison import Comparison, comparison
from workers.compare import Record, is_measured, turns
from workers.ddp import variants


def test_turns_alternate_and_give_both_the_same_steps() -> None:
    found = list(turns(15))
    for is_ours in (True, False):
        assert [step for whose, block in found if whose is is_ours for step in block] == list(range(15))
    assert [whose for whose, _ in found] == [True, False, False, True, True, False]
    assert [step for step in range(15) if is_measured(step)] == [7, 8, 9, 10, 11, 13, 14]


def test_buckets_beyond_the_model_are_not_tried() -> None:
    assert {variant.bucket_mb for variant in variants(1 << 20)} == {5}
    assert {variant.bucket_mb for variant in variants(6 << 20)} == {5, 25}
    assert len(variants(100 << 20)) == 6


def made_up(ours_s: float, theirs_s: float, *, last_loss: float = 1.0, exact: bool = True, spread: float = 0.01) -> Comparison:
    def record(step_s: float, loss: float) -> Record:
        steps = range(24)
        return Record([step_s * (1 + spread * (s % 5)) for s in steps], [0.1] * 24, [*[2.0] * 23, loss], [1.0] * 24, [8] * 24)

    rank = {"ours": record(ours_s, 1.0), "theirs": record(theirs_s, last_loss)}
    return comparison([rank, rank], dict.fromkeys(range(24), 0.2), variant="bucket 5 MB, views", exact=exact, bottleneck="shard 1's link")


def test_the_advice_names_the_faster_one_and_what_holds_pserver_up() -> None:
    assert made_up(0.6, 1.0).advice().startswith("Use pserver here: a step takes 0.60 of DDP's. CPU time is 2.00 of DDP's")
    assert re.match(r"Use DDP here: it is 2\.00 times as fast\. .*shard 1's link", made_up(1.0, 0.5).advice())


def test_a_difference_within_the_noise_or_too_small_is_none() -> None:
    assert made_up(0.98, 1.0).advice().startswith("No difference")
    assert made_up(0.9, 1.0, spread=0.2).advice().startswith("No difference")
    assert made_up(0.5, 1.0, spread=0.2).advice().startswith("Use pserver")


def test_without_equal_losses_there_is_no_advice_unless_a_format_explains_them() -> None:
    assert made_up(0.6, 1.0, last_loss=1.1).advice().startswith("No advice: the losses differ")
    assert made_up(0.6, 1.0, last_loss=math.nan).advice().startswith("No advice: the losses differ")
    inexact = made_up(0.6, 1.0, last_loss=1.1, exact=False)
    assert inexact.advice().startswith("Use pserver") and "as the wire format" in inexact.text()


def test_a_step_is_as_long_as_its_slowest_rank_and_cpu_time_is_that_of_all_processes() -> None:
    fast, slow = (Record([s] * 24, [0.1] * 24, [2.0] * 24, [1.0] * 24, [8] * 24) for s in (0.5, 0.75))
    found = comparison([{"ours": fast, "theirs": fast}, {"ours": slow, "theirs": fast}], {10: 0.3}, variant="", exact=True, bottleneck="")
    assert (found.ours.step_s, found.ddp.step_s) == (0.75, 0.5)
    assert found.ours.cpu_s == pytest.approx(0.5) and found.ddp.cpu_s == pytest.approx(0.2)
    assert found.ours.samples_per_s == pytest.approx(16 / 0.75)
