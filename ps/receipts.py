"""Receipts that go down with the next frame: a message of their own costs a server as much as the frame they are for."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from ps import frame
from ps.barrier import Verdict

HOLD_S = 0.01
"""How long a receipt may wait for company: little beside the time that the frames of a window need."""
ANSWERED = (Verdict.ACCEPTED, Verdict.DUPLICATE)
"""Verdicts of pushes that an answer will come for: bytes of older versions may be gone."""
COPIED_BYTES = 1 << 17
"""Up to so many bytes are copied behind their receipts sooner than sent after them."""


class Receipt(NamedTuple):
    """A receipt that may wait for company."""

    header: bytes
    for_answer: bool
    """It may wait until there is some, however long: nobody needs the credit, and an answer will come."""


class HeldReceipts:
    """Those of one stream that have not gone yet. On the event loop, where `due` is called when the oldest that is awaited has waited long enough."""

    def __init__(self, due: Callable[[], object]) -> None:
        self._due = due
        self._held: list[bytes] = []
        self._is_awaited = False

    def hold(self, receipt: Receipt) -> None:
        if not self._is_awaited and not receipt.for_answer:
            asyncio.get_running_loop().call_later(HOLD_S, self._due)
            self._is_awaited = True
        self._held.append(receipt.header)

    def before(self, data: bytes) -> list[bytes]:
        """The messages to send now, with a frame that goes; b"": without one."""
        if not self._held:
            return [data] if data else []
        held, self._held, self._is_awaited = self._held, [], False
        if len(data) > COPIED_BYTES:
            return [frame.with_receipts(held, b""), data]
        return [frame.with_receipts(held, data)]
