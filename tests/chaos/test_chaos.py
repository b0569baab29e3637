"""A short campaign, and what a long one is made of. `make chaos` is the long one."""

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.plan import IN_RECOVERY, IN_STEP, IN_TWO_PHASES, first


@pytest.mark.timeout(300)
def test_faults_from_outside_change_no_bit_and_leave_nothing_behind(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, "forked", steps=96)
    campaign.part(1, seed=1, size=5)
    assert campaign.faults >= 5
    assert (campaign.differences, campaign.hangs, campaign.orphans) == (0, 0, 0)


def test_a_campaign_of_200_hits_every_place_many_times_and_mostly_inside_a_step() -> None:
    listed = [fault for part in range(8) for fault in first(1 + part, 25, num_workers=2, num_servers=2, two_phases=bool(part % 2))]
    places = Counter(fault.place for fault in listed) + Counter(fault.again for fault in listed if fault.again)
    for place in (*IN_STEP["worker"], *IN_STEP["server"], *IN_TWO_PHASES):
        assert places[place] >= 5, place
    assert all(places[place] for its in IN_RECOVERY.values() for place in its), places
    assert sum(fault.is_in_step for fault in listed) >= 0.8 * len(listed)
    assert sum(fault.shape != "one" for fault in listed) >= 30


def test_a_seed_gives_the_same_faults_again() -> None:
    plans = [first(seed, 25, num_workers=2, num_servers=2, two_phases=True) for seed in (7, 7, 8)]
    assert plans[0] == plans[1] != plans[2]
