"""`pserver certs`: certificates for processes that are started by hand."""

from pathlib import Path
from typing import Annotated

import typer


def certs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder, readable by its owner only.")],
    workers: Annotated[int, typer.Option("--workers", min=1, help="Certificates for so many ranks.")] = 2,
    servers: Annotated[int, typer.Option("--servers", min=1, help="Certificates for so many servers.")] = 2,
) -> None:
    """Make certificates for servers, members, driver and readers that are started by hand; `pserver run` needs none of this."""
    from deploy.keys import write_certificates

    roles = write_certificates(folder, num_workers=workers, num_servers=servers)
    typer.echo(f"{folder}: ca.pem, and ROLE.pem and ROLE.key for {', '.join(map(str, roles))}")
