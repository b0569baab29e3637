"""Callbacks: a run's metrics on their way to other tools, in a thread of their own."""

import importlib.util
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from deploy.measure.window import SPANS, Window
from ps.errors import ConfigError
from workers.imports import import_attribute

log = logging.getLogger(__name__)

MAX_WAITING = 1000
"""Calls that a slow callback may be behind; further ones are left out."""
END_S = 10.0
"""How long the end of a run waits for calls that are not done."""


class Callback(Protocol):
    """Is told of every validation and epoch (as in metrics.jsonl), and of the mean step since the last call about it."""

    def __call__(self, metrics: dict[str, float], step: int, /) -> None: ...


MakeCallback = Callable[[Path], Callback]
"""Makes a callback for a run, whose directory it is given."""


def load_callbacks(names: Sequence[str]) -> list[MakeCallback]:
    """What makes each of `run.callbacks`. Raises ConfigError for names of nothing, and where a library is missing."""
    return [_load(name) for name in names]


def _load(name: str) -> MakeCallback:
    if name == "tensorboard":
        if importlib.util.find_spec("tensorboard") is None:
            raise ConfigError('run.callbacks = "tensorboard" needs TensorBoard: pip install pserver[tensorboard]')
        return tensorboard
    found = import_attribute(name, "run.callbacks")
    if not callable(found):
        raise ConfigError(
            f"run.callbacks = {name!r} is {type(found).__name__}: name a function that takes the run directory and returns the callback"
        )
    return found


def tensorboard(run: Path) -> Callback:
    """Scalars in the folder `tensorboard` of the run."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(run / "tensorboard")

    def write(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def comm_metrics(window: Window) -> dict[str, float]:
    """The mean step of a window for callbacks: its length, the exposed part, and the spans of the mean rank; nothing without a step."""
    if not window.steps["step_s"]:
        return {}
    spans = {f"comm/{span}": sum(means[span] for means in window.ranks.values()) / len(window.ranks) for span in SPANS}
    samples = sum(means["samples"] for means in window.ranks.values())
    step_s = window.steps["step_s"]
    return {"comm/step_s": step_s, "comm/exposed_share": window.exposed_share, "comm/samples_per_s": samples / step_s, **spans}


class Callbacks:
    """Tells callbacks, one call after the other; neither a slow one nor one that fails holds up the run. Thread-safe."""

    def __init__(self, callbacks: Sequence[tuple[str, Callback]]) -> None:
        """By name. The thread begins with the first call."""
        self._callbacks = dict(callbacks)
        self._waiting: queue.Queue[tuple[dict[str, float], int] | None] = queue.Queue(MAX_WAITING + 1)  # one for the end
        self._thread = threading.Thread(target=self._tell_all, name="callbacks", daemon=True)
        self._is_late = False

    def tell(self, metrics: Mapping[str, float], step: int) -> None:
        """Returns at once."""
        if not self._callbacks or not metrics:
            return
        if not self._thread.is_alive():
            self._thread.start()
        if self._waiting.qsize() < MAX_WAITING:
            self._waiting.put_nowait((dict(metrics), step))
        elif not self._is_late:
            self._is_late = True
            log.warning("callbacks are %d calls behind: metrics are left out", MAX_WAITING)

    def close(self, timeout_s: float = END_S) -> None:
        """Waits until everything has been told, no longer than that."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                log.warning("callbacks have not ended within %g s: their last metrics may be missing", timeout_s)

    def _tell_all(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            metrics, step = waiting
            for name, callback in list(self._callbacks.items()):
                try:
                    callback(dict(metrics), step)
                except Exception:  # the user's
                    log.exception("the callback %s fails and is told nothing more", name)
                    del self._callbacks[name]
