"""Certificates in files, for processes that are started by hand: `ca.pem`, and `ROLE.pem` and `ROLE.key` for every role."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from ps.certificates import check_tls
from ps.credentials import Tls
from ps.errors import ConfigError
from ps.roles import Role

_AUTHORITY = "ca.pem"


def write_tls(folder: Path, roles: Iterable[tuple[Role, Tls]]) -> None:
    """A new folder; only its owner can read what is in it. Raises ConfigError if it exists."""
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError as error:
        raise ConfigError(f"{folder} exists: certificates of two authorities do not fit together, choose another folder") from error
    for role, tls in roles:
        (folder / _AUTHORITY).write_text(tls.authority)
        _certificate(folder, role).write_text(tls.certificate)
        write_private(_key(folder, role), tls.key)


def read_tls(folder: Path, role: Role) -> Tls:
    """Raises ConfigError for a key that others can read and for what is no certificate or no key of the role, OSError for what is missing."""
    try:
        authority, certificate = (folder / _AUTHORITY).read_text(), _certificate(folder, role).read_text()
        made = Tls(authority=authority, certificate=certificate, key=read_private(_key(folder, role)))
        check_tls(made, role)
    except ValueError as error:
        raise ConfigError(f"{folder} has no certificate of {role} that can be used ({error}): make the folder anew with pserver certs") from error
    return made


def settings_of_server(file: Path, certificates: Path | None) -> str:
    """The settings in `file`, with the shard's certificate of the folder. Raises ConfigError, OSError, ValueError."""
    if certificates is None:
        return read_private(file)
    try:
        fields = json.loads(file.read_text())
    except RecursionError as error:
        raise ConfigError(f"{file} is nested too deeply: it is no settings") from error
    shard = fields.get("shard") if isinstance(fields, dict) else None
    if not isinstance(shard, int):
        raise ConfigError(f"{file} names no shard, whose certificate could be looked for in {certificates}")
    return json.dumps({**fields, "tls": asdict(read_tls(certificates, Role("server", shard)))})


def write_private(path: Path, text: str) -> None:
    """A new file that only its owner can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def read_private(path: Path) -> str:
    """Raises ConfigError if others can read the file too."""
    with path.open() as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise ConfigError(f"{path} holds a secret, and others on this host can read it: chmod 600 {path}")
        return file.read()


def _certificate(folder: Path, role: Role) -> Path:
    return folder / f"{role}.pem"


def _key(folder: Path, role: Role) -> Path:
    return folder / f"{role}.key"
