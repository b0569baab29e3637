"""Prints what every model finds, the large ones included: `python -m tests.ps.models.run_all`."""

import time

from tests.ps.models.cases import CONTROLS, HOLDS, LARGE
from tests.ps.models.core import Model, explore

MAX_STATES = 2_000_000


def _show(name: str, model: Model, expected: tuple[str, ...]) -> bool:
    started = time.perf_counter()
    found = explore(model, MAX_STATES)
    right = found.kind in expected
    mark = "" if right else f"  UNEXPECTED\n{found}"
    print(f"{name:65s} {found.kind:9s} {found.num_states:7d} states {time.perf_counter() - started:5.1f} s{mark}", flush=True)
    return right


def main() -> int:
    """Exit code 1 if anything is not as expected."""
    rows = [(name, model, ("holds",)) for name, model in (*HOLDS.items(), *LARGE.items())]
    rows += [(f"without: {row.rule}", row.model, row.kinds) for row in CONTROLS]
    results = [_show(*row) for row in rows]
    return 0 if all(results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
