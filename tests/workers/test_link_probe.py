import random
from collections import Counter

import pytest

from workers.link_probe import Places, most_steps, places_of, rounds


def test_who_shares_a_host_with_the_same_process_shares_it_with_each_other() -> None:
    assert places_of([[True, False, True], [False, False, False], [False, False, True]]) == Places((0, 1, 0), (0, 4, 0))


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 5, 8, 13])
def test_every_pair_of_hosts_is_measured_once_each_way_wherever_ranks_and_shards_are(hosts: int) -> None:
    rng = random.Random(hosts)
    paired = tuple(range(hosts))
    moved = Places(paired, (*paired[1:], 0))
    apart = Places(paired, tuple(hosts + shard for shard in range(hosts)))
    drawn = [Places(*(tuple(rng.randrange(2 * hosts) for _ in range(hosts)) for _ in range(2))) for _ in range(20)]
    for places in [Places(paired, paired), moved, apart, Places(paired, (0,) * hosts), Places((0,) * hosts, (0,) * hosts), *drawn]:
        turns = rounds(places)
        ends = [[(places.ranks[rank], places.shards[shard]) for rank, shard in turn] for turn in turns]
        for turn in ends:
            assert max(Counter(host for pair in turn for host in set(pair)).values()) == 1, "a host in two pairs at once"
        assert Counter(pair for turn in ends for pair in turn) == Counter({(a, b): 1 for a in places.ranks for b in places.shards})
        assert 1 + len(turns) <= most_steps(hosts)


@pytest.mark.parametrize("hosts", [2, 3, 4, 5, 8, 13])
def test_with_a_rank_and_a_shard_on_every_host_no_round_is_wasted(hosts: int) -> None:
    paired = tuple(range(hosts))
    assert len(rounds(Places(paired, paired))) <= 2 * (hosts + hosts % 2) + 1
