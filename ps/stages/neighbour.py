"""A stage's end of the connection to a neighbouring stage, whatever carries it."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from protos import pserver_pb2 as pb
from ps.errors import MalformedFrame, PserverError
from ps.failpoints import hit
from ps.stages.messages import Assembly, Message, frames_of

_IDLE_S = 0.2


class Neighbour:
    """One thread uses `put` and `take`; `received` and `lost` are for the one that receives. Messages come in the order in which they were put.

    Neither direction is bounded: how far a stage may be ahead of its neighbour follows from the schedule.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        """`send` queues a frame to the neighbour; never blocks."""
        self._send = send
        self._assembly = Assembly()
        # guards what follows
        self._changed = threading.Condition()
        self._messages: deque[Message] = deque()
        self._error: PserverError | None = None
        self.idle: Callable[[], None] = lambda: None
        """Called now and then while `take` waits; what it raises ends the wait."""
        self.sent_bytes = 0
        """Of frames that have been put, so far."""

    def put_activations(self, step: int, micro: int, values: Sequence[Any]) -> None:
        """What a micro-batch's next block takes. Raises ConfigError for what cannot travel."""
        self.put(Message(pb.ACTIVATIONS, step, micro, values))

    def take_activations(self, step: int, micro: int) -> tuple[Any, ...]:
        """Those of the micro-batch, which must come next. Raises NeighbourLost, MalformedFrame."""
        return tuple(self.take(pb.ACTIVATIONS, step, micro).values)

    def put_gradients(self, step: int, micro: int, values: Sequence[Any], weight: float) -> None:
        """Of the activations of a micro-batch, whose loss has this weight."""
        self.put(Message(pb.GRADIENTS, step, micro, values, weight))

    def take_gradients(self, step: int, micro: int) -> tuple[tuple[Any, ...], float]:
        """Those of the micro-batch, which must come next, and its weight. Raises NeighbourLost, MalformedFrame."""
        message = self.take(pb.GRADIENTS, step, micro)
        return tuple(message.values), message.weight

    def put(self, message: Message) -> None:
        """Raises ConfigError for what cannot travel."""
        for data in frames_of(message):
            self._send(data)
            self.sent_bytes += len(data)
        hit("stage.put")

    def take(self, kind: pb.Kind, step: int | None = None, micro: int = 0) -> Message:
        """The next message, which must be that one; `step` None: of any. Waits for it as long as the neighbour lives. Raises NeighbourLost,
        MalformedFrame."""
        message = None
        while message is None:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._messages or self._error), _IDLE_S)
                if self._messages:
                    message = self._messages.popleft()
                elif self._error:
                    raise self._error
            if message is None:
                self.idle()
        if (message.kind, message.step, message.micro) != (kind, message.step if step is None else step, micro):
            found = f"{pb.Kind.Name(message.kind)} of step {message.step}, micro-batch {message.micro}"
            raise MalformedFrame(f"a neighbouring stage sends {found}, not {pb.Kind.Name(kind)} of step {step}, micro-batch {micro}")
        hit("stage.took")
        return message

    def received(self, data: bytes) -> None:
        """A frame from the neighbour. Raises MalformedFrame."""
        message = self._assembly.take(data)
        if message:
            with self._changed:
                self._messages.append(message)
                self._changed.notify_all()

    def lost(self, error: PserverError) -> None:
        """Nothing more will come: `take` raises the first error once it has given out what had."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
