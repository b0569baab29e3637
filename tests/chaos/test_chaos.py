"""A short campaign, and what a long one is made of. `make chaos` is the long one."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from tests.chaos.campaign import Campaign
from tests.chaos.plan import IN_RECOVERY, IN_STEP, IN_TWO_PHASES, Fault, How, first

ROOT = Path(__file__).parents[2]


CUT_OFF = """
import os, socket, threading
import psutil
from tests.chaos.network import enter_own_network, partition

enter_own_network()
with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as there, listener.accept()[0] as here:
    over = threading.Event()
    cut = threading.Thread(target=lambda: (partition(psutil.Process(), 1.0), over.set()))
    cut.start()
    here.settimeout(0.05)
    arrived = 0
    while not over.is_set():
        there.send(b"x")
        try:
            arrived += len(here.recv(1 << 20))
        except TimeoutError:
            print("silence")
    cut.join()
    here.settimeout(10)
    print("heard again" if here.recv(1 << 20) else "")
"""


def planned(seed: int, *, two_phases: bool) -> list[Fault]:
    return first(seed, 25, num_workers=2, num_servers=2, two_phases=two_phases, partitions=True)


@pytest.mark.root
def test_a_partition_swallows_what_is_sent_and_heals() -> None:
    done = subprocess.run([sys.executable, "-c", CUT_OFF], capture_output=True, text=True, timeout=30, check=True, cwd=ROOT)
    assert done.stdout.splitlines().count("silence") >= 5
    assert done.stdout.splitlines()[-1] == "heard again"


@pytest.mark.timeout(300)
def test_faults_from_outside_change_no_bit_and_leave_nothing_behind(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, "forked", steps=96, partitions=False)
    campaign.part(1, seed=1, size=5)
    assert campaign.faults >= 5
    assert (campaign.differences, campaign.hangs, campaign.orphans) == (0, 0, 0)


def test_a_campaign_of_200_hits_every_place_many_times_and_mostly_inside_a_step() -> None:
    listed = [fault for part in range(8) for fault in planned(1 + part, two_phases=bool(part % 2))]
    places = Counter(fault.place for fault in listed) + Counter(fault.again for fault in listed if fault.again)
    for place in (*IN_STEP["worker"], *IN_STEP["server"], *IN_TWO_PHASES):
        assert places[place] >= 5, place
    assert all(places[place] for its in IN_RECOVERY.values() for place in its), places
    assert sum(fault.is_in_step for fault in listed) >= 0.8 * len(listed)
    assert sum(fault.shape != "one" for fault in listed) >= 30
    assert all(sum(fault.how == how for fault in listed) >= 5 for how in get_args(How))


def test_a_seed_gives_the_same_faults_again() -> None:
    plans = [planned(seed, two_phases=True) for seed in (7, 7, 8)]
    assert plans[0] == plans[1] != plans[2]
