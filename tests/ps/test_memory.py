"""What a worker does with the memory of its gradients, seen from the kernel."""

import subprocess
import sys

FAULTS = """
import resource, torch
from ps.memory import keep_freed_memory
if {keeps}:
    keep_freed_memory()
for step in range(20):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    gradient = torch.ones(10 << 20)  # more than glibc ever keeps by itself
    del gradient
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, keeps: bool) -> int:
    """Page faults of 10 steps that make and drop 40 MiB each."""
    ended = subprocess.run([sys.executable, "-c", FAULTS.format(keeps=keeps)], capture_output=True, text=True, timeout=50, check=True)
    return int(ended.stdout)


def test_memory_that_gradients_have_left_is_not_asked_for_again() -> None:
    assert 10 * faults(keeps=True) < faults(keeps=False)
