"""A longer way in place of the one that there is: what comes out has come in so many seconds before, and may be as much as ever."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

T = TypeVar("T")
_END = object()


async def delayed(items: AsyncIterator[T], delay_s: float) -> AsyncIterator[T]:
    """The items, each `delay_s` after it was there; an error likewise."""
    loop = asyncio.get_running_loop()
    taken: asyncio.Queue[tuple[float, object]] = asyncio.Queue()

    async def take() -> None:
        end: object = _END
        try:
            async for item in items:
                taken.put_nowait((loop.time() + delay_s, item))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the reader's
            end = _Raised(error)
        taken.put_nowait((loop.time() + delay_s, end))

    taking = asyncio.create_task(take())
    try:
        while True:
            due, item = await taken.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if item is _END:
                return
            if isinstance(item, _Raised):
                raise item.error
            yield item  # type: ignore[misc]
    finally:
        taking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await taking


class _Raised:
    def __init__(self, error: Exception) -> None:
        self.error = error
