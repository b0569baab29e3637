"""The guards, how each is switched off, and the test of final bits that must fail then: of real servers and workers, all of them."""

from dataclasses import dataclass

BROKEN_STREAMS = "tests/ps/test_equality.py::test_streams_that_break_change_no_bit"
_GUARDS = "tests/ps/test_guards.py::test_"
ORDER = f"{_GUARDS}ranks_of_different_weight_that_arrive_in_any_order"
AGAIN = f"{_GUARDS}a_contribution_that_waits_for_its_turn_and_is_pushed_again_counts_once"
DIES_QUEUED = f"{_GUARDS}a_contribution_whose_rank_dies_before_its_turn_is_brought_again"
APART = f"{_GUARDS}a_rank_that_dies_while_shards_stand_at_different_versions_goes_on_from_the_smaller_one"
ZOMBIE = f"{_GUARDS}a_former_incarnation_that_wakes_beside_its_successor_changes_nothing"
TIMELINE = f"{_GUARDS}a_member_of_another_timeline_changes_nothing"
DAMAGED = f"{_GUARDS}a_frame_that_is_refused_leaves_no_trace[a byte changes on the way]"
EARLY = f"{_GUARDS}a_frame_that_is_refused_leaves_no_trace[of the next step]"
LATE_COPY = f"{_GUARDS}a_process_that_was_stopped_inside_its_copy_into_shared_memory_wakes_too_late_to_harm"
FORMER_SEGMENT = "tests/ps/test_shared.py::test_a_restarted_rank_is_held_to_what_lay_in_its_former_segment"
_SERVERS = "tests/deploy/test_server_deaths.py::test_servers_killed_anywhere_cost_no_bit"
OLDEST = f"{_SERVERS}[adam-[('shard.oldest', 4)]-[('shard.written', 5)]]"
ALL_DIE = "tests/deploy/test_server_deaths.py::test_all_processes_die_in_the_same_step_and_some_of_them_again"
DECIDED = f"{_SERVERS}[adam-[('store.deciding', 2)]-[('shard.decided', 1)]]"
CUTS = "tests/ps/test_cuts.py"
CHECKPOINTS = "tests/ps/test_checkpoints.py"
RESUMED = "tests/deploy/test_resume.py::test_a_run_that_has_failed_goes_on_to_the_same_bits[a server dies]"


@dataclass(frozen=True)
class Mutant:
    """A guard's line and what stands there without it; `old` is in `file` exactly once."""

    guard: str
    file: str
    old: str
    new: str
    test: str
    """As pytest names it; it must fail."""
    is_explored: bool = True
    """Whether simulated histories must miss the guard too: not those of files and of clients, which they do not have."""


