"""`pserver doctor`: checks the machine."""

import json as json_text
from dataclasses import asdict
from typing import Annotated

import typer


def doctor(json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False) -> None:
    """Check that this machine can train; exit code 1 if it cannot."""
    from deploy.doctor import run_checks

    checks = run_checks()
    typer.echo(json_text.dumps([asdict(check) for check in checks], indent=2) if json else "\n".join(check.line() for check in checks))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)
