"""What proves who is who in a run: made by its driver, handed to its processes, gone with it."""

from pathlib import Path

from ps.certificates import Authority
from ps.credentials import Credentials, Tls, new_secret, token_of
from ps.key_files import write_tls
from ps.roles import DRIVER, READER, Role


class RunKeys:
    """The secret of a run or, if it is encrypted, its authority."""

    def __init__(self, run_id: str, *, encrypted: bool) -> None:
        self.run_id = run_id
        self.secret = None if encrypted else new_secret()
        self._authority = Authority() if encrypted else None

    def tls(self, role: Role) -> Tls | None:
        """A new certificate; None if the run talks in the clear."""
        return self._authority.issue(role) if self._authority else None

    def credentials(self, role: Role) -> Credentials:
        """What a process of that role shows to the others."""
        token = None if self.secret is None else token_of(self.secret, role)
        return Credentials(run_id=self.run_id, token=token, tls=self.tls(role))


def write_certificates(folder: Path, *, num_workers: int, num_servers: int) -> list[Role]:
    """Certificates for every role of a run, of a new authority whose key is not kept. Raises ConfigError if the folder exists."""
    authority = Authority()
    servers, members = [Role("server", shard) for shard in range(num_servers)], [Role("member", rank) for rank in range(num_workers)]
    roles = [DRIVER, READER, *servers, *members]
    write_tls(folder, ((role, authority.issue(role)) for role in roles))
    return roles
