"""Full-duplex links that flows share fairly (max-min). Sizes in bytes, rates in bytes/s."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploy.predict.events import SAME, Call, Clock

Floats = npt.NDArray[np.float64]


@dataclass
class Direction:
    """One direction of the links of equal hosts, taken together."""

    index: int
    bytes_per_s: float
    """Of all of them."""
    bytes: float = 0.0
    """Carried so far."""


@dataclass(frozen=True)
class _Flow:
    up: int
    down: int
    replicas: float
    weight: float
    done: Call


class Links:
    """All links between all hosts. The network between them has no limit of its own."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._directions: list[Direction] = []
        self._flows: list[_Flow] = []
        self._left: list[float] = []
        """Bytes that each flow still has to carry."""
        self._rates: Floats = np.zeros(0)
        self._since_s = 0.0
        self._version = 0

    def direction(self, bytes_per_s: float, num_hosts: int = 1) -> Direction:
        """A new one; infinite: no limit."""
        made = Direction(len(self._directions), bytes_per_s * num_hosts)
        self._directions.append(made)
        return made

    def send(self, num_bytes: float, up: Direction, down: Direction, done: Call, *, replicas: float = 1.0, weight: float = 1.0) -> None:
        """Calls `done` when the bytes have passed both. The flow stands for `replicas` equal ones, which each carry so many bytes, and
        counts as `weight` where links are shared."""
        up.bytes += num_bytes * replicas
        down.bytes += num_bytes * replicas
        self._advance()
        self._flows.append(_Flow(up.index, down.index, replicas, weight, done))
        self._left.append(num_bytes)
        self._rates = np.append(self._rates, 0.0)
        self._version += 1
        self._clock.changed(self)

    def _advance(self) -> None:
        passed_s = self._clock.now_s - self._since_s
        if passed_s > 0:
            self._left = (np.array(self._left) - self._rates * passed_s).tolist()
        self._since_s = self._clock.now_s

    def plan(self) -> None:
        self._advance()
        self._version += 1
        if self._flows:
            capacity = np.array([direction.bytes_per_s for direction in self._directions])
            ends = np.array([(flow.up, flow.down) for flow in self._flows])
            replicas = np.array([flow.replicas for flow in self._flows])
            self._rates = fair_rates(capacity, ends, replicas, np.array([flow.weight for flow in self._flows]))
            delays = np.maximum(self._left, 0.0) / self._rates
            delay_s = float(delays.min())
            first = delays <= delay_s + SAME * (self._clock.now_s + delay_s)
            version = self._version
            self._clock.after(delay_s, lambda: self._finish(version, first.tolist()))

    def _finish(self, version: int, first: list[bool]) -> None:
        if version != self._version:
            return
        self._advance()
        finished = [flow.done for flow, is_done in zip(self._flows, first, strict=True) if is_done]
        self._flows = [flow for flow, is_done in zip(self._flows, first, strict=True) if not is_done]
        self._left = [left for left, is_done in zip(self._left, first, strict=True) if not is_done]
        self._rates = self._rates[~np.array(first)]
        self._version += 1
        self._clock.changed(self)
        for done in finished:
            done()


def fair_rates(capacity: Floats, ends: npt.NDArray[np.int64], replicas: Floats, weights: Floats) -> Floats:
    """Max-min fair rate of every flow, by progressive filling: all rates grow in proportion to the weights until a link is full.

    `ends`: the two directions that each flow passes; a flow of rate x takes x · replicas of both. Flows that no link limits are infinite.
    A link whose level is the lowest of all that its flows pass will be full first wherever else rates still grow: all such are closed at once.
    """
    rates = np.full(len(replicas), np.inf)
    left = capacity.copy()
    still = np.arange(len(replicas))
    load = replicas * weights
    while len(still):
        up, down = ends[still, 0], ends[still, 1]
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