MUTANTS = (
    Mutant("dedupe", "ps/barrier.py", "            if self._state[rank, part.first] != _NONE:\n", "            if False:\n", AGAIN),
    Mutant("a duplicate is owed an answer", "ps/barrier.py", "self._owed[rank][part.span] |= same or not self._exact", "pass", BROKEN_STREAMS),
    Mutant("an applied push is answered", "ps/barrier.py", "offer.actions.append(Answer(rank, part, step + 1))", "pass", BROKEN_STREAMS),
    Mutant("an early push is refused", "ps/barrier.py", "            if lead < 0:\n", "            if lead < -1:\n", EARLY),
    Mutant(
        "the table is cleared",
        "ps/barrier.py",
        "for table in (self._state, self._owed, self._absent, self._unmarked):",
        "for table in (self._owed, self._absent, self._unmarked):",
        ORDER,
    ),
    Mutant("next in order", "ps/barrier.py", "            is_next = self._next[part.first] == rank\n", "            is_next = True\n", ORDER),
    Mutant("weight", "ps/reduction.py", "1.0 if block.rule is Rule.SUM else weight", "1.0", ORDER),
    Mutant(
        "fence at Join",
        "ps/barrier.py",
        "old = incarnation < self._incarnation[member] or generation != self._generation",
        "old = generation != self._generation",
        ZOMBIE,
        is_explored=False,  # a zombie that may join pushes what its successor would
    ),
    Mutant("fence", "ps/barrier.py", "        return incarnation != self._incarnation[member] or generation", "        return generation", LATE_COPY),
    Mutant(
        "generation",
        "ps/barrier.py",
        "old = incarnation < self._incarnation[member] or generation != self._generation",
        "old = incarnation < self._incarnation[member]",
        TIMELINE,
    ),
    Mutant("digest", "ps/frame.py", "    if found != header.digests:\n", "    if False:\n", DAMAGED),
    Mutant("join forgets what is queued", "ps/barrier.py", "        self._state[rank][queued] = _NONE\n", "", DIES_QUEUED),
    Mutant(
        "pin",
        "ps/answers.py",
        "                self._store.check_readable(version)\n                return version\n",
        "                return self._store.version\n",
        APART,
    ),
    Mutant(
        "the smallest version is taken",
        "ps/client.py",
        "version = min((one.version for one in joined if one.version != EMPTY), default=0)",
        "version = max((one.version for one in joined if one.version != EMPTY), default=0)",
        APART,
        is_explored=False,  # of the client: histories have the models' member
    ),
    Mutant("first-push gate", "ps/exchange.py", "        return self._missing == 0\n", "        return self._missing <= 1\n", BROKEN_STREAMS),
    Mutant(
        "receipts are awaited while frames need their credit",
        "ps/exchange.py",
        "        return credits < sum(self._left) or of_shard < self._left[shard]\n",
        "        return False\n",
        "tests/ps/test_exchange.py",
        is_explored=False,  # they are asked for then
    ),
    Mutant("receipts that had time are asked for", "ps/exchange.py", "        return asked\n", "        return []\n", "tests/ps/test_receipts.py"),
    Mutant(
        "a broken stream's frames go again",
        "ps/exchange.py",
        "not self._landed[shard][run.span].all()\n        self._queue",
        "False\n        self._queue",
        BROKEN_STREAMS,
    ),
    Mutant(
        "word order",
        "ps/work.py",
        '        hit("shard.oldest")\n',
        '        self._store.words[run.span] = step + 1\n        hit("shard.oldest")\n        self._store.words[run.span] = step\n',
        OLDEST,
    ),
    Mutant(
        "two copies",
        "ps/store.py",
        "return self._params[0 if frozen else version % 2]",
        "return self._params[0]",
        OLDEST,
    ),
    Mutant("norms are recorded", "ps/store.py", "        self._header[2] = step\n", "        pass\n", ALL_DIE),
    Mutant("decisions are kept", "ps/store.py", "        self._header[at] = version\n", "        pass\n", DECIDED),
    Mutant(
        "what was summed is copied before its segment goes",
        "ps/shard.py",
        "                self.work.detach(member.rank, member.stage)\n",
        "",
        f"{LATE_COPY}[0]",
    ),
    Mutant(
        "what was taken from a segment is known when that goes",
        "ps/shard.py",
        "                        self._intake.mark(number, member.rank, block.run)\n",
        "                        pass\n",
        FORMER_SEGMENT,
        is_explored=False,  # a restarted rank brings the same bytes in every history
    ),
    Mutant(
        "segment per incarnation",
        "ps/shard.py",
        "                self._segments.pop(number, None)\n",
        "                pass\n",
        LATE_COPY,
    ),
    Mutant(
        "cut before it is overwritten",
        "ps/work.py",
        "            self._cuts.before_write(step, run)\n",
        "            pass\n",
        CUTS,
        is_explored=False,  # nothing is cut then but what is asked for, at once
    ),
    Mutant(
        "a cut that was written over is given up",
        "ps/checkpoints/cut.py",
        "        self._lost = store.oldest - 1\n",
        "        self._lost = -1\n",
        CUTS,
        is_explored=False,  # one history in two hundred shows it
    ),
    Mutant("a cut is one process' work", "ps/checkpoints/cut.py", " or not (self._state == _TAKEN).all()", "", CUTS),
    Mutant("digests of a checkpoint", "ps/checkpoints/load.py", "        if len(wrong):\n", "        if False:\n", CHECKPOINTS, is_explored=False),
    Mutant(
        "a report enters the books once",
        "deploy/books.py",
        'if any(row["step"] == epoch.version for row in self.history):',
        "if False:",
        RESUMED,
        is_explored=False,
    ),
)
