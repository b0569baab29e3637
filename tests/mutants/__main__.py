"""`make mutants`: exit code 1 if a guard can go without a test's noticing."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.planted import ROOT, text_of
from tests.mutants.table import MUTANTS, Mutant

_PARTS = ("ps", "workers", "deploy", "protos", "tests", "pyproject.toml")
_LIMIT_S = 900
_TESTS_FAILED = 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description="Switches guards off, one at a time, in a copy of the tree.")
    parser.add_argument("--guards", nargs="+", default=[""], help="only those whose name has one of these in it")
    wanted = parser.parse_args().guards
    with tempfile.TemporaryDirectory(prefix="pserver-mutants-") as temporary:
        tree = _copy(Path(temporary))
        mutants = [mutant for mutant in MUTANTS if any(part in mutant.guard for part in wanted)]
        if _outcome(tree, sorted({mutant.test for mutant in mutants})) != "passes":
            sys.exit("the tests fail without a mutant: see make test")
        fails = [mutant.guard for mutant in mutants if not _is_proved(tree, mutant)]
    print(f"{len(mutants)} guards, {len(fails)} not proved{': ' if fails else ''}{', '.join(fails)}")
    return 1 if fails or not mutants else 0


def _copy(folder: Path) -> Path:
    for part in _PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, folder / part)
    return folder


def _is_proved(tree: Path, mutant: Mutant) -> bool:
    """Whether the test fails without the guard."""
    path = tree / mutant.file
    text = path.read_text()
    try:
        without = text_of(mutant)
    except ValueError as error:
        print(error)
        return False
    started = time.monotonic()
    path.write_text(without)
    try:
        found = _outcome(tree, [mutant.test])
    finally:
        path.write_text(text)
    mark = "" if found == "fails" else "  UNEXPECTED"
    print(f"{mutant.guard:36s} {mutant.test.rpartition('/')[2]:120s} {found} {time.monotonic() - started:5.1f} s{mark}", flush=True)
    return not mark


def _outcome(tree: Path, tests: list[str]) -> str:
    """A run that hangs until its test's time limit fails; one that pytest cannot even begin is neither."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=30", *tests]
    try:
        ended = subprocess.run(
            command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, timeout=_LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return "hangs"
    return {0: "passes", _TESTS_FAILED: "fails"}.get(ended.returncode, "breaks")


if __name__ == "__main__":
    sys.exit(main())
