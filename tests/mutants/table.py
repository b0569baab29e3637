"""The guards, how each is switched off, and the test that must fail then."""

from dataclasses import dataclass

HISTORIES = "tests/ps/test_interleavings.py"
BROKEN_STREAMS = "tests/ps/test_equality.py::test_streams_that_break_change_no_bit"
GENERATION = "tests/ps/test_shard.py::test_another_generation_is_fenced"
EARLY = "tests/ps/test_shard.py::test_an_early_push_is_refused_and_leaves_no_trace"
MALFORMED = "tests/ps/test_verdicts.py::test_a_malformed_frame_is_named_and_ends_the_stream"
LENT = "tests/ps/test_shared.py::test_what_a_dead_incarnation_had_summed_is_read_no_more_in_its_segment"
_SERVERS = "tests/deploy/test_server_deaths.py::test_servers_killed_anywhere_cost_no_bit"
WORKERS = "tests/deploy/test_worker_deaths.py::test_a_worker_killed_anywhere_costs_no_bit"
OLDEST = f"{_SERVERS}[adam-[('shard.oldest', 4)]-[('shard.written', 5)]]"
ALL_DIE = "tests/deploy/test_server_deaths.py::test_all_processes_die_in_the_same_step_and_some_of_them_again[two phases]"
DECIDED = f"{_SERVERS}[adam-[('store.deciding', 2)]-[('shard.decided', 1)]]"
CUTS = "tests/ps/test_checkpoints.py"
RESUMED = "tests/deploy/test_resume.py::test_a_run_that_has_failed_goes_on_to_the_same_bits[a server dies]"
LANDED = f"{WORKERS}[worker 0-('worker.landed', 1)]"


@dataclass(frozen=True)
class Mutant:
    """A guard's line and what stands there without it; `old` is in `file` exactly once."""

    guard: str
    file: str
    old: str
    new: str
    test: str
    """As pytest names it; it must fail."""


MUTANTS = (
    Mutant("dedupe", "ps/barrier.py", "            if self._state[rank, part.first] != _NONE:\n", "            if False:\n", HISTORIES),
    Mutant("a duplicate is owed an answer", "ps/barrier.py", "self._owed[rank][part.span] |= same", "pass", BROKEN_STREAMS),
    Mutant("an applied push is answered", "ps/barrier.py", "offer.actions.append(Answer(rank, part, step + 1))", "pass", BROKEN_STREAMS),
    Mutant("an early push is refused", "ps/barrier.py", "            if lead < 0:\n", "            if lead < -1:\n", EARLY),
    Mutant(
        "the table is cleared",
        "ps/barrier.py",
        "for table in (self._state, self._owed, self._absent):",
        "for table in (self._owed, self._absent):",
        HISTORIES,
    ),
    Mutant("next in order", "ps/barrier.py", "            is_next = self._next[part.first] == rank\n", "            is_next = True\n", HISTORIES),
    Mutant("weight", "ps/reduction.py", "1.0 if rule is Rule.SUM else weight", "1.0", HISTORIES),
    Mutant("fence", "ps/barrier.py", "        return incarnation != self._incarnation[rank] or generation", "        return generation", HISTORIES),
    Mutant(
        "generation",
        "ps/barrier.py",
        "old = incarnation < self._incarnation[rank] or generation != self._generation",
        "old = incarnation < self._incarnation[rank]",
        GENERATION,
    ),
    Mutant("digest", "ps/frame.py", "    if found != header.digests:\n", "    if False:\n", MALFORMED),
    Mutant("join forgets what is queued", "ps/barrier.py", "        self._state[rank][queued] = _NONE\n", "", HISTORIES),
    Mutant("first-push gate", "ps/exchange.py", "        return self._missing == 0\n", "        return self._missing <= 1\n", BROKEN_STREAMS),
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
        "version % 2][self.layout.span_bytes(run)]\n\n    def copy_of",
        "0][self.layout.span_bytes(run)]\n\n    def copy_of",
        OLDEST,
    ),
    Mutant("norms are recorded", "ps/store.py", "        self._header[2] = step\n", "        pass\n", ALL_DIE),
    Mutant("decisions are kept", "ps/store.py", "        self._header[at] = version\n", "        pass\n", DECIDED),
    Mutant("what was summed is copied before its segment goes", "ps/shard.py", "                self.work.detach(member.rank)\n", "", LENT),
    Mutant(
        "segment per incarnation",
        "ps/shard.py",
        "                self._segments.pop(member.rank, None)\n",
        "                pass\n",
        LANDED,
    ),
    Mutant("cut before it is overwritten", "ps/work.py", "            self._cuts.before_write(step, run)\n", "            pass\n", CUTS),
    Mutant("a cut is one process' work", "ps/checkpoints/cut.py", " or not (self._state == _TAKEN).all()", "", CUTS),
    Mutant("digests of a checkpoint", "ps/checkpoints/load.py", "        if len(wrong):\n", "        if False:\n", CUTS),
    Mutant(
        "a report enters the books once", "deploy/books.py", 'if any(row["step"] == epoch.version for row in self.history):', "if False:", RESUMED
    ),
)
