"""All members and shards of a run, their streams, and the adversary."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ps.layout import Layout, TensorSpec
from tests.ps.models.core import Edge, Violation
from tests.ps.models.member import END, INIT, JOIN, PULL, READY, STEP, Habits, MemberModel
from tests.ps.models.rules import Rules
from tests.ps.models.shard import ShardModel

Stream = tuple[int, tuple[Any, ...], tuple[Any, ...]] | None
"""Incarnation, messages on the way up, messages on the way down; None: broken."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Sizes of a model, and what may go wrong in it. -1: without limit."""

    num_workers: int = 2
    num_stages: int = 1
    """Members of every rank, each with as many of the chunks. They die together."""
    chunks: int = 2
    num_servers: int = 2
    steps: int = 2
    rules: Rules = field(default_factory=Rules)
    habits: Habits = field(default_factory=Habits)
    member: type[MemberModel] = MemberModel
    shard: type[ShardModel] = ShardModel
    initialised: bool = True
    queues_up: bool = False
    """Frames wait in their stream until the shard takes them."""
    kills: int = 0
    """Of shards."""
    breaks: int = 0
    """Of streams."""
    restarts: tuple[int, ...] = (0, 0, 0)
    """Of every rank."""
    zombies: bool = False
    """Former incarnations go on."""
    late: bool = False
    """Pushes of this step and of the last one arrive again at any time."""
    rejoins_in: tuple[str, ...] = (INIT, READY, STEP)
    """Modes in which a member sees that a stream is broken."""


State = tuple[tuple[int, ...], tuple[tuple[tuple[int, int], ...], ...], tuple[tuple[Stream, ...], ...], tuple[int, int]]
"""Shards, processes (incarnation, member) of every rank, or of every stage of every rank, their streams by shard, kills and breaks left."""


