"""What a process shows to others of its run: a token on loopback, a certificate elsewhere."""

import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from ps.roles import Role, parse_role


@dataclass(frozen=True, kw_only=True)
class Tls:
    """A process' certificate and what it trusts, as PEM texts."""

    authority: str
    """Certificate of the run's authority: all others are signed by it."""
    certificate: str
    """Names the process' role."""
    key: str = field(repr=False)
    """Private key of the certificate."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What every call of a process carries."""

    run_id: str
    token: str | None = field(default=None, repr=False)
    """None: the certificate says who calls."""
    tls: Tls | None = None
    """None: calls go in the clear."""


def new_secret() -> str:
    """A secret for one run."""
    return secrets.token_hex(32)


def token_of(secret: str, role: Role) -> str:
    """`ROLE:PROOF`, the proof being hex(HMAC-SHA256(secret, ROLE)): who has one role's token cannot make another's."""
    return f"{role}:{hmac.digest(secret.encode(), str(role).encode(), 'sha256').hex()}"


Callers = str | Mapping[Role, str]
"""Whose tokens are known: those of all roles, which follow from the run's secret, or those of some."""


def role_of_token(callers: Callers, token: str) -> Role | None:
    """Whose token it is; None if it is none of the callers'."""
    role = parse_role(token.partition(":")[0])
    if role is None:
        return None
    expected = token_of(callers, role) if isinstance(callers, str) else callers.get(role, "")
    return role if expected and hmac.compare_digest(expected.encode(), token.encode()) else None
