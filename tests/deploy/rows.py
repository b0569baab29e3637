"""What is in a `comm.jsonl`."""

import json
from collections.abc import Iterator
from pathlib import Path

from ps.ledger import ServerRow, WorkerRow, from_line


def by_step(ledger: Path) -> Iterator[tuple[int, list[WorkerRow | ServerRow]]]:
    """Step and rows of every line."""
    for text in ledger.read_text().splitlines():
        line = json.loads(text)
        yield line["step"], [from_line(json.dumps(row)) for row in line["rows"]]
