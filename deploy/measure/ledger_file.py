"""Reading `comm.jsonl`, also while it is written or after its writer was killed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ps.errors import ConfigError
from ps.ledger import ServerRow, WorkerRow, aligned, from_line


@dataclass(frozen=True)
class LedgerStep:
    """The rows of one step, by the driver's clock; some may be missing."""

    step: int
    workers: list[WorkerRow]
    servers: list[ServerRow]

    @property
    def rows(self) -> list[WorkerRow | ServerRow]:
        return [*self.workers, *self.servers]

    @property
    def recovers(self) -> bool:
        """Whether a process came back in it: how long that took says nothing about other steps."""
        return any(row.rejoined for row in self.workers)


def read_ledger(path: Path) -> Iterator[LedgerStep]:
    """The steps in the file's order; nothing if there is no file. A last line that is not whole is left out.

    Raises ConfigError for any other line that is none of the ledger's.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            yield _parse(line, f"{path}, line {number}")


class LedgerTail:
    """Follows a ledger that is being written."""

    def __init__(self, path: Path, *, last_bytes: int) -> None:
        """`last_bytes`: of a file that is there already, no more than this is read."""
        self._path = path
        self._last_bytes = last_bytes
        self._offset: int | None = None
        self._rest = b""

    def poll(self) -> list[LedgerStep]:
        """The whole lines since the last call; all of a ledger that a resumed run has cut. Raises ConfigError as `read_ledger`."""
        if not self._path.is_file():
            return []
        if self._offset is not None and self._path.stat().st_size < self._offset:
            self._offset, self._rest = None, b""
        with self._path.open("rb") as file:
            if self._offset is None:
                self._offset = max(0, self._path.stat().st_size - self._last_bytes)
                file.seek(self._offset)
                self._offset += len(file.readline()) if self._offset else 0  # most likely the end of a line
            file.seek(self._offset)
            found = file.read()
        self._offset += len(found)
        *lines, self._rest = (self._rest + found).split(b"\n")
        return [_parse(line.decode(errors="replace"), str(self._path)) for line in lines]


def _parse(line: str, where: str) -> LedgerStep:
    try:
        found = json.loads(line)
        rows = [aligned(from_line(json.dumps(row))) for row in found["rows"]]
        step = int(found["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where} is no line of the ledger: it is damaged, or of another version of pserver") from error
    return LedgerStep(step, [row for row in rows if isinstance(row, WorkerRow)], [row for row in rows if isinstance(row, ServerRow)])
