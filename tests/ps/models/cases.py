"""The protocol as it is, in many small settings; and without one of its guards each."""

from dataclasses import dataclass, replace

from tests.ps.models import broken
from tests.ps.models import control as c
from tests.ps.models.control import Decisions
from tests.ps.models.core import Model
from tests.ps.models.groups import Groups, GroupsThatBeginApart, GroupsThatLeaveTheirOwn, GroupsWithoutGate
from tests.ps.models.member import INIT, STEP, Habits
from tests.ps.models.reader import ReaderWorld, ReaderWorldWithoutSecondCheck
from tests.ps.models.rules import Rules
from tests.ps.models.world import Setup, World

ONE_CHUNK = 8
"""Bytes."""
FUSED = Rules(separate_writes=False)
TWO_PHASE = Rules(separate_writes=False, two_phase=True)
CREDITS = Rules(separate_writes=False, receipts=True)


def absent(rank: int, step: int, chunk: int) -> bool:
    """Step 0: rank 1 lacks chunk 0. Step 1: nobody has chunk 1."""
    return (rank, step, chunk) == (1, 0, 0) or (step, chunk) == (1, 1)


KILLS = Setup(rules=FUSED, kills=1)
WRITES = Setup(num_servers=1, kills=-1)
RESTART = Setup(rules=FUSED, restarts=(0, 1))
ZOMBIE = Setup(rules=FUSED, restarts=(0, 1), zombies=True)
BREAK = Setup(rules=FUSED, breaks=1)
WINDOW = Setup(rules=replace(CREDITS, bound=0), habits=Habits(window=1), queues_up=True)
BOUND = Setup(rules=replace(CREDITS, bound=ONE_CHUNK), habits=Habits(window=1), queues_up=True)
NORMS = Setup(rules=TWO_PHASE, steps=1)
ALONE = replace(NORMS, num_workers=1, restarts=(0,))
ALONE_IN_WINDOW = replace(ALONE, rules=replace(TWO_PHASE, receipts=True), habits=Habits(window=1), breaks=1)
INITIAL = Setup(initialised=False, rules=FUSED, steps=1)
STAGES = Setup(num_stages=2, rules=FUSED)
SPLIT = replace(STAGES, num_workers=1, restarts=(1,))

HOLDS: dict[str, Model] = {
    "kill between any two writes of one shard": World(replace(WRITES, kills=1)),
    "absent contributions, broken stream": World(replace(BREAK, rules=replace(FUSED, absent=absent))),
    "zombie beside a kill, one chunk": World(Setup(num_servers=1, chunks=1, kills=1, restarts=(0, 1), zombies=True)),
    "broken stream, late messages": World(replace(BREAK, late=True, steps=1)),
    "two-phase steps, kill between any two writes": World(replace(ALONE, chunks=3, kills=1)),
    "two-phase steps, broken stream": World(replace(NORMS, breaks=1)),
    "two-phase steps, one rank, broken streams": World(replace(ALONE, breaks=3)),
    "two-phase steps, one rank, window, broken stream": World(ALONE_IN_WINDOW),
    "two-phase steps, one rank, restart, kill": World(replace(ALONE, restarts=(1,), kills=1)),
    "two-phase steps, window, bound": World(replace(BOUND, rules=replace(TWO_PHASE, receipts=True, bound=ONE_CHUNK), steps=1)),
    "init, kill": World(replace(INITIAL, kills=1, num_servers=1)),
    "reports, decisions, restarts": Decisions(),
    "kill between any two writes of two shards": World(Setup(kills=1)),
    "three steps, one kill": World(replace(KILLS, steps=3)),
    "rank 1 restarts": World(RESTART),
    "rank 0 restarts": World(replace(RESTART, restarts=(1, 0))),
    "sums overtaken by joins": World(replace(ZOMBIE, num_servers=1, rules=replace(FUSED, slow_sums=True), late=True)),
    "window of one frame, no early payload": World(WINDOW),
    "window of one frame, no early payload, broken stream": World(replace(WINDOW, breaks=1)),
    "window of one frame, one early chunk, kill": World(replace(BOUND, kills=1, steps=1)),
    "window, bound, restart": World(replace(BOUND, restarts=(0, 1))),
    "three ranks, window, bound": World(replace(BOUND, num_workers=3, steps=1)),
    "receipts after answers": World(replace(WINDOW, rules=replace(CREDITS, slow_receipts=True))),
    "frames of two chunks, bound": World(replace(BOUND, num_servers=1, chunks=3, steps=1, habits=Habits(window=2, frame_chunks=2))),
    "frames of two chunks, bound, restart": World(
        replace(BOUND, num_servers=1, chunks=3, steps=1, habits=Habits(window=1, frame_chunks=2), restarts=(1, 0))
    ),
    "two-phase steps": World(replace(NORMS, steps=3)),
    "two-phase steps, rank 1 restarts": World(replace(NORMS, restarts=(0, 1), steps=2)),
    "init, rank 0 restarts": World(replace(INITIAL, restarts=(1, 0))),
    "init, broken stream": World(replace(INITIAL, breaks=1)),
    "reader beside a shard": ReaderWorld(replace(WRITES, kills=0, steps=3)),
    "stages of one rank, restart": Groups(SPLIT),
    "stages of one rank, restart, kill": Groups(replace(SPLIT, num_servers=1, kills=1)),
}

