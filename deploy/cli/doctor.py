"""`pserver doctor`: checks the machine, or a run that stands still."""

import json as json_text
from dataclasses import asdict
from typing import Annotated

import typer


def doctor(
    run_name: Annotated[str | None, typer.Argument(metavar="[RUN]", help="With --run: a run directory or name; default: the newest.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
    run: Annotated[bool, typer.Option("--run", help="Say who waits for whom in a run, and show the stacks of its processes.")] = False,
) -> None:
    """Check that this machine can train (exit code 1 if it cannot), or with --run what a run waits for."""
    if run:
        from deploy.hang import look_at, report
        from deploy.rundir import RunDirectory

        typer.echo("\n".join(report(look_at(RunDirectory.open(run_name)))))
        return
    if run_name is not None:
        raise typer.BadParameter(f"to look at a run: pserver doctor --run {run_name}")
    from deploy.doctor import run_checks

    checks = run_checks()
    typer.echo(json_text.dumps([asdict(check) for check in checks], indent=2) if json else "\n".join(check.line() for check in checks))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)
