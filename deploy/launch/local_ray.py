"""A Ray of one's own that only this host may reach, with a token, as Ray has it by default."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants


def start_local_ray(num_cpus: int) -> Any:
    """Like `ray.init("local")`, with all its listeners on loopback; `num_cpus` are logical. Returns Ray's context.

    Ray turns `_node_ip_address="127.0.0.1"` into the host's outer address and then listens on every interface. It keeps to loopback
    where clusters are switched off, which it does by itself on Windows and macOS only: there is no public switch per call.
    """
    clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        return ray.init("local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, configure_logging=False)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters


def close_token() -> None:
    """Ray leaves the token that it makes for itself readable for every user of the host."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with contextlib.suppress(OSError):  # there is none, or it is another user's
        path.chmod(0o600)


@contextlib.contextmanager
def quiet_init() -> Iterator[None]:
    """Keeps Ray's advice off the console, and the program's own handling of SIGTERM."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        logger.setLevel(level)
        if in_main:
            signal.signal(signal.SIGTERM, handler)
