"""Work done ahead of its use, by background threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2
"""Results per thread that may be ready or in progress before they are asked for."""


class Prefetcher:
    """`num_threads` threads that apply functions ahead of their use; with none, everything happens when it is asked for.

    One thread uses it. Inputs are drawn in that thread, in order, and results come in the order of the inputs:
    if a result depends on its input alone, the number of threads changes nothing but the time.
    """

    def __init__(self, num_threads: int) -> None:
        self._ahead = AHEAD * num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="loader") if num_threads else None

    def map(self, function: Callable[[T], R], inputs: Iterable[T]) -> Iterator[R]:
        """Results of `function`; an error is raised in place of its result. What was begun is cancelled when the iterator is closed."""
        if self._pool is None:
            yield from map(function, inputs)
            return
        begun: deque[Future[R]] = deque()
        try:
            for value in inputs:
                begun.append(self._pool.submit(function, value))
                if len(begun) > self._ahead:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()

    def close(self) -> None:
        """Cancels what has not begun; returns when the threads have ended: after the calls in progress."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
