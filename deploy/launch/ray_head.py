"""Whether the head of a Ray cluster is there: asked by connecting to it, since without it Ray's own calls hang and, after a minute,
end the program."""

import socket
import threading
import time
from collections.abc import Callable

from ps.errors import HeadLost

LOST_AFTER_S = 20.0
"""A head that is started again, or a link that heals, within this time is no loss; well below Ray's minute."""
_EVERY_S = 1.0
_ANSWER_S = 5.0


class RayHead:
    """Connects to `address` (HOST:PORT) once a second, in a thread of its own, until `close`."""

    def __init__(self, address: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.address = address
        self._clock = clock
        self._seen_s = clock()
        self.is_there = True
        """Whether it has answered when it was asked last."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ray-head", daemon=True)
        self._thread.start()

    def answers(self) -> bool:
        """`is_there`. Raises HeadLost once it has not been for LOST_AFTER_S."""
        if not self.is_there and self._clock() - self._seen_s > LOST_AFTER_S:
            raise HeadLost(
                f"the Ray head at {self.address} has not answered for {LOST_AFTER_S:g} s: its host, `ray start --head` there, or the way to it "
                "is gone; start a cluster again, and the same command with --resume goes on from the last checkpoint"
            )
        return self.is_there

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        host, _, port = self.address.rpartition(":")
        while not self._closed.wait(_EVERY_S):
            try:
                socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
            except OSError:
                self.is_there = False
            else:
                self._seen_s, self.is_there = self._clock(), True