LARGE: dict[str, Model] = {
    "receipts after answers, broken stream": World(replace(WINDOW, rules=replace(CREDITS, slow_receipts=True), breaks=1, steps=1, num_servers=1)),
    "broken streams without limit, one step": World(replace(BREAK, breaks=-1, steps=1)),
    "two-phase steps, broken streams": World(replace(NORMS, breaks=2)),
    "kills without limit, one step": World(replace(KILLS, kills=-1, steps=1)),
    "rank 1 restarts beside its zombie, late messages": World(replace(ZOMBIE, late=True)),
    "two kills": World(replace(KILLS, kills=2)),
    "reader beside a kill": ReaderWorld(replace(WRITES, kills=1, num_workers=1)),
    "absent contributions, kills": World(replace(WRITES, kills=1, rules=Rules(absent=absent))),
    "rank 0 restarts beside its zombie, one kill": World(replace(ZOMBIE, restarts=(1, 0), kills=1, steps=1)),
    "both ranks restart": World(replace(RESTART, restarts=(1, 1))),
    "absent contributions, broken stream, restart": World(replace(BREAK, restarts=(1, 0), rules=Rules(absent=absent))),
    "receipts after answers, broken stream, larger": World(replace(WINDOW, rules=replace(CREDITS, slow_receipts=True), breaks=1, steps=1)),
    "two-phase steps, kill between any two writes, larger": World(replace(NORMS, chunks=3, kills=1)),
    "two-phase steps, broken stream, larger": World(replace(NORMS, breaks=1, steps=2)),
    "two-phase steps, rank 0 restarts, kill": World(replace(NORMS, restarts=(1, 0), kills=1, chunks=2)),
    "two-phase steps, one rank, restart": World(replace(NORMS, num_workers=1, restarts=(2,), breaks=1, steps=2)),
    "two-phase steps, window, bound, larger": World(replace(BOUND, rules=replace(TWO_PHASE, receipts=True, bound=ONE_CHUNK))),
    "two-phase steps, window, bound, broken stream": World(
        replace(BOUND, rules=replace(TWO_PHASE, receipts=True, bound=ONE_CHUNK), breaks=1, steps=1)
    ),
    "init, kill, larger": World(replace(INITIAL, kills=1)),
    "reader beside kills": ReaderWorld(replace(WRITES, kills=1)),
    "broken stream, late messages, larger": World(replace(BREAK, late=True)),
    "zombie beside kills without limit, one chunk": World(Setup(num_servers=1, chunks=1, kills=-1, restarts=(0, 1), zombies=True)),
    "kill between any two writes of one shard, larger": World(WRITES),
    "stages of two ranks, rank 0 restarts": Groups(replace(STAGES, restarts=(1, 0))),
    "stages of two ranks, one server, both restart, three steps": Groups(replace(STAGES, num_servers=1, restarts=(1, 1), steps=3)),
    "stages of two ranks, one server, broken streams": Groups(replace(STAGES, num_servers=1, breaks=2)),
    "stages of two ranks, one step, kill, rank 1 restarts": Groups(replace(STAGES, num_servers=1, kills=1, restarts=(0, 1), steps=1)),
    "stages of two ranks, kill": Groups(replace(STAGES, kills=1, steps=1)),
    "stages of two ranks, two-phase steps, rank 0 restarts": Groups(replace(STAGES, rules=TWO_PHASE, steps=1, restarts=(1, 0))),
    "three stages of one rank, restart": Groups(replace(SPLIT, num_stages=3, chunks=3)),
    "stages of one rank, two-phase steps, restart": Groups(replace(SPLIT, rules=TWO_PHASE)),
    "stages of one rank, two-phase steps, kill": Groups(replace(SPLIT, rules=TWO_PHASE, restarts=(0,), kills=1)),
    "stages of one rank, init, restart": Groups(replace(SPLIT, initialised=False, steps=1)),
}


