"""Steps that need the gradient's global norm: every shard learns the squared norms of all shards' chunks.

Pure. A shard streams its vector to the ranks, the ranks relay it to all shards, and each shard takes the same
decision by itself: `math.fsum` is exact, so neither order nor sharding changes a bit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ps.layout import Run

Norms = npt.NDArray[np.float64]
"""Squared norms of the mean gradient, one per chunk."""


@dataclass(frozen=True)
class StepFactor:
    """What all shards do with the step."""

    factor: float
    """Multiplies the mean gradient; 1 if it is short enough."""
    skip: bool
    """The step is not applied: all bytes are carried over unchanged."""


def decide(squares: Norms, max_norm: float | None, *, skip_nonfinite: bool) -> StepFactor:
    """Clipping as `torch.nn.utils.clip_grad_norm_`: factor = min(1, max_norm / (norm + 1e-6))."""
    if skip_nonfinite and not np.isfinite(squares).all():
        return StepFactor(factor=1.0, skip=True)
    if max_norm is None:
        return StepFactor(factor=1.0, skip=False)
    return StepFactor(factor=min(1.0, max_norm / (_norm(squares) + 1e-6)), skip=False)


def _norm(squares: Norms) -> float:
    try:
        return math.sqrt(math.fsum(squares.tolist()))
    except OverflowError:
        return math.inf


class NormExchange:
    """The vectors one shard knows of the step it works on. Not thread-safe: the shard locks."""

    def __init__(self, sizes: Sequence[int], index: int) -> None:
        self._sizes = sizes
        self._index = index
        self._bounds = np.cumsum([0, *sizes]).tolist()
        self.begin()

    def begin(self) -> None:
        """Forgets everything: a new step, or a restarted shard."""
        self._own: Norms = np.zeros(self._sizes[self._index])
        self._have = np.zeros(self._sizes[self._index], np.bool_)
        self._others: dict[int, Norms] = {}

    def add_own(self, run: Run, squares: Norms) -> None:
        """The norms of some of the shard's own chunks."""
        self._own[run.span] = squares
        self._have[run.span] = True

    def learn(self, shard: int, squares: Norms) -> None:
        """Another shard's vector, from a rank. Raises ValueError if its length is wrong."""
        if len(squares) != self._sizes[shard]:
            raise ValueError(f"{len(squares)} norms of shard {shard}, which has {self._sizes[shard]} chunks with an optimizer")
        self._others[shard] = squares

    @property
    def own(self) -> Norms | None:
        """The shard's own vector once it is whole."""
        return self._own if self._have.all() else None

    def all_vectors(self) -> Norms | None:
        """All shards' vectors in shard order, once the own one is whole and the others have arrived."""
        if self.own is None:
            return None
        vectors: list[Norms] = []
        for shard, size in enumerate(self._sizes):
            vector = self._own if shard == self._index else self._others.get(shard, np.zeros(0))
            if len(vector) != size:
                return None
            vectors.append(vector)
        return np.concatenate(vectors)

    def split(self, squares: Norms) -> list[Norms]:
        """All shards' vectors, one by one, from their concatenation."""
        return [squares[a:b] for a, b in zip(self._bounds[:-1], self._bounds[1:], strict=True)]


class NormDelivery:
    """To which members, by number, a shard must send its norms now. Not thread-safe: the shard locks.

    Not before the member has pushed to the step on its present stream: it would drop them, since its step has not begun.
    And before any bytes of the next version: a member that has landed all of them pushes nothing more, and other shards
    may need it as the relay. So an answer goes only to a stream on which the step was pushed, after the norms.
    """

    def __init__(self) -> None:
        self._pushed: dict[int, int] = {}
        self._sent: dict[int, int] = {}

    def opened(self, member: int) -> None:
        """The member has a new stream."""
        self._pushed.pop(member, None)
        self._sent.pop(member, None)

    def pushed(self, member: int, step: int) -> None:
        """The member has pushed to the step on its present stream."""
        self._pushed[member] = max(step, self._pushed.get(member, step))

    def has_pushed(self, member: int, step: int) -> bool:
        """Whether bytes of step + 1 may be sent on the member's present stream."""
        return self._pushed.get(member, -1) >= step

    def due(self, step: int) -> list[int]:
        """Members that must be sent the step's norms now that they are known; each is named once per stream."""
        members = [member for member, pushed in sorted(self._pushed.items()) if pushed == step > self._sent.get(member, -1)]
        self._sent |= dict.fromkeys(members, step)
        return members


class NormRelay:
    """The vectors one rank knows of its step, and which shard has been sent which. Not thread-safe: the client locks."""

    def __init__(self, num_servers: int) -> None:
        self._num_servers = num_servers
        self.begin()

    def begin(self) -> None:
        """Forgets everything: a new step."""
        self._known: dict[int, Norms] = {}

    def learn(self, shard: int, squares: Norms) -> list[int]:
        """A shard's vector: the shards to send it to (none if it was known)."""
        if shard in self._known:
            return []
        self._known[shard] = squares
        return list(range(self._num_servers))

    def known(self) -> dict[int, Norms]:
        """All vectors: a shard whose stream is new is sent each of them."""
        return dict(self._known)