class World:
    """A model for `explore`."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        stages = setup.num_stages
        specs = [TensorSpec(name=f"t{i}", shape=(1,), dtype="float64", stage=i * stages // setup.chunks) for i in range(setup.chunks)]
        layout = Layout(specs, setup.num_servers)
        ranks, servers = range(setup.num_workers * stages), range(setup.num_servers)
        self.shards = [setup.shard(setup.rules, layout, s, setup.num_workers, setup.initialised, stages) for s in servers]
        self.members = [setup.member(setup.habits, layout, r // stages, setup.steps, r % stages) for r in ranks]
        self.fresh = [member.number() for member in self.members]
        shards = tuple(shard.number() for shard in self.shards)
        procs = tuple(((0, self.fresh[r]),) for r in ranks)
        no_streams: tuple[Stream, ...] = (None,) * setup.num_servers
        self.initial: State = (shards, procs, (no_streams,) * len(ranks), (setup.kills, setup.breaks))

    # -- questions -------------------------------------------------------------------------------------------

    def _shard_facts(self, state: State) -> list[Any]:
        return [self.shards[s].call(number, "facts")[1] for s, number in enumerate(state[0])]

    def _member_facts(self, rank: int, number: int) -> Any:
        return self.members[rank].call(number, "facts")[1]

    def _who(self, r: int) -> str:
        return f"rank {r}"

    def is_end(self, state: State) -> bool:
        return all(self._member_facts(rank, procs[-1][1])[0] == END for rank, procs in enumerate(state[1]))

    def check(self, state: State) -> None:
        facts = self._shard_facts(state)
        versions = [f[0] for f in facts]
        if max(versions) - min(versions) > 1:
            raise Violation(f"shards are at versions {versions}")
        needed = min(versions)
        for s, number in enumerate(state[0]):
            if needed > 0 and self.shards[s].call(number, "read", needed, 0)[1] is None:
                raise Violation(f"shard {s} refuses version {needed}, which a restarted rank needs")

    # -- edges -----------------------------------------------------------------------------------------------

    def edges(self, state: State) -> Iterator[Edge]:
        _, procs, streams, _ = state
        for s, facts in enumerate(self._shard_facts(state)):
            for i, task in enumerate(facts[1]):
                yield f"shard {s}: {task}", self._at_shard(state, s, "work", i)[0], True
            for r in range(len(self.members)):
                stream = streams[r][s]
                if stream and stream[1]:
                    yield from self._arrive(state, r, s, stream)
        for r, its in enumerate(procs):
            for p in range(len(its)):
                for label, after, good in self._member_edges(state, r, p):
                    yield label, self._tidy(after), good and p == len(its) - 1
        yield from self._adversary(state)

    def _member_edges(self, state: State, r: int, p: int) -> Iterator[tuple[str, State, bool]]:
        incarnation, number = state[1][r][p]
        mode, version, joined, todo = self._member_facts(r, number)
        who = f"{self._who(r)}.{incarnation}"
        mine = [s for s, stream in enumerate(state[2][r]) if stream and stream[0] == incarnation]
        for s in mine:
            stream = state[2][r][s]
            assert stream
            if stream[2]:
                message = stream[2][0]
                after = _with_stream(state, r, s, (incarnation, stream[1], stream[2][1:]))
                yield f"{who} takes {message[:3]} of shard {s}", self._at_member(after, r, p, "receive", s, message), True
        if mode == JOIN:
            for s in range(len(joined)):
                if joined[s] is None:
                    yield from self._join(state, r, p, s, "join_answered")
            return
        broken = [s for s in range(len(joined)) if s not in mine]
        if mode in self.setup.rejoins_in and broken:
            for s in broken:
                yield from self._join(state, r, p, s, "rejoined")
        elif mode == INIT:
            for s, c in todo:
                after, _ = self._at_shard(state, s, "init", c)
                yield f"{who} brings chunk {c} of shard {s}", self._at_member(after, r, p, "brought", s, c), True
        elif mode == PULL:
            for s, c in todo:
                after, label = self._at_shard(state, s, "read", version, c)
                yield f"{who} pulls chunk {c} of shard {s}", self._at_member(after, r, p, "pulled", s, c, label), True
        elif mode == STEP:
            yield from self._send(state, r, p, version)
        if mode == STEP and self.setup.late:
            yield from self._late(state, r, p, version)

    def _join(self, state: State, r: int, p: int, s: int, event: str) -> Iterator[tuple[str, State, bool]]:
        incarnation = state[1][r][p][0]
        number, answer = self.shards[s].call(state[0][s], "join", r, incarnation + 1)
        if answer is None:
            return
        version, mail = answer
        after = _with_stream(_with_shard(state, s, number), r, s, (incarnation, (), ()))
        after = self._at_member(self._post(after, s, mail), r, p, event, s, version)
        yield f"{self._who(r)}.{incarnation} joins shard {s} at {version}", after, True

    def _send(self, state: State, r: int, p: int, step: int) -> Iterator[tuple[str, State, bool]]:
        incarnation, number = state[1][r][p]
        number, found = self.members[r].call(number, "send")
        if found is None:
            number, asked = self.members[r].call(number, "overdue")
            after = _with_proc(state, r, p, number)
            for s in asked:
                after = self._upwards(after, r, s, incarnation, ("ask",))
            if asked:
                yield f"{self._who(r)}.{incarnation} asks shards {asked} for receipts", after, True
            return
        s, frame, parts, receipt_may_wait = found
        after = self._upwards(_with_proc(state, r, p, number), r, s, incarnation, ("push", step, frame, parts, receipt_may_wait))
        yield f"{self._who(r)}.{incarnation} pushes frame {frame} of step {step} to shard {s}", after, True

    def _late(self, state: State, r: int, p: int, version: int) -> Iterator[tuple[str, State, bool]]:
        incarnation, number = state[1][r][p]
        for step, s, frame, parts in self.members[r].call(number, "sent")[1]:
            stream = state[2][r][s]
            if stream and stream[2]:
                continue  # else answers to late frames fill the queue without end
            moved, answer = self.shards[s].call(state[0][s], "push", r, incarnation + 1, step, parts, frame, False)
            if answer is not None and not answer[0]:
                mail = tuple((to, message) for to, message in answer[1] if message[0] != "receipt")
                yield (
                    f"{self._who(r)}.{incarnation}: frame {frame} of step {step} again, late",
                    self._post(_with_shard(state, s, moved), s, mail),
                    False,
                )

    # -- messages --------------------------------------------------------------------------------------------

    def _upwards(self, state: State, r: int, s: int, incarnation: int, message: Any) -> State:
        stream = state[2][r][s]
        if not stream or stream[0] != incarnation:
            return state
        if self.setup.queues_up:
            return _with_stream(state, r, s, (stream[0], (*stream[1], message), stream[2]))
        after, left = self._take(state, r, s, incarnation, message)
        assert not left, "paused frames need queues"
        return after

    def _arrive(self, state: State, r: int, s: int, stream: Any) -> Iterator[Edge]:
        incarnation, up, _ = stream
        after, left = self._take(state, r, s, incarnation, up[0])
        now = after[2][r][s]
        assert now
        after = _with_stream(after, r, s, (incarnation, (*left, *up[1:]), now[2]))
        if after != state:
            yield f"shard {s} takes {up[0][:3]} of {self._who(r)}.{incarnation}", after, True

    def _take(self, state: State, r: int, s: int, incarnation: int, message: Any) -> tuple[State, tuple[Any, ...]]:
        """The state after a message has reached the shard, and what is left of the message."""
        if message[0] == "norms":
            _, step, source, squares = message
            return self._at_shard(state, s, "learn", r, incarnation + 1, step, source, squares, mailed=True)[0], ()
        if message[0] == "ask":
            return self._at_shard(state, s, "ask", r)[0], ()
        _, step, frame, parts, receipt_may_wait = message
        number, answer = self.shards[s].call(state[0][s], "push", r, incarnation + 1, step, parts, frame, receipt_may_wait)
        if answer is None:
            return state, ()
        paused, mail = answer
        left = (("push", step, frame, paused, receipt_may_wait),) if paused else ()
        return self._post(_with_shard(state, s, number), s, mail), left

    def _at_shard(self, state: State, s: int, event: str, *arguments: Any, mailed: bool = False) -> tuple[State, Any]:
        number, result = self.shards[s].call(state[0][s], event, *arguments)
        after = _with_shard(state, s, number)
        if event in ("work", "init", "learn", "ask"):
            after = self._post(after, s, result)
        return after, result

    def _at_member(self, state: State, r: int, p: int, event: str, *arguments: Any) -> State:
        incarnation, number = state[1][r][p]
        number, messages = self.members[r].call(number, event, *arguments)
        after = _with_proc(state, r, p, number)
        for s, message in messages or ():
            after = self._upwards(after, r, s, incarnation, message)
        return after

    def _post(self, state: State, s: int, mail: Any) -> State:
        """Messages for the ranks' present streams; without a stream they are lost. READY matters before version 0 only."""
        for r, message in mail:
            stream = state[2][r][s]
            if stream and not (message[0] == "ready" and self.setup.initialised):
                state = _with_stream(state, r, s, (stream[0], stream[1], (*stream[2], message)))
        return state

    # -- the adversary ---------------------------------------------------------------------------------------

    def _adversary(self, state: State) -> Iterator[Edge]:
        _, _, streams, (kills, breaks) = state
        if kills:
            for s, facts in enumerate(self._shard_facts(state)):
                events = [("kill",), *(("kill_in_record", i) for i, task in enumerate(facts[1]) if task[0] == "record")]
                for event in events:
                    yield f"{event[0].upper()} shard {s}", self._tidy(self._kill(state, s, event)), False
        if breaks:
            for r, its in enumerate(streams):
                for s, stream in enumerate(its):
                    if stream:
                        after = _with_stream(state, r, s, None)
                        yield f"BREAK stream of {self._who(r)} to shard {s}", (*after[:3], (kills, max(breaks - 1, -1))), False
        yield from self._restarts(state)

    def _restarts(self, state: State) -> Iterator[Edge]:
        for r, its in enumerate(state[1]):
            if its[-1][0] < self.setup.restarts[r] and self._member_facts(r, its[-1][1])[0] != END:
                yield f"RESTART {self._who(r)}", self._tidy(self._restart(state, r)), False

    def _kill(self, state: State, s: int, event: Any) -> State:
        number, _ = self.shards[s].call(state[0][s], *event)
        after = _with_shard(state, s, number)
        for r in range(len(self.members)):
            after = _with_stream(after, r, s, None)
        kills, breaks = state[3]
        return (*after[:3], (max(kills - 1, -1), breaks))

    def _restart(self, state: State, r: int) -> State:
        shards, procs, streams, left = state
        its = procs[r]
        kept = its[-1:] if self.setup.zombies else ()
        procs = _put(procs, r, (*kept, (its[-1][0] + 1, self.fresh[r])))
        if not self.setup.zombies:
            streams = _put(streams, r, (None,) * self.setup.num_servers)
        return shards, procs, streams, left

    def _tidy(self, state: State) -> State:
        """Drops zombies that can never do anything again."""
        shards, procs, streams, left = state
        for r, its in enumerate(procs):
            if len(its) > 1:
                zombie = its[0]
                connected = any(stream and stream[0] == zombie[0] for stream in streams[r])
                fenced = all(stream and stream[0] > zombie[0] for stream in streams[r])
                if self._member_facts(r, zombie[1])[0] == END or (fenced and not left[0] and not connected):
                    procs = _put(procs, r, its[1:])
        return shards, procs, streams, left


def _put(values: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    return (*values[:at], value, *values[at + 1 :])


def _with_shard(state: State, s: int, number: int) -> State:
    return _put(state[0], s, number), *state[1:]


def _with_proc(state: State, r: int, p: int, number: int) -> State:
    its = _put(state[1][r], p, (state[1][r][p][0], number))
    return state[0], _put(state[1], r, its), *state[2:]


def _with_stream(state: State, r: int, s: int, stream: Stream) -> State:
    return *state[:2], _put(state[2], r, _put(state[2][r], s, stream)), state[3]
