"""Receipts that go down with the next frame: a message of their own costs a server as much as the frame they are for."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from ps import frame

HOLD_S = 0.01
"""How long a receipt may wait for company: little beside the time that the frames of a window need."""
COPIED_BYTES = 1 << 17
"""Up to so many bytes are copied behind their receipts sooner than sent after them."""


class Receipt(NamedTuple):
    """A receipt that may wait."""

    header: bytes


class HeldReceipts:
    """Those of one stream that have not gone yet. On the event loop, where `due` is called when the oldest has waited long enough."""

    def __init__(self, due: Callable[[], object]) -> None:
        self._due = due
        self._held: list[bytes] = []

    def hold(self, receipt: Receipt) -> None:
        if not self._held:
            asyncio.get_running_loop().call_later(HOLD_S, self._due)
        self._held.append(receipt.header)

    def before(self, data: bytes) -> list[bytes]:
        """The messages to send now, with a frame that goes; b"": without one."""
        if not self._held:
            return [data] if data else []
        held, self._held = self._held, []
        if len(data) > COPIED_BYTES:
            return [frame.with_receipts(held, b""), data]
        return [frame.with_receipts(held, data)]
