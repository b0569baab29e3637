"""How long a server that does not answer is asked again. Pure: times are handed in."""

from ps.control import ServerAddress
from ps.errors import PserverError


class Patience:
    """Counts from the first failure at one address: a server that was started again has another one, and a time of its own."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.succeeded()

    def succeeded(self) -> None:
        """The server has answered."""
        self._address: ServerAddress | None = None
        self._since_s = 0.0

    def failed(self, address: ServerAddress, error: PserverError, now_s: float) -> None:
        """The server has not. Raises `error` if that has lasted too long."""
        if address != self._address:
            self._address, self._since_s = address, now_s
        elif now_s - self._since_s > self._limit_s:
            raise error
