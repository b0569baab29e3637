"""A shard as the model sees it: the real Store, Barrier and NormExchange; the shard's threads are a list of tasks, each
of which may do its next write at any time. What ps.shard does with bytes is done with labels here.
"""

from typing import Any

import numpy as np

from ps.barrier import Answer, Complete, Sum, Verdict
from ps.layout import Layout, Run
from ps.norms import NormExchange
from tests.ps.models.core import Component, Violation, fields, set_fields
from tests.ps.models.rules import Rules
from tests.ps.models.shard_memory import ShardMemory, square_of

GENERATION = 1

Part = tuple[int, int]
Message = tuple[Any, ...]
Mail = tuple[tuple[int, Message], ...]
"""(member, message) for the members' present streams; a rank that is not split is one member, of its number."""


def weight_of(rank: int) -> float:
    """A weight that tells the rank."""
    return 1.0 + rank


class ShardModel(Component):
    """One shard. Public methods are events, called through `call`."""

    def __init__(self, rules: Rules, layout: Layout, index: int, num_workers: int, initialised: bool, num_stages: int = 1) -> None:
        super().__init__()
        self.rules, self.index, self.num_workers, self.num_stages = rules, index, num_workers, num_stages
        self.whole, self.layout = layout, layout.shards[index]
        self.memory = ShardMemory(rules.store, layout, index, self._absent_from_all, two_phase=rules.two_phase)
        self.store = self.memory.store
        if initialised:
            for chunk in range(len(self.layout)):
                self.memory.init(chunk)
        self._start()

    def _start(self) -> None:
        """What a new process begins with."""
        n = len(self.layout)
        assert self.store.attach()
        split = {"stages": self.layout.stage, "num_stages": self.num_stages}
        self.barrier = self.rules.barrier(self.store.words, self.layout.num_bytes, self.num_workers, GENERATION, self.rules.bound, **split)
        self.norms = NormExchange([len(shard) for shard in self.whole.shards], self.index)
        self.delivery = self.rules.delivery()
        self.newest = (0,) * self.num_workers * self.num_stages
        """Highest incarnation of every member that has joined this process."""
        self.tasks: tuple[Message, ...] = ()
        self.sums: tuple[tuple[tuple[int, int], ...], ...] = ((),) * n
        self.pending: tuple[tuple[int, int, int], ...] = ()
        self.held: tuple[tuple[Part, float], ...] = ()
        self.receipts: tuple[tuple[int, int], ...] = ()
        """(member, frame): they wait for the member's next answer."""

    def save(self) -> Any:
        volatile = self.newest, self.tasks, self.sums, self.pending, self.held, self.receipts
        return self.memory.save(), self._barrier_fields(), fields(self.norms), fields(self.delivery), volatile

    def _barrier_fields(self) -> Any:
        return fields(self.barrier, "_words", "_sizes")

    def load(self, saved: Any) -> None:
        memory, barrier, norms, delivery, volatile = saved
        self.memory.load(memory)
        set_fields(self.barrier, barrier)
        set_fields(self.norms, norms)
        set_fields(self.delivery, delivery)
        self.newest, self.tasks, self.sums, self.pending, self.held, self.receipts = volatile

    def _absent_from_all(self, step: int, chunk: int) -> bool:
        """`chunk`: of the whole layout."""
        return all(self.rules.absent(rank, step, chunk) for rank in range(self.num_workers))

    def _id(self, chunk: int) -> int:
        return int(self.layout.chunks[chunk])

    # -- questions -------------------------------------------------------------------------------------------

    def facts(self) -> tuple[int, tuple[Message, ...], bool]:
        """Version, tasks and whether everything may be read that claims to be readable. Raises Violation."""
        self.memory.check_readable()
        if self.barrier.early_bytes > self.rules.bound:
            raise Violation(f"{self.barrier.early_bytes} early bytes, bound {self.rules.bound}")
        return self.store.version, self.tasks, self.store.initialised

    def read(self, version: int, chunk: int) -> int | None:
        """What a reader pinned to `version` copies; None: gone."""
        return self.copy(version, chunk) if self.store.readable(version) else None

    def copy(self, version: int, chunk: int) -> int:
        """What lies at the place of `version`."""
        return int(self.memory.labels(version, Run(chunk, chunk + 1))[0])

    # -- members ---------------------------------------------------------------------------------------------

    def join(self, member: int, incarnation: int) -> tuple[int, Mail] | None:
        """Join and the new stream: (version, mail); None: fenced, or a sum of the rank runs."""
        rank, stage = divmod(member, self.num_stages)
        if self.barrier.may_join(member, incarnation, GENERATION) is not Verdict.ACCEPTED or self.barrier.is_summing(rank):
            return None
        if self.barrier.join(member, incarnation):
            self.pending = tuple(kept for kept in self.pending if kept[0] != rank or self.layout.stage[kept[1]] != stage)
        self.delivery.opened(member)
        self.receipts = tuple(kept for kept in self.receipts if kept[0] != member)
        self.newest = (*self.newest[:member], max(self.newest[member], incarnation), *self.newest[member + 1 :])
        return self.store.version, (((member, ("ready",)),) if self.store.initialised else ())

    def kill(self) -> None:
        """The process dies and another one attaches to its memory."""
        self._start()

    def kill_in_record(self, task: int) -> None:
        """The process dies while it writes a record."""
        self.memory.die_in_record(self.tasks[task][1])
        self._start()

    def init(self, chunk: int) -> Mail:
        """Initial bytes of a chunk, idempotent."""
        if self.store.words[chunk] >= 0:
            return ()
        self.memory.init(chunk)
        return tuple((member, ("ready",)) for member in range(len(self.newest))) if self.store.initialised else ()

    # -- contributions ---------------------------------------------------------------------------------------

    def push(
        self, member: int, incarnation: int, step: int, parts: tuple[Part, ...], frame: int, receipt_may_wait: bool
    ) -> tuple[tuple[Part, ...], Mail] | None:
        """(parts that are paused, mail); None: fenced."""
        if self.barrier.is_fenced(member, incarnation, GENERATION):
            return None
        rank = member // self.num_stages
        if incarnation < self.newest[member]:
            raise Violation(f"rank {rank} incarnation {incarnation} contributes after {self.newest[member]} has joined shard {self.index}")
        self.delivery.pushed(member, step)
        actions: list[Any] = []
        paused: list[Part] = []
        for part in parts:
            offer = self._offer(rank, step, Run(*part))
            actions += offer.actions
            paused += [(run.first, run.stop) for run in offer.paused]
            if not self._is_absent(rank, step, part):
                self.pending += tuple((rank, chunk, step) for run in offer.queued for chunk in range(run.first, run.stop))
        mail: Mail = ()
        if not paused and self.rules.receipts:
            if receipt_may_wait and not self.rules.slow_holding:
                self.receipts += ((member, frame),)
            elif receipt_may_wait:
                self.tasks += (("hold", member, frame),)
            elif self.rules.slow_receipts:
                self.tasks += (("receipt", member, frame),)
            else:
                mail += ((member, ("receipt", frame)),)
        mail += self._send_norms(step) + self._carry_out(actions, step, rank)
        return tuple(paused), mail

    def _is_absent(self, rank: int, step: int, part: Part) -> bool:
        return self.rules.absent(rank, step, self._id(part[0]))

    def _offer(self, rank: int, step: int, run: Run) -> Any:
        absent = self._is_absent(rank, step, (run.first, run.stop))
        prints = None if absent else np.full(len(run), 16 * step + rank + 1, np.uint64)
        offer = self.barrier.offer(rank, step, run, prints, weight_of(rank))
        if offer.verdict > Verdict.ALREADY_APPLIED:
            raise Violation(f"push of step {step} by rank {rank} to shard {self.index} at {self.store.words.tolist()}: {offer.verdict.name}")
        return offer

    def _carry_out(self, actions: list[Any], step: int | None = None, pusher: int | None = None) -> Mail:
        mail: Mail = ()
        for action in actions:
            if isinstance(action, Answer):
                mail += self._answer(action)
            elif isinstance(action, Complete):
                self.tasks += (("complete", (action.run.first, action.run.stop), action.weight),)
            elif self.rules.slow_sums:
                label = self._payload(action, step, pusher)
                self.tasks += (("sum", action.rank, (action.run.first, action.run.stop), label, action.is_first),)
            else:
                mail += self._sum(action.rank, action.run, self._payload(action, step, pusher), action.is_first)
        return mail

    def _payload(self, action: Sum, step: int | None, pusher: int | None) -> int:
        """Step of the payload that a sum reads: that of the push in progress, or what was kept."""
        if action.rank == pusher and step is not None:
            return step
        kept = {item[2] for item in self.pending if item[0] == action.rank and action.run.first <= item[1] < action.run.stop}
        if len(kept) != 1:
            raise Violation(f"sum of rank {action.rank} finds payload of steps {sorted(kept)}")
        self.pending = tuple(i for i in self.pending if i[0] != action.rank or not action.run.first <= i[1] < action.run.stop)
        return kept.pop()

    def _sum(self, rank: int, run: Run, label: int, is_first: bool) -> Mail:
        sums = list(self.sums)
        for chunk in range(run.first, run.stop):
            sums[chunk] = ((rank, label),) if is_first else (*sums[chunk], (rank, label))
        self.sums = tuple(sums)
        return self._carry_out(self.barrier.summed(rank, run))

    def _answer(self, answer: Answer) -> Mail:
        """Bytes that are gone are not sent, nor any on a stream that has not pushed to the step."""
        step, run = answer.version - 1, answer.run
        member = answer.rank * self.num_stages + int(self.layout.stage[run.first])
        if not self.delivery.has_pushed(member, step):
            return ()
        if not ((self.store.words[run.span] == answer.version).all() or self.store.readable(answer.version)):
            return ()
        labels = tuple(self.copy(answer.version, chunk) for chunk in range(run.first, run.stop))
        return (*self._send_norms(step), *self.ask(member), (member, ("params", answer.version, (run.first, run.stop), labels)))

    def ask(self, member: int) -> Mail:
        """The receipts that wait for a message to the member."""
        company = tuple((to, ("receipt", frame)) for to, frame in self.receipts if to == member)
        self.receipts = tuple(kept for kept in self.receipts if kept[0] != member)
        return company

    # -- tasks -----------------------------------------------------------------------------------------------

    def work(self, task: int) -> Mail:
        """The next write of a task."""
        kind, *rest = self.tasks[task]
        others = self.tasks[:task] + self.tasks[task + 1 :]
        if kind == "hold":
            self.tasks = others
            self.receipts += ((rest[0], rest[1]),)
            return ()
        if kind == "receipt":
            self.tasks = others
            return ((rest[0], ("receipt", rest[1])),)
        if kind == "sum":
            self.tasks = others
            return self._sum(rest[0], Run(*rest[1]), *rest[2:])
        if kind == "complete":
            self.tasks = others
            return self._completed(rest[0], rest[1])
        if kind == "record":
            self.tasks = others
            return self._record(rest[0])
        return self._apply(others, *rest)

    def _completed(self, part: Part, weight: float) -> Mail:
        run = Run(*part)
        step = int(self.store.words[run.first])
        self._check_sums(step, run, weight)
        if not self.rules.two_phase:
            self._begin_apply(part, weight)
            return ()
        if self.store.recorded_step == step:
            self.memory.check_record(step)
            self._begin_apply(part, weight)
            return ()
        self.held += ((part, weight),)
        self.norms.add_own(run, np.array([square_of(step, self._id(c)) for c in range(run.first, run.stop)]))
        mail = self._send_norms(step)
        self._decide(step)
        return mail

    def _check_sums(self, step: int, run: Run, weight: float) -> None:
        """Each contribution once, in rank order, of this step."""
        for chunk in range(run.first, run.stop):
            present = [rank for rank in range(self.num_workers) if not self.rules.absent(rank, step, self._id(chunk))]
            expected = tuple((rank, step) for rank in present)
            if present and self.sums[chunk] != expected:
                raise Violation(f"step {step} of chunk {chunk} is the sum of {self.sums[chunk]}")
            total = sum(map(weight_of, range(self.num_workers))) if present else 0.0
            if weight != total:
                raise Violation(f"step {step} of chunk {chunk} weighs {weight}, not {total}")

    def _begin_apply(self, part: Part, weight: float) -> None:
        self.tasks += (("apply", part, weight, 0),)

    APPLY = ("oldest", "overwrite", "write", "words")

    def _apply(self, others: tuple[Message, ...], part: Part, weight: float, phase: int) -> Mail:
        step = int(self.store.words[part[0]])
        mail: Mail = ()
        self.tasks = others
        for name in self.APPLY[phase:]:
            mail += getattr(self, f"_{name}")(step, Run(*part), weight)
            phase += 1
            if self.rules.separate_writes:
                break
        if phase < len(self.APPLY):
            self.tasks = (*others, ("apply", part, weight, phase))
        return mail

    def _oldest(self, step: int, run: Run, weight: float) -> Mail:
        self.store.raise_oldest(step)
        return ()

    def _overwrite(self, step: int, run: Run, weight: float) -> Mail:
        self.memory.tear(step + 1, run)
        return ()

    def _write(self, step: int, run: Run, weight: float) -> Mail:
        self.memory.write(step + 1, run, counts=weight > 0)
        return ()

    def _words(self, step: int, run: Run, weight: float) -> Mail:
        """Contributions are cleared before the words are visible: one lock holds both."""
        answers = self.barrier.applied(run)
        self._commit(step, run)
        return self._carry_out(list(answers))

    def _commit(self, step: int, run: Run) -> None:
        self.store.commit(step, run)
        if self.store.version > step:
            self.norms.begin()

    # -- two-phase steps -------------------------------------------------------------------------------------

    def learn(self, member: int, incarnation: int, step: int, source: int, squares: tuple[float, ...]) -> Mail:
        """Another shard's norms, relayed."""
        if self.barrier.is_fenced(member, incarnation, GENERATION) or step != self.store.version or source == self.index:
            return ()
        self.norms.learn(source, np.array(squares))
        self._decide(step)
        return ()

    def _decide(self, step: int) -> None:
        vectors = self.norms.all_vectors() if self.barrier.is_complete() else None
        held = sum(part[1] - part[0] for part, _ in self.held)
        if vectors is None or step != self.store.version or held < len(self.layout) or any(task[0] == "record" for task in self.tasks):
            return
        self.tasks += (("record", step),)

    def _record(self, step: int) -> Mail:
        vectors = self.norms.all_vectors()
        assert vectors is not None
        self.store.record(step, vectors)
        self.memory.check_record(step)
        for part, weight in self.held:
            self._begin_apply(part, weight)
        self.held = ()
        return ()

    def _send_norms(self, step: int) -> Mail:
        if not self.rules.two_phase:
            return ()
        if self.store.recorded_step == step:
            vectors = dict(enumerate(self.norms.split(self.store.norms)))
        elif step == self.store.version and self.norms.own is not None:
            vectors = {self.index: self.norms.own}
        else:
            return ()
        message = ("norms", step, tuple((source, tuple(v.tolist())) for source, v in vectors.items()))
        return tuple((member, message) for member in self.delivery.due(step))
