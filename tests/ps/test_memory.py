"""What processes do with memory that they have freed, seen from the kernel."""

import json
import subprocess
import sys

from ps.memory import LOOKS, SPARE_BYTES, Idle

FAULTS = """
import resource, torch
from ps.memory import keep_freed_memory

def faults(elements):
    for step in range(8):
        if step == 4:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        gradient = torch.ones(elements)
        del gradient
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

LARGE, SMALL = 10 << 20, 1 << 19  # the large one is more than glibc ever keeps by itself
print(faults(LARGE))
keep_freed_memory(4 << 20)
print(faults(LARGE), faults(SMALL))
keep_freed_memory()
print(faults(LARGE))
"""
"""Page faults of 4 steps that make and drop 40 or 2 MiB each, without and with what workers do: stages, and whole ranks."""


def test_memory_that_gradients_have_left_is_not_asked_for_again() -> None:
    ended = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=50, check=True)
    without, large_of_stage, small_of_stage, kept = map(int, ended.stdout.split())
    assert 10 * kept < without
    assert 2 * large_of_stage > without > 10 * small_of_stage, "what is large goes back"


LEFT = """
import json, threading
from ps.memory import LOOKS, SpareMemory, keep_freed_memory
keep_freed_memory()
spare = SpareMemory()
resident = [spare._free_bytes()]
taken, all_there = [], threading.Barrier(4)
def take():
    all_there.wait()
    taken.append([b"x" * 65536 for _ in range(750)])
threads = [threading.Thread(target=take) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for _ in range(2 * LOOKS):
    spare.look()  # a flood goes on: all of it is in use
taken = None
resident.append(spare._free_bytes())
for _ in range(LOOKS):
    spare.look()
resident.append(spare._free_bytes())
print(json.dumps(resident))
"""


def test_what_has_lain_free_for_some_looks_is_given_back() -> None:
    ended = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=50, check=True)
    before, kept, left = json.loads(ended.stdout)
    assert kept - before > 3000 * 65536 * 0.9
    assert left - before < SPARE_BYTES


LOOKED_AFTER = """
import time
from ps.memory import SPARE_BYTES, SpareMemory, keep_freed_memory
from ps.transport import streams
keep_freed_memory()
streams.LOOK_EVERY_S = 0.01
before = SpareMemory()._free_bytes()
streams._loop(0)
taken = [b"x" * 65536 for _ in range(3000)]
taken = None
while SpareMemory()._free_bytes() - before > SPARE_BYTES:
    time.sleep(0.01)
"""


def test_a_process_with_streams_looks_after_its_spare_memory() -> None:
    subprocess.run([sys.executable, "-c", LOOKED_AFTER], timeout=20, check=True)


def test_what_every_step_takes_again_stays() -> None:
    idle = Idle(10)
    assert not any(idle.lies_idle(free) for _ in range(100) for free in (10 + 10 * SPARE_BYTES, 10 + SPARE_BYTES))
    assert [idle.lies_idle(11 + SPARE_BYTES) for _ in range(LOOKS)] == [False] * (LOOKS - 1) + [True]
    idle.given_back(10 * SPARE_BYTES)
    assert not any(idle.lies_idle(11 * SPARE_BYTES) for _ in range(100)), "it is not malloc's"