@dataclass(frozen=True)
class Control:
    """The protocol without one rule."""

    rule: str
    why: str
    model: Model
    kinds: tuple[str, ...]


def _row(rule: str, why: str, model: Model | Setup, *kinds: str) -> Control:
    return Control(rule, why, World(model) if isinstance(model, Setup) else model, kinds)


def _rules(setup: Setup, **changes: object) -> Setup:
    return replace(setup, rules=replace(setup.rules, **changes))  # type: ignore[arg-type]


def _exchange(setup: Setup, exchange: type) -> Setup:
    return replace(setup, habits=replace(setup.habits, exchange=exchange))


B = broken
V, S = "violation", "stuck"

CONTROLS = [
    # memory
    _row("two copies", "a kill in mid-update leaves version t intact", _rules(WRITES, store=B.StoreWithOneCopy), V),
    _row("durable oldest", "after a kill nobody knows what was being overwritten", _rules(WRITES, store=B.StoreWithVolatileOldest), V),
    _row("counters inside the copies", "an update done twice after a kill is counted once", _rules(WRITES, store=B.StoreWithOneCount), V),
    _row("words after bytes", "a word promises bytes", replace(WRITES, shard=B.ShardThatMovesWordsFirst), V),
    _row(
        "absent from all is copied",
        "the other copy holds version t - 1",
        replace(_rules(WRITES, absent=absent), kills=0, shard=B.ShardThatDoesNotCopyAbsent),
        V,
    ),
    _row(
        "contributions cleared before the word is visible",
        "the first push of t + 1 must not find those of t",
        replace(RESTART, shard=B.ShardThatClearsAfterwards),
        V,
    ),
    _row(
        "readable is checked again after copying",
        "bytes went while they were copied",
        ReaderWorldWithoutSecondCheck(replace(WRITES, kills=0, steps=3)),
        V,
    ),
    # join and pull
    _row("version pin", "a restarted rank computes from one version of all shards", replace(RESTART, shard=B.ShardWithoutPin), V),
    _row("join takes the minimum", "the slowest shard still needs this rank", replace(RESTART, member=B.MemberThatJoinsAtMaximum), V, S),
    _row("fence", "a zombie must not contribute after its successor", _rules(replace(ZOMBIE, late=True), barrier=B.BarrierWithoutFence), V),
    _row(
        "join forgets what was queued",
        "its payload is gone with the stream",
        _rules(replace(RESTART, restarts=(0, 1)), barrier=B.BarrierThatRemembersQueued),
        V,
        S,
    ),
    # contributions
    _row("version check", "a late push of t is no push of t + 1", _rules(replace(BREAK, late=True), barrier=B.BarrierWithoutVersionCheck), V),
    _row("sum in rank order", "the bits must not depend on arrival", _rules(RESTART, barrier=B.BarrierInOrderOfArrival), V, S),
    _row("first-push gate", "the first push of t + 1 proves that all shards have reached it", _exchange(RESTART, B.ExchangeWithoutGate), V),
    _row("landing checks the version", "a second answer may come late", _exchange(replace(BREAK, late=True), B.ExchangeThatLandsAnything), V),
    _row("answers carry bytes", "the answer went to a dead stream", _rules(BREAK, barrier=B.BarrierAnswersByVerdict), S),
    _row("duplicates are answered", "the new stream knows nothing of the old one's pushes", _rules(BREAK, barrier=B.BarrierOwesDuplicatesNothing), S),
    _row("rejoin pushes again", "what the shard had not summed is lost", _exchange(KILLS, B.ExchangeThatDoesNotPushAgain), S),
    # credits
    _row(
        "next in order is always accepted",
        "else early payload keeps the rank out that everybody waits for",
        _rules(replace(BOUND, num_servers=1), barrier=B.BarrierWithoutNextInOrder),
        S,
    ),
    _row("bound on early payload", "memory", _rules(WINDOW, barrier=B.BarrierWithoutBound), V),
    _row(
        "credit on receipt",
        "with the updated chunk, every rank's window waits for another rank",
        replace(WINDOW, member=B.MemberWithCreditOnLanding),
        S,
    ),
    _row("credits return when the stream ends", "their receipts never come", _exchange(replace(WINDOW, breaks=1), B.ExchangeThatKeepsCredits), S),
    _row("a receipt that waits is held before the answer", "no other message comes until the next push", _rules(WINDOW, slow_holding=True), S),
    _row(
        "receipts that had time are asked for",
        "a stream that ends gives frames back that must leave before the answers come",
        _exchange(ALONE_IN_WINDOW, B.ExchangeThatAsksForNothing),
        S,
    ),
    _row("receipts that frames wait for do not wait", "the answer needs those frames", _exchange(WINDOW, B.ExchangeThatAwaitsNothing), S),
    # two-phase steps
    _row(
        "record before apply",
        "half applied, the shard's own norms cannot be had again",
        replace(ALONE, chunks=3, kills=1, shard=B.ShardThatRecordsAfterwards),
        S,
    ),
    _row("valid mark last", "a torn record must not decide", _rules(replace(NORMS, kills=1), store=B.StoreThatMarksFirst), V),
    _row("norms on every answer", "the norms went to a dead stream", _rules(replace(ALONE, breaks=1), delivery=B.DeliveryOnce), S),
    _row(
        "recorded norms on every answer",
        "they went to a dead stream, and the shard has applied the step",
        replace(ALONE, breaks=2, shard=B.ShardThatForgetsNormsOnAnswers),
        S,
    ),
    _row("norms before bytes", "a rank that has landed all pushes nothing more", replace(ALONE, breaks=2, shard=B.ShardWithNormsAfterBytes), S),
    _row(
        "norms after the push",
        "a rank drops norms of a step that it has not begun",
        _rules(replace(NORMS, num_workers=1, restarts=(1,), steps=2), delivery=B.DeliveryBeforePush),
        S,
    ),
    _row("rejoin relays again", "the shard forgot the other shards' norms", replace(NORMS, kills=1, member=B.MemberThatRelaysOnce), S),
    # init
    _row(
        "version 0 is whole before anybody pushes",
        "a push to an empty shard is early",
        _rules(replace(INITIAL, num_servers=1), store=B.StoreReadyTooEarly),
        V,
        S,
    ),
    _row(
        "who waits for version 0 sees broken streams",
        "READY went to a dead stream",
        replace(INITIAL, breaks=1, num_servers=1, rejoins_in=(INIT, STEP)),
        S,
    ),
    # ranks of stages
    _row("a rank's gate is its stages'", "another stage pushes t + 1 while this one can still die at t", GroupsWithoutGate(SPLIT), V),
    _row("a rank's stages begin at one version", "they compute parts of different steps", GroupsThatBeginApart(replace(SPLIT, num_servers=1)), S),
    _row("a rank's stages die together", "they wait for messages that its successor never sends", GroupsThatLeaveTheirOwn(SPLIT), S),
    # reports and decisions
    _row("a rank reports the version that it joins at", "its predecessor may have died before", c.DecisionsWithoutReportAfterJoin(), V, S),
    _row("who, not how many", "a repeated report is no other rank's", Decisions(c.ControlThatCounts), V),
    _row("an epoch is whole once", "decisions are made once", Decisions(c.ControlThatRepeats), V),
    _row("shards are told before ranks are answered", "the first push needs the decision", c.DecisionsAnsweredFirst(), V),
    _row("valid mark of a decision last", "a torn decision must not count", Decisions(store=c.StoreThatMarksDecisionsFirst), V),
]
