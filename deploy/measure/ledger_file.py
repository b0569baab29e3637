"""Reading `comm.jsonl`, also while it is written or after its writer was killed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ps.errors import ConfigError
from ps.ledger import ServerRow, WorkerRow, from_line


@dataclass(frozen=True)
class LedgerStep:
    """The rows of one step; some may be missing."""

    step: int
    workers: list[WorkerRow]
    servers: list[ServerRow]

    @property
    def rows(self) -> list[WorkerRow | ServerRow]:
        return [*self.workers, *self.servers]


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
            try:
                found = json.loads(line)
                rows = [from_line(json.dumps(row)) for row in found["rows"]]
                step = int(found["step"])
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{path}, line {number} is no line of the ledger: it is damaged, or of another version of pserver") from error
            yield LedgerStep(step, [row for row in rows if isinstance(row, WorkerRow)], [row for row in rows if isinstance(row, ServerRow)])
