"""What travels in the model of a step, as workers and servers see it."""

from dataclasses import dataclass
from typing import Protocol

from deploy.predict.classes import Frame, ServerClass
from deploy.predict.events import Call


@dataclass(frozen=True)
class Part:
    """Frame `frame` of `num_frames` servers of a class, the `turn`-th ones."""

    server: int
    frame: int
    turn: int
    num_frames: float


class Network(Protocol):
    """How bytes get from one class to another."""

    def push(self, worker: int, part: Part, num_bytes: float, arrived: Call) -> None:
        """A part of `num_bytes` in all from each worker of a class."""

    def answer(self, server: int, worker: int, portion: int, num_bytes: float, num_frames: float, arrived: Call) -> None:
        """`num_bytes` to each worker of a class, from as many servers as there are frames: the `portion`-th of its answers."""

    def receipts(self, server: int, worker: int, arrived: Call) -> None:
        """A message to each worker of a class that takes no time of its own, after the answers before it."""

    def pass_on(self, worker: int, to: int, num_bytes: float, arrived: Call) -> None:
        """From one stage to another of its rank."""

    def after(self, delay_s: float, call: Call) -> None: ...

    @property
    def now_s(self) -> float: ...


class Reader(Protocol):
    """What servers answer: workers, or what stands between."""

    def land(self, frame: Frame, num_frames: float, done: Call) -> None: ...

    def landed(self, frame: Frame) -> None: ...


class Taker(Protocol):
    """What workers push to: servers, or what stands between."""

    @property
    def cls(self) -> ServerClass: ...

    def receive(self, worker: int, part: Part, receipt: Call) -> None: ...
