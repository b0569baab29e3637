"""What a stage's memory is."""

import numpy as np

from ps.stages.memory import forget_peak, peak_bytes

SIZE = 256 << 20


def test_a_peak_is_the_most_since_it_was_forgotten() -> None:
    held = np.ones(SIZE, np.uint8)
    assert held.all()
    del held
    high = peak_bytes()
    assert high and high >= SIZE
    forget_peak()
    low = peak_bytes()
    assert low and low <= high - SIZE // 2
