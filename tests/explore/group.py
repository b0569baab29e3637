"""The stages of one rank that were started together: what their connections to each other come to."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.explore.member import Member
    from tests.explore.world import World


class Group:
    """They begin at the smallest version that one of them has found, and go on with a version when all have landed it, each some time later."""

    def __init__(self, world: "World", rank: int) -> None:
        self._world = world
        self.rank = rank
        self.members: dict[int, Member] = {}
        """By stage, as far as they have registered."""
        self._found: dict[int, int] = {}
        self._landed: dict[int, int] = {}

    def found(self, member: "Member", version: int) -> None:
        self._found[member.stage] = version
        if len(self._found) == self._world.job.num_stages:
            smallest = min(self._found.values())
            self._world.count("agreed on a smaller version" if smallest < max(self._found.values()) else "agreed")
            self._tell_all(lambda member: member.agreed_on(smallest))

    def landed(self, member: "Member", version: int) -> None:
        self._landed[member.stage] = version
        if len(self._landed) == self._world.job.num_stages and set(self._landed.values()) == {version}:
            self._tell_all(lambda member: member.met(version))

    def _tell_all(self, tell: Callable[["Member"], None]) -> None:
        for member in self.members.values():
            self._world.clock.after(self._world.clock.delay(), member, lambda member=member: member.go_on(lambda: tell(member)))
