"""What Ray reports in texts, as errors and endings of ours. Does not import Ray."""

import re
import socket

from ps.errors import ConfigError, PserverError, Unauthenticated, Unreachable


def require_listener(address: str, timeout_s: float) -> None:
    """Raises ConfigError for what is no address, Unreachable where nobody listens. Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"{address!r} is no address of a Ray cluster: write HOST:PORT, for example 10.0.0.1:6379, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address) from error


def refused(address: str, error: Exception) -> PserverError:
    """Why `ray.init` has failed: Ray gives the reason in a text only, after some tries."""
    if "AuthenticationError" in f"{error!r} {error.__cause__!r}":
        return Unauthenticated(
            f"the Ray cluster at {address} wants another token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's"
        )
    return _no_cluster(address)


def _no_cluster(address: str) -> Unreachable:
    return Unreachable(f"no Ray cluster answers at {address}: start one there (`ray start --head`), or leave out the address for a local one")


def lost_node(message: str) -> bool:
    """Whether an actor's death is that of its node."""
    return "node has died" in message or "node was terminated" in message


def death(message: str, *, init_failed: bool) -> str:
    """Continues the sentence "worker 0 ..." from the text of an actor's death: Ray cannot tell the signal that ended a process,
    only that its connection broke."""
    if init_failed:
        node = re.search(r"ip=([0-9.]+)", message)
        words = message.strip().splitlines()[-1]
        remedy = ": install the same pserver on every node" if "ModuleNotFoundError" in words else ""
        return f"could not start{f' on {node[1]}' if node else ''}: {words}{remedy}"
    if "node running low on memory" in message:
        return "was killed by Ray because its host ran out of memory"
    if lost_node(message):
        return "was lost with its Ray node"
    return "was killed or has crashed"
