"""The training thread sleeps through news that it does not wait for, and its wait is counted all the same."""

import threading
from itertools import count

from ps.waiter import Waiter


def test_a_wait_ends_with_what_it_is_for_and_is_counted_by_what_held_it_up() -> None:
    changed, ticks = threading.Condition(), count()
    stretches: list[tuple[float, bool]] = []
    blocked, is_there, waits = [True], [False], threading.Event()
    waiter = Waiter(changed, lambda s, why: stretches.append((s, why)), lambda: blocked[0], lambda: float(next(ticks)))
    woken: list[bool] = []

    def wait() -> None:
        with changed:
            waits.set()
            waiter.wait(lambda: is_there[0], 30.0)
            woken.append(is_there[0])

    thread = threading.Thread(target=wait)
    thread.start()
    waits.wait()
    for step in range(3):
        with changed:
            blocked[0] = step == 0
            waiter.news()
    with changed:
        is_there[0] = True
        waiter.news()
    thread.join(30.0)
    assert woken == [True], "it was not woken before"
    assert [why for _, why in stretches] == [True, True, False, False, False]
    assert sum(s for s, _ in stretches) == 5.0
