"""Receipts in the model of a step: as in `ps/receipts.py` they go down with the next answer, behind those before it, or alone when one has waited."""

from collections.abc import Callable

from deploy.predict.events import Call
from ps.receipts import HOLD_S


class Held:
    """Those of a class of servers for a class of workers. A window that waits for credits behind answers is what slows an exchange both of
    whose ways are full."""

    def __init__(self, after: Callable[[float, Call], None], send: Callable[[Call], None]) -> None:
        """`send`: a message without bytes; calls back when it has arrived."""
        self._after, self._send = after, send
        self._receipts: list[Call] = []

    def hold(self, receipt: Call) -> None:
        if not self._receipts:
            self._after(HOLD_S, self.go)
        self._receipts.append(receipt)

    def go(self) -> None:
        """On their own."""
        if self._receipts:
            self._send(self.taken())

    def taken(self) -> Call:
        """What is to be called when the message arrives that takes them along."""
        taken, self._receipts = self._receipts, []

        def arrived() -> None:
            for receipt in taken:
                receipt()

        return arrived
