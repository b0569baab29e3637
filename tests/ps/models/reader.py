"""A reader that is no member copies a version chunk by chunk while the shard goes on."""

from collections.abc import Iterator
from typing import Any

from tests.ps.models.core import Edge, Violation
from tests.ps.models.world import Setup, World


class ReaderWorld:
    """The state is (World's state, (version, chunks copied, all were right) or None)."""

    checks_again = True

    def __init__(self, setup: Setup) -> None:
        self.world = World(setup)
        self.initial = (self.world.initial, None)

    def check(self, state: Any) -> None:
        self.world.check(state[0])

    def is_end(self, state: Any) -> bool:
        return self.world.is_end(state[0])

    def edges(self, state: Any) -> Iterator[Edge]:
        inner, reader = state
        for label, after, good in self.world.edges(inner):
            yield label, (after, reader), good
        shard, number = self.world.shards[0], inner[0][0]
        if reader is None:
            now = shard.call(number, "facts")[1][0]
            for version in {now, max(now - 1, 0)}:
                if shard.call(number, "read", version, 0)[1] is not None:
                    yield f"reader begins version {version}", (inner, (version, 0, True)), False
            return
        version, chunk, right = reader
        if chunk < self.world.setup.chunks:
            after = version, chunk + 1, right and shard.call(number, "copy", version, chunk)[1] == version
            yield f"reader copies chunk {chunk}", (inner, after), False
        elif self.checks_again and shard.call(number, "read", version, 0)[1] is None:
            yield "reader is told that the version is gone", (inner, None), False
        elif not right:
            raise Violation(f"reader has torn bytes of version {version}")
        else:
            yield "reader is done", (inner, None), False


class ReaderWorldWithoutSecondCheck(ReaderWorld):
    checks_again = False
