"""`pserver sweep`: the same training at every point of a grid."""

import contextlib
import json as json_text
import sys
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from deploy.cli.options import ConfigFile, Stack, changes


class ScalingName(StrEnum):
    """What stays the same when workers are added."""

    STRONG = "strong"
    WEAK = "weak"


def sweep(
    config_file: ConfigFile,
    more: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE,...]...", help="More axes of the grid.")] = None,
    grid: Annotated[
        list[str] | None, typer.Option("--grid", metavar="KEY=VALUE,...", help="workers=1,2,4 servers=1,2 bandwidth=100mbit,1gbit ...")
    ] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one key everywhere; may be repeated.")] = None,
    scaling: Annotated[ScalingName | None, typer.Option(help="Keep the global batch (strong) or a worker's batch (weak).")] = None,
    target: Annotated[str | None, typer.Option(metavar="METRIC=VALUE", help="Count steps to it, for example validation_accuracy=0.95.")] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the sweep's folder. Default: made from the config.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all rows as JSON and nothing else on stdout.")] = False,
    show_stack: Stack = False,
) -> None:
    """Train at every point of a grid: a table, JSON, plots on a page. The same command goes on with a sweep that was interrupted."""
    from deploy.measure.target import parse_target
    from deploy.simulation.run import enter_user_namespace
    from deploy.sweep.grid import LINKS, Scaling, parse_axes
    from deploy.sweep.page import write_page
    from deploy.sweep.run import Sweep
    from deploy.sweep.run import sweep as run_sweep
    from deploy.sweep.words import findings, table
    from ps.errors import WorkerFailed

    axes = parse_axes([*(grid or []), *(more or [])])
    if any(axis.name in LINKS for axis in axes):
        enter_user_namespace()
    shown = sys.stderr if json else sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # the user's module may print
        kept: Scaling | None = scaling.value if scaling else None
        reach = parse_target(target) if target else None
        wanted = Sweep(config_file=config_file, sets=changes(sets, {"run.name": name or None}), axes=axes, scaling=kept, target=reach)
        rows = run_sweep(wanted, say=lambda text: print(text, file=shown, flush=True), show=lambda rows: write_page(wanted, rows))
        page = write_page(wanted, rows)
    if json:
        typer.echo(json_text.dumps([asdict(row) for row in rows], indent=2))
    else:
        typer.echo("\n".join([table(axes, rows).plain(), *findings(axes, rows, wanted.target), str(page)]))
    if failed := [row for row in rows if row.error]:
        raise WorkerFailed(f"{len(failed)} of {len(rows)} points failed: the table says why; the same command tries them again")
