"""The verbs of `pserver`, and the one place where errors become a line on stderr and an exit code."""

import contextlib
import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from deploy.cli.bench import bench
from deploy.cli.certs import certs
from deploy.cli.compare import compare
from deploy.cli.diff import diff
from deploy.cli.doctor import doctor
from deploy.cli.export import export
from deploy.cli.main import INTERRUPTED
from deploy.cli.plan import plan
from deploy.cli.report import report
from deploy.cli.run import run
from deploy.cli.simulate import simulate
from deploy.cli.sweep import sweep
from deploy.cli.top import top
from deploy.cli.trace import trace
from ps.errors import ConfigError, HeadLost, PserverError, Stopped

FAILED, USAGE = 1, 2


class _Verbs(TyperGroup):
    """All verbs, those of `pserver bench` too. What typer itself makes of Ctrl-C depends on its version."""

    def make_context(self, *given: Any, **named: Any) -> Any:
        with _stoppable():
            return super().make_context(*given, **named)

    def invoke(self, ctx: Any) -> Any:
        with _stoppable():
            return super().invoke(ctx)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped("interrupted") from None


app = typer.Typer(cls=_Verbs, add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
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


def call(arguments: Sequence[str]) -> int:
    """Does what the arguments say; the exit code. Raises what no user could mend."""
    try:
        app(arguments, prog_name="pserver")
    except (PserverError, OSError) as error:
        if "--traceback" in arguments:
            traceback.print_exception(error)
        for line in in_words(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        if isinstance(error, HeadLost):
            _end_at_once(exit_code(error))
        return exit_code(error)
    except SystemExit as ended:  # typer ends so, however it ends
        return int(ended.code or 0)
    return 0


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
