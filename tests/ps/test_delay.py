import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from ps.errors import Unreachable
from ps.transport.delay import delayed


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Time that passes when everybody waits."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        select = self._selector.select  # type: ignore[attr-defined]

        def pass_time(timeout_s: float | None) -> Any:
            self.now += timeout_s or 0.0
            return select(0)

        self._selector.select = pass_time  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now


def simulated(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(work())


async def each(items: AsyncIterator[int]) -> list[tuple[int, float]]:
    return [(item, asyncio.get_running_loop().time()) async for item in items]


def test_many_items_are_on_their_way_at_once() -> None:
    async def source() -> AsyncIterator[int]:
        for item in range(1000):
            yield item

    found = simulated(lambda: each(delayed(source(), 0.5)))
    assert found == [(item, 100.5) for item in range(1000)]


def test_each_item_comes_so_much_after_it_was_there() -> None:
    async def source() -> AsyncIterator[int]:
        for item in range(3):
            yield item
            await asyncio.sleep(0.2)

    assert [(item, round(now, 6)) for item, now in simulated(lambda: each(delayed(source(), 0.5)))] == [(0, 100.5), (1, 100.7), (2, 100.9)]


def test_an_error_comes_after_what_came_before_it() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise Unreachable("gone")

    async def read() -> None:
        items = delayed(broken(), 0.5)
        assert await anext(items) == 1
        with pytest.raises(Unreachable, match="gone"):
            await anext(items)

    simulated(read)


def test_who_stops_reading_stops_the_taking() -> None:
    closed = []

    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
                await asyncio.sleep(0.1)
        finally:
            closed.append(True)

    async def read() -> None:
        items = delayed(endless(), 0.5)
        assert await anext(items) == 1
        await items.aclose()  # type: ignore[attr-defined]

    simulated(read)
    assert closed
