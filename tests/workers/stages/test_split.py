"""Blocks on stages: the best cut, the wanted cut, and what cannot be cut."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ps.errors import ConfigError
from workers.stages.split import Split, balanced, cut_at

COSTS = st.lists(st.integers(0, 50).map(float), min_size=1, max_size=8)


@given(COSTS, st.data())
def test_no_other_cut_has_a_smaller_largest_stage(costs: list[float], data: st.DataObject) -> None:
    num_stages = data.draw(st.integers(1, len(costs)))
    pairs = st.tuples(st.integers(0, len(costs) - 1), st.integers(0, len(costs) - 1)).map(lambda pair: (min(pair), max(pair)))
    together = data.draw(st.lists(pairs, max_size=2))
    all_cuts = combinations(range(1, len(costs)), num_stages - 1)
    fine = [Split(cuts, tuple(costs)) for cuts in all_cuts if not any(i < cut <= j for i, j in together for cut in cuts)]
    if not fine:
        with pytest.raises(ConfigError, match="share parameters"):
            balanced(costs, num_stages, together=together)
        return
    found = balanced(costs, num_stages, together=together)
    assert found in fine
    assert max(found.stage_costs) == min(max(other.stage_costs) for other in fine)
    assert [i for blocks in found.stages for i in blocks] == list(range(len(costs))) and all(found.stages)


def test_the_split_is_printed_with_its_imbalance() -> None:
    assert str(balanced([4, 1, 1, 2], 2)) == "4 blocks on 2 stages: 0–0 (50%), 1–3 (50%); largest 1.000 of the mean"
    assert cut_at([3], [4, 1, 1, 2], 2).imbalance == 1.5
    assert balanced([0, 0], 2).imbalance == 1.0


@pytest.mark.parametrize("cuts", [[], [0], [4], [1, 2], [2, 1]])
def test_cuts_that_make_no_stages_are_refused(cuts: list[int]) -> None:
    with pytest.raises(ConfigError, match="give 1 ascending first blocks, each 1 … 3"):
        cut_at(cuts, [1, 1, 1, 1], 2)


@pytest.mark.parametrize("num_stages", [0, 4])
def test_every_stage_has_a_block(num_stages: int) -> None:
    with pytest.raises(ConfigError, match="take 1 … 3 stages"):
        balanced([1, 1, 1], num_stages)
