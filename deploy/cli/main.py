"""`pserver`, from its first import to its last line: every verb that is interrupted ends with a line and an exit code, and no stack.

This module imports next to nothing: before `main`, Python itself shows the stack of an interrupt.
"""

import signal
import sys
from collections.abc import Sequence

from deploy.interrupts import Interrupt, interruptible

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; ends with SystemExit: 0 finished, 1 failed, 2 usage or config, 130 interrupted."""
    with interruptible() as interrupt:
        code = _ended(sys.argv[1:] if arguments is None else list(arguments), interrupt)
    if arguments is None:  # the program is at its end: an impatient Ctrl-C shows no stack of that either
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


def _ended(arguments: list[str], interrupt: Interrupt) -> int:
    try:
        from deploy.cli.verbs import call

        return call(arguments)
    except KeyboardInterrupt:
        pass
    except Exception:
        if not interrupt.seen:
            raise  # else a library has made another error of the interrupt
    print("error: interrupted", file=sys.stderr)
    return INTERRUPTED
