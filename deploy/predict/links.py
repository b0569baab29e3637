"""Full-duplex links that flows share fairly (max-min). Sizes in bytes, rates in bytes/s."""

import heapq
import math
from dataclasses import dataclass
from itertools import count
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from deploy.predict.events import SAME, Call, Clock

Floats = npt.NDArray[np.float64]

_LANES = 64
"""For which there is room at first."""
_Lane = tuple[tuple[int, ...], float]
"""Ends and weight."""
_NOTHING = 1e-200
"""Load of a link that nothing passes: its level is above all others."""


@dataclass
class Direction:
    """One direction of the links of equal hosts, taken together."""

    index: int
    bytes_per_s: float
    """Of all of them."""
    bytes: float = 0.0
    """Carried so far."""


class Links:
    """All links between all hosts. The network between them has no limit of its own.

    Flows of one weight between the same two ends have the same rate at any time. They make a *lane*: what a flow that never paused would
    have carried on it is one number, and the flow that ends next is the one whose number comes first.
    """

    def __init__(self, clock: Clock, *, has_racks: bool = False) -> None:
        """`has_racks`: flows may pass a third direction between the two links."""
        self._clock = clock
        self._directions: list[Direction] = []
        self._capacity: Floats = np.zeros(0)
        self._free = self.direction(math.inf) if has_racks else None
        self._lanes: dict[_Lane, int] = {}
        """Columns of the arrays, by ends and weight; those with flows come first in the arrays."""
        self._keys: list[_Lane] = []
        self._flows: list[list[tuple[float, int, float, Call]]] = []
        """Of every lane, a heap: what the lane has carried when the flow ends, its number, its replicas, whom to call."""
        self._sequence = count()
        self._ends = np.zeros((3 if has_racks else 2, _LANES), np.int64)
        """The directions that a lane passes."""
        self._numbers: Floats = np.zeros((5, _LANES))
        """Of a lane: bytes that each flow would have carried since it began, its rate, replicas of its flows, its weight, bytes at the next end."""
        self._since_s = 0.0
        self._version = 0

    def direction(self, bytes_per_s: float, num_hosts: int = 1) -> Direction:
        """A new one; infinite: no limit."""
        made = Direction(len(self._directions), bytes_per_s * num_hosts)
        self._directions.append(made)
        self._capacity = np.append(self._capacity, made.bytes_per_s)
        return made

    def send(
        self,
        num_bytes: float,
        up: Direction,
        down: Direction,
        done: Call,
        *,
        via: Direction | None = None,
        replicas: float = 1.0,
        weight: float = 1.0,
    ) -> None:
        """Calls `done` when the bytes have passed all of them. The flow stands for `replicas` equal ones, which each carry so many bytes, and
        counts as `weight` where links are shared."""
        passes = [up, down, *([via or self._free] if self._free else [])]
        for direction in passes:
            direction.bytes += num_bytes * replicas
        if all(math.isinf(direction.bytes_per_s) for direction in passes):
            self._clock.after(0.0, done)
            return
        self._advance()
        key = tuple(direction.index for direction in passes), weight
        at = self._lanes.get(key)
        if at is None:
            at = self._open(key)
        flows, numbers = self._flows[at], self._numbers
        ends_at = float(numbers[0, at]) + num_bytes
        heapq.heappush(flows, (ends_at, next(self._sequence), replicas, done))
        numbers[2, at] += replicas
        numbers[4, at] = flows[0][0]
        self._version += 1
        self._clock.changed(self)

    def _open(self, key: _Lane) -> int:
        at = self._lanes[key] = len(self._keys)
        if at == self._ends.shape[1]:
            self._ends = np.tile(self._ends, 2)
            self._numbers = np.tile(self._numbers, 2)
        self._keys.append(key)
        self._flows.append([])
        self._ends[:, at] = key[0]
        self._numbers[:, at] = 0.0, 0.0, 0.0, key[1], math.inf
        return at

    def _close(self, at: int) -> None:
        """A lane without flows: the last one takes its place."""
        last = len(self._keys) - 1
        del self._lanes[self._keys[at]]
        key, flows = self._keys.pop(), self._flows.pop()
        if at != last:
            self._lanes[key] = at
            self._keys[at], self._flows[at] = key, flows
            self._ends[:, at] = self._ends[:, last]
            self._numbers[:, at] = self._numbers[:, last]

    def _advance(self) -> None:
        passed_s = self._clock.now_s - self._since_s
        if passed_s > 0:
            lanes = len(self._keys)
            self._numbers[0, :lanes] += self._numbers[1, :lanes] * passed_s
        self._since_s = self._clock.now_s

    def plan(self) -> None:
        self._advance()
        self._version += 1
        if lanes := len(self._keys):
            carried, rates, replicas, weights, next_end = self._numbers[:, :lanes]
            rates[:] = fair_rates(self._capacity, self._ends[:, :lanes], replicas, weights)
            delays = (next_end - carried) / rates
            delay_s = max(0.0, float(delays.min()))
            (first,) = (delays <= delay_s + SAME * (self._clock.now_s + delay_s)).nonzero()
            version = self._version
            self._clock.after(delay_s, lambda: self._finish(version, first))

    def _finish(self, version: int, first: npt.NDArray[np.int64]) -> None:
        if version != self._version:
            return
        self._advance()
        finished: list[tuple[int, Call]] = []
        numbers = self._numbers
        for at in first[::-1].tolist():  # from behind: a lane that takes the place of one that is closed has had its turn
            flows = self._flows[at]
            reached = max(float(numbers[0, at]), flows[0][0]) + SAME * self._clock.now_s * float(numbers[1, at])
            while flows and flows[0][0] <= reached:
                _, number, replicas, done = heapq.heappop(flows)
                numbers[2, at] -= replicas
                finished.append((number, done))
            if flows:
                numbers[4, at] = flows[0][0]
            else:
                self._close(at)
        self._version += 1
        self._clock.changed(self)
        for _, done in sorted(finished, key=itemgetter(0)):  # in the order in which they began
            done()


def fair_rates(capacity: Floats, ends: npt.NDArray[np.int64], replicas: Floats, weights: Floats) -> Floats:
    """Max-min fair rate of every flow, by progressive filling: all rates grow in proportion to the weights until a link is full.

    `ends`: the directions that each flow passes, a column each, one of them finite; a flow of rate x takes x · replicas of each.
    A link whose level is the lowest of all that its flows pass will be full first wherever else rates still grow: all such are closed at once.
    """
    load = replicas * weights
    rates: Floats | None = None
    left, still = capacity, np.arange(0)
    while True:
        passed, rows = ends.ravel(), len(ends)
        levels = left / np.maximum(np.bincount(passed, np.concatenate([load] * rows), len(left)), _NOTHING)
        lowest: Floats = levels[ends].min(axis=0)
        around = np.full(len(left), np.inf)
        np.minimum.at(around, passed, np.concatenate([lowest] * rows))
        full = levels <= around * (1 + SAME)
        closing = full[ends].any(axis=0)
        if rates is None:
            if closing.all():
                return np.multiply(lowest, weights)
            rates, still = np.empty(len(load)), np.arange(len(load))
        rates[still[closing]] = lowest[closing]
        if closing.all():
            return np.multiply(rates, weights)
        taken = lowest[closing] * load[closing]
        left = np.maximum(0.0, left - np.bincount(ends[:, closing].ravel(), np.concatenate([taken] * rows), len(left)))
        still, ends, load = still[~closing], ends[:, ~closing], load[~closing]
