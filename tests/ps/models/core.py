"""Exhaustive search: safety on every edge, liveness from every reachable state.

A model yields edges (label, next state, is_progress). Adversary edges (kills, breaks, late and duplicated messages,
zombies) are no progress: the end must be reachable from every state without them.
"""

import gc
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np

Edge = tuple[str, Hashable, bool]


class Violation(Exception):
    """A state or an edge that must not exist."""


class Model(Protocol):
    """What `explore` needs."""

    initial: Hashable

    def edges(self, state: Any) -> Iterator[Edge]:
        """Everything that may happen next. Raises Violation."""

    def check(self, state: Any) -> None:
        """Raises Violation for a bad state."""

    def is_end(self, state: Any) -> bool:
        """Whether the run has ended well."""


@dataclass(frozen=True)
class Finding:
    """Outcome of a search; `trace` is the shortest way to what was found."""

    kind: str
    num_states: int
    text: str = ""
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n    ".join([f"{self.kind}, {self.num_states} states. {self.text}", *self.trace])


class TooLarge(Exception):
    """The state space exceeds the limit."""


def explore(model: Model, max_states: int = 150_000) -> Finding:
    """Breadth first, so that traces are shortest: kind "holds", "violation" or "stuck"."""
    was_enabled = gc.isenabled()
    gc.disable()  # states are in no cycles, and all that there are would be looked through again and again
    try:
        return _explore(model, max_states)
    finally:
        if was_enabled:
            gc.enable()


def _explore(model: Model, max_states: int) -> Finding:
    states = [model.initial]
    index: dict[Hashable, int] = {model.initial: 0}
    parent: list[tuple[int, str] | None] = [None]
    into: dict[int, list[int]] = defaultdict(list)

    def trace(at: int) -> tuple[str, ...]:
        labels = []
        while (step := parent[at]) is not None:
            at, label = step
            labels.append(label)
        return tuple(reversed(labels))

    at = 0
    while at < len(states):
        try:
            model.check(states[at])
            for label, state, is_progress in model.edges(states[at]):
                known = index.get(state)
                if known is None:
                    known = index[state] = len(states)
                    states.append(state)
                    parent.append((at, label))
                if is_progress:
                    into[known].append(at)
        except Violation as violation:
            return Finding("violation", len(states), str(violation), trace(at))
        at += 1
        if len(states) > max_states:
            raise TooLarge(f"more than {max_states} states")
    alive = _backwards(into, [i for i, state in enumerate(states) if model.is_end(state)])
    for i in range(len(states)):
        if i not in alive:
            return Finding("stuck", len(states), f"{len(states) - len(alive)} states cannot reach the end", trace(i))
    return Finding("holds", len(states))


def _backwards(into: dict[int, list[int]], ends: list[int]) -> set[int]:
    seen, todo = set(ends), deque(ends)
    while todo:
        for before in into[todo.popleft()]:
            if before not in seen:
                seen.add(before)
                todo.append(before)
    return seen


def freeze(value: Any) -> Hashable:
    """A hashable value from which `thaw` makes an equal one."""
    if isinstance(value, np.ndarray):
        return "array", value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, list):
        return "list", *(freeze(item) for item in value)
    if isinstance(value, dict):
        return "dict", *((key, freeze(value[key])) for key in sorted(value))
    assert isinstance(value, Enum | Hashable)
    return value


def thaw(value: Any) -> Any:
    """The inverse of `freeze`."""
    if not isinstance(value, tuple) or not value:
        return value
    if value[0] == "array":
        return np.frombuffer(value[3], value[1]).reshape(value[2]).copy()
    if value[0] == "list":
        return [thaw(item) for item in value[1:]]
    if value[0] == "dict":
        return {key: thaw(item) for key, item in value[1:]}
    return value


def fields(thing: object, *shared: str) -> Hashable:
    """All fields of an object but the `shared` ones, frozen."""
    return tuple((name, freeze(value)) for name, value in vars(thing).items() if name not in shared)


def set_fields(thing: object, frozen: Any) -> None:
    """Gives an object the fields that `fields` took."""
    for name, value in frozen:
        setattr(thing, name, thaw(value))


class Component:
    """A part of a model around real objects: states are numbered, calls are made once per state and remembered.

    `call(state, name, *arguments)` loads the state, calls the method `name` and returns (new state, result).
    """

    def __init__(self) -> None:
        self._saved: list[Hashable] = []
        self._number: dict[Hashable, int] = {}
        self._known: dict[Hashable, tuple[int, Any]] = {}

    def save(self) -> Hashable:
        raise NotImplementedError

    def load(self, saved: Any) -> None:
        raise NotImplementedError

    def number(self) -> int:
        """The number of the present state."""
        saved = self.save()
        number = self._number.setdefault(saved, len(self._saved))
        if number == len(self._saved):
            self._saved.append(saved)
        return number

    def call(self, state: int, name: str, *arguments: Any) -> tuple[int, Any]:
        key = (state, name, arguments)
        if key not in self._known:
            self.load(self._saved[state])
            result = getattr(self, name)(*arguments)
            self._known[key] = self.number(), result
        return self._known[key]
