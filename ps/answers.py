"""What leaves a shard: the bytes of a version, encoded once and sent to everybody they are owed to, and the norms before them."""

import time

from protos import pserver_pb2 as pb
from ps import frame
from ps.barrier import Answer
from ps.comm import EXACT
from ps.errors import NotInitialised, VersionGone
from ps.failpoints import hit
from ps.layout import Run
from ps.shard_state import ShardState
from ps.streams import Stream


class Answers:
    """The way down to the ranks. Thread-safe."""

    def __init__(self, state: ShardState, pull_format: str) -> None:
        self._state = state
        self._layout = state.layout
        self._store = state.store
        self._changed = state.changed
        self._pull_format = pull_format

    def send_ready(self, stream: Stream) -> None:
        """Tells a stream that version 0 is there. Under the lock."""
        stream.send(frame.encode(pb.FrameHeader(kind=pb.READY, step=self._store.version)))

    def send(self, answers: list[Answer]) -> None:
        """Sends each run's bytes, encoded once and after the norms, to everybody they are owed to; bytes that are gone are not sent."""
        encoded: dict[tuple[Run, int, bool], bytes] = {}
        for answer in sorted(answers, key=self._turn):
            number = self._state.pusher(answer.rank, answer.run)
            with self._changed:
                stream = self._state.streams.of(number)
            if stream is None:
                continue
            key = (answer.run, answer.version, stream.lands_shared)
            try:
                if key not in encoded:
                    encoded[key] = self._encode_answer(answer, shared=stream.lands_shared)
            except VersionGone:
                continue
            if self._send_answer(number, answer.version - 1, stream, encoded[key]):
                self._state.stats.sent(answer.version - 1, frame.payload_bytes(self._layout, answer.run, self._pull_format))

    def _turn(self, answer: Answer) -> int:
        """Every shard begins with another rank: shards that are done at once would else queue for one rank's link, then for the next one's."""
        return (answer.rank - self._state.index) % self._state.barrier.num_workers

    def _send_answer(self, number: int, step: int, stream: Stream, data: bytes) -> bool:
        """False if the member's stream has ended, or another one has not asked yet."""
        with self._changed:
            if self._state.streams.of(number) is not stream or not self._state.two_phase.delivery.has_pushed(number, step):
                return False
            self.send_norms(step)
            stream.send(data)
        hit("shard.answered")
        return True

    def _encode_answer(self, answer: Answer, *, shared: bool) -> bytes:
        if shared:
            return self.encode_shared(answer.version, answer.run)
        return self.encode_params(answer.version, answer.run, self._pull_format)

    def encode_params(self, version: int, run: Run, wire: str = EXACT) -> bytes:
        """A PARAMS frame of a run within one block, in the format `wire`. Raises VersionGone if the bytes are, or went while they were copied."""
        self._check_readable(version, run)
        memory = self._store.copy_of(version, run)
        data = frame.encode_run(self._params_header(version, run), memory, self._layout, run, flat=False, wire=wire)
        self._check_readable(version, run)
        return data

    def encode_shared(self, version: int, run: Run) -> bytes:
        """A PARAMS frame without payload, for members that read the store. Raises VersionGone."""
        self._check_readable(version, run)
        header = self._params_header(version, run)
        header.shared = True
        return frame.encode(header)

    def _params_header(self, version: int, run: Run) -> pb.FrameHeader:
        last_rank, complete_s = self._state.stats.last_contribution()
        return pb.FrameHeader(
            kind=pb.PARAMS,
            step=version,
            first_chunk=run.first,
            num_chunks=len(run),
            last_rank=last_rank,
            complete_s=complete_s,
            clock_s=time.monotonic(),
        )

    def _check_readable(self, version: int, run: Run) -> None:
        """A chunk's bytes may be read as soon as its own word is written, before the shard has the version."""
        with self._changed:
            if run.first >= self._layout.num_versioned or (self._store.words[run.span] == version).all():
                return
            self._store.check_readable(version)

    def pull_version(self, version: int) -> int:
        """The version a pull gets: the newest for -1. Raises NotInitialised, VersionGone."""
        with self._changed:
            if not self._store.initialised:
                raise NotInitialised(f"shard {self._state.index} has no version 0 yet: rank 0 brings it")
            if version >= 0 and self._layout.num_versioned:
                self._store.check_readable(version)
                return version
            return self._store.version

    def send_norms(self, step: int) -> None:
        """Sends what is known of the step's norms to the members that must have them now."""
        if not self._state.two_phase.needed:
            return
        with self._changed:
            if not (frames := self._state.two_phase.frames(step)):
                return
            streams = [self._state.streams.of(number) for number in self._state.two_phase.delivery.due(step)]
            for data in frames:
                for stream in streams:
                    if stream:
                        stream.send(data)
