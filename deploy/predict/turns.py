"""Whose turn it is where everybody begins with another one. Pure."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate


def turns(counts: Sequence[int], parts: Sequence[int], first: int, count: int) -> Sequence[int]:
    """The order in which a class of `count` members, the `first` one and those after it, deals `parts` to each of several classes of `counts`
    members, in one round.

    Member r's t-th frame is for (r + t) mod N of the N members opposite. So the class is at `count` of them at a time, next to each other, and
    moves on: whatever class is furthest behind in this gets the next part. Of several that are, every class begins with another one.
    """
    return _turns(tuple(counts), tuple(parts), first, count)


@lru_cache(maxsize=1024)
def _turns(counts: tuple[int, ...], parts: tuple[int, ...], first: int, count: int) -> Sequence[int]:
    opposite, left, owed = sum(counts), list(parts), [0.0] * len(counts)
    bounds = list(accumulate(counts, initial=0))
    turn_s = opposite / sum(parts)
    rounds, rest = divmod(count, opposite)
    shift = first // count
    found = []
    for turn in range(sum(parts)):
        at = (first + (turn + 0.5) * turn_s - 0.5) % opposite
        for i, size in enumerate(counts):
            spans = [(bounds[i] + wrap, bounds[i + 1] + wrap) for wrap in (0, opposite)]
            here = rounds * size + sum(max(0.0, min(at + rest, stop) - max(at, start)) for start, stop in spans)
            owed[i] += here / count * turn_s * parts[i] / size
        best = max((i for i in range(len(counts)) if left[i]), key=lambda i: (round(owed[i], 9), -((i - shift) % len(counts))))
        owed[best] -= 1
        left[best] -= 1
        found.append(best)
    return tuple(found)
