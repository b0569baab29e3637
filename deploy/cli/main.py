"""`pserver`: its verbs, and the one place where errors become a line on stderr and an exit code."""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from deploy.cli.bench import bench
from deploy.cli.certs import certs
from deploy.cli.compare import compare
from deploy.cli.diff import diff
from deploy.cli.doctor import doctor
from deploy.cli.export import export
from deploy.cli.plan import plan
from deploy.cli.report import report
from deploy.cli.run import run
from deploy.cli.simulate import simulate
from deploy.cli.sweep import sweep
from deploy.cli.top import top
from deploy.cli.trace import trace
from ps.errors import ConfigError, HeadLost, PserverError, Stopped

FAILED, USAGE, INTERRUPTED = 1, 2, 130

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command()(run)
app.command()(compare)
app.command()(doctor)
app.command()(export)
app.command()(top)
app.command()(report)
app.command()(plan)
app.command()(simulate)
app.command()(sweep)
app.add_typer(bench, name="bench")
app.command()(diff)
app.command()(trace)
app.command()(certs)


def _version(wanted: bool) -> None:
    if wanted:
        from deploy.result import versions

        typer.echo(f"pserver {versions()['pserver']}")
        raise typer.Exit


@app.callback()
def pserver(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")] = False) -> None:
    """Synchronous training through a sharded parameter server."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; ends with SystemExit: 0 finished, 1 failed, 2 usage or config, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        app(arguments, prog_name="pserver")
    except (PserverError, OSError) as error:
        if "--traceback" in arguments:
            traceback.print_exception(error)
        for line in in_words(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        if isinstance(error, HeadLost):
            _end_at_once(exit_code(error))
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def in_words(error: Exception) -> str:
    """What has ended a verb, and what to do about it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'a file'} cannot be written: {error.strerror}: free space there, or choose another run.storage_path"
    return str(error) or type(error).__name__


def _end_at_once(code: int) -> NoReturn:
    """Without what Ray has for the end of a program."""
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(code)


def exit_code(error: Exception) -> int:
    """Of a run or verb that ended with `error`."""
    if isinstance(error, Stopped):
        return INTERRUPTED
    return USAGE if isinstance(error, ConfigError) else FAILED
