"""What a worker does with the memory of its gradients, seen from the kernel."""

import subprocess
import sys

FAULTS = """
import resource, torch
from ps.memory import keep_freed_memory

def faults():
    for step in range(20):
        if step == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        gradient = torch.ones(10 << 20)  # more than glibc ever keeps by itself
        del gradient
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
keep_freed_memory()
print(faults())
"""
"""Page faults of 10 steps that make and drop 40 MiB each, without and with what the worker does."""


def test_memory_that_gradients_have_left_is_not_asked_for_again() -> None:
    ended = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=50, check=True)
    without, kept = map(int, ended.stdout.split())
    assert 10 * kept < without
