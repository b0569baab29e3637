"""Full-duplex links that flows share fairly (max-min). Sizes in bytes, rates in bytes/s."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploy.predict.events import SAME, Call, Clock

Floats = npt.NDArray[np.float64]

_FLOWS = 64
"""For which there is room at first."""


@dataclass
class Direction:
    """One direction of the links of equal hosts, taken together."""

    index: int
    bytes_per_s: float
    """Of all of them."""
    bytes: float = 0.0
    """Carried so far."""


class Links:
    """All links between all hosts. The network between them has no limit of its own."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._directions: list[Direction] = []
        self._capacity: Floats = np.zeros(0)
        self._count = 0
        """Of flows; columns of the arrays that are in use, in the order in which the flows began."""
        self._done = np.empty(_FLOWS, np.object_)
        self._ends = np.zeros((2, _FLOWS), np.int64)
        """The directions that it passes."""
        self._numbers: Floats = np.zeros((4, _FLOWS))
        """Bytes that it still has to carry, its rate, its replicas, its weight."""
        self._since_s = 0.0
        self._version = 0

    def direction(self, bytes_per_s: float, num_hosts: int = 1) -> Direction:
        """A new one; infinite: no limit."""
        made = Direction(len(self._directions), bytes_per_s * num_hosts)
        self._directions.append(made)
        self._capacity = np.append(self._capacity, made.bytes_per_s)
        return made

    def send(self, num_bytes: float, up: Direction, down: Direction, done: Call, *, replicas: float = 1.0, weight: float = 1.0) -> None:
        """Calls `done` when the bytes have passed both. The flow stands for `replicas` equal ones, which each carry so many bytes, and
        counts as `weight` where links are shared."""
        up.bytes += num_bytes * replicas
        down.bytes += num_bytes * replicas
        self._advance()
        at = self._count
        if at == len(self._done):
            self._done = np.tile(self._done, 2)
            self._ends = np.tile(self._ends, 2)
            self._numbers = np.tile(self._numbers, 2)
        self._done[at] = done
        self._ends[:, at] = up.index, down.index
        self._numbers[:, at] = num_bytes, 0.0, replicas, weight
        self._count += 1
        self._version += 1
        self._clock.changed(self)

    def _advance(self) -> None:
        passed_s = self._clock.now_s - self._since_s
        if passed_s > 0:
            left, rates, _, _ = self._numbers[:, : self._count]
            left -= rates * passed_s
        self._since_s = self._clock.now_s

    def plan(self) -> None:
        self._advance()
        self._version += 1
        if count := self._count:
            left, rates, replicas, weights = self._numbers[:, :count]
            rates[:] = fair_rates(self._capacity, self._ends[:, :count], replicas, weights)
            delays = np.maximum(left, 0.0) / rates
            delay_s = float(delays.min())
            first = delays <= delay_s + SAME * (self._clock.now_s + delay_s)
            version = self._version
            self._clock.after(delay_s, lambda: self._finish(version, first))

    def _finish(self, version: int, first: npt.NDArray[np.bool_]) -> None:
        if version != self._version:
            return
        self._advance()
        count = self._count
        finished = self._done[:count][first].tolist()
        self._count -= len(finished)
        for array in (self._done, self._ends, self._numbers):
            array[..., : self._count] = array[..., :count][..., ~first]
        self._version += 1
        self._clock.changed(self)
        for done in finished:
            done()


def fair_rates(capacity: Floats, ends: npt.NDArray[np.int64], replicas: Floats, weights: Floats) -> Floats:
    """Max-min fair rate of every flow, by progressive filling: all rates grow in proportion to the weights until a link is full.

    `ends`: the two directions that each flow passes, a column each; a flow of rate x takes x · replicas of both. Flows that no link
    limits are infinite.
    A link whose level is the lowest of all that its flows pass will be full first wherever else rates still grow: all such are closed at once.
    """
    rates = np.full(len(replicas), np.inf)
    left = capacity.copy()
    still = np.arange(len(replicas))
    load = replicas * weights
    while len(still):
        up, down = ends[:, still]
        demand = np.bincount(up, load[still], len(left)) + np.bincount(down, load[still], len(left))
        levels = np.full(len(left), np.inf)
        np.divide(left, demand, out=levels, where=demand > 0)
        lowest = np.minimum(levels[up], levels[down])
        around = np.full(len(left), np.inf)
        np.minimum.at(around, up, lowest)
        np.minimum.at(around, down, lowest)
        full = np.isfinite(levels) & (levels <= around * (1 + SAME))
        closing = full[up] | full[down]
        if not closing.any():
            break
        level = lowest[closing]
        closed = still[closing]
        rates[closed] = level * weights[closed]
        taken = level * load[closed]
        left = np.maximum(0.0, left - np.bincount(up[closing], taken, len(left)) - np.bincount(down[closing], taken, len(left)))
        still = still[~closing]
    return rates
