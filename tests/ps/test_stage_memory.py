"""What a stage's memory is."""

import mmap

from ps.stages.memory import forget_peak, peak_bytes

SIZE = 256 << 20


def test_a_peak_is_the_most_since_it_was_forgotten() -> None:
    forget_peak()
    before = peak_bytes()
    with mmap.mmap(-1, SIZE) as held:  # what malloc gives back is its own affair
        for page in range(0, SIZE, mmap.PAGESIZE):
            held[page] = 1
    high = peak_bytes()
    assert before and high and high >= before + SIZE // 2
    forget_peak()
    low = peak_bytes()
    assert low and low <= high - SIZE // 2
