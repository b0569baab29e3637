"""Round after round over everything that is called and read, with one seed: what fails, and what memory it took."""

import ctypes
import gc
import logging
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.calls import METHODS, Target, calls, target, try_call
from tests.fuzz.format import try_bytes
from tests.fuzz.formats import FORMATS
from tests.fuzz.inputs import payloads

MOST_GROWTH_MB = 64.0
"""Of this process, which is servers, driver and callers at once, after the first round."""


@dataclass
class Campaign:
    """`examples` of each target in a round."""

    examples: int
    tried: int = 0
    rounds: int = 0
    failures: list[str] = field(default_factory=list)
    growth_mb: float = 0.0

    def run(self, first_seed: int, only: str, ends: Callable[[int], bool]) -> None:
        """Rounds with seeds from `first_seed` on until `ends(rounds)`."""
        before_mb = 0.0
        with tempfile.TemporaryDirectory(prefix="pserver-fuzz-") as folder, target() as made, _no_errors_logged(self.failures):
            todo = {name: run for name, run in self._targets(made, Path(folder)).items() if only in name}
            assert todo, f"nothing is called {only}"
            while not (self.rounds and ends(self.rounds)):
                for name, run in todo.items():
                    self._try(name, run, first_seed + self.rounds)
                made.answers()
                self.rounds += 1
                if self.rounds == 1:
                    before_mb = _resident_mb()
            self.growth_mb = _resident_mb() - before_mb

    def _targets(self, made: Target, folder: Path) -> dict[str, Callable[[int], None]]:
        found: dict[str, Callable[[int], None]] = {}
        for method in METHODS:
            found[method] = self._property(calls(method), lambda sent, method=method: try_call(made, method, *sent))
        for index, one in enumerate(FORMATS):
            (own := folder / str(index)).mkdir()
            try_bytes(one, right := one.right(), own)
            found[one.name] = self._property(payloads(right), lambda data, one=one, own=own: try_bytes(one, data, own))
        return found

    def _property(self, inputs, check) -> Callable[[int], None]:  # type: ignore[no-untyped-def]
        def run(number: int) -> None:
            @seed(number)
            @settings(
                max_examples=self.examples,
                database=None,
                deadline=None,
                derandomize=False,
                print_blob=False,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            )
            @given(inputs)
            def each(value: object) -> None:
                self.tried += 1
                check(value)

            each()

        return run

    def _try(self, name: str, run: Callable[[int], None], number: int) -> None:
        try:
            run(number)
        except Exception as error:
            text = "".join(traceback.format_exception(error, limit=-6))
            self.failures.append(f"{name}, seed {number} (ARGS=\"--seed {number} --only '{name}' --seconds 1\"):\n{text}")


def _resident_mb() -> float:
    """Without what malloc keeps of what has been freed."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss / 1e6


@contextmanager
def _no_errors_logged(failures: list[str]) -> Iterator[None]:
    """What is logged as an error, with its stack, is a bug that somebody caught."""

    class Noted(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            failures.append(f"logged: {logging.Formatter().format(record)}")

    handler = Noted(logging.ERROR)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def lasts(seconds: float) -> Callable[[int], bool]:
    deadline = time.monotonic() + seconds
    return lambda rounds: time.monotonic() > deadline
