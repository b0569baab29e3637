from collections import Counter

import pytest

from workers.link_probe import num_steps, target


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 5, 8, 13])
def test_every_pair_is_measured_once_each_way_and_no_host_is_in_two_at_once(hosts: int) -> None:
    met: Counter[tuple[int, int]] = Counter()
    for step in range(num_steps(hosts)):
        pairs = [(rank, shard) for rank in range(hosts) if (shard := target(rank, step, hosts)) is not None]
        met.update(pairs)
        if step:
            assert max(Counter(host for pair in pairs for host in pair).values(), default=1) == 1
    assert met == Counter({(rank, shard): 1 for rank in range(hosts) for shard in range(hosts)})
