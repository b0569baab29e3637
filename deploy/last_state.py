"""The state of a run that ends because a process has died: saved if the servers still have all of it."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TookTooLong

from deploy.checkpoints import CheckpointKeeper
from ps.control import Control
from ps.errors import PserverError, VersionGone
from ps.reader import Reader

log = logging.getLogger(__name__)

_WITHIN_S = 20.0
_TRIES = 5
"""The others may still come to the end of the step in which the process died."""


def save_last_state(keeper: CheckpointKeeper, reader: Reader, control: Control, lock: threading.Condition) -> int | None:
    """The version that is saved; None if that cannot be. Returns within some time, whatever dies meanwhile. `lock`: of `control`."""
    with lock:
        if not keeper.is_saving or any(control.locate(shard) is None for shard in range(control.num_servers)):
            return None
    pool = ThreadPoolExecutor(1, thread_name_prefix="last-state")
    try:
        return pool.submit(_save, keeper, reader, control, lock).result(_WITHIN_S)
    except (PserverError, TookTooLong) as error:
        log.warning("the state of the run is not saved: %s", error)
        return None
    finally:
        pool.shutdown(wait=False)


def _save(keeper: CheckpointKeeper, reader: Reader, control: Control, lock: threading.Condition) -> int | None:
    for _ in range(_TRIES):
        version = reader.version()
        with lock:
            may_report = reader.model[1].own_loop and not control.is_past(version)
        if version < 1 or may_report:
            return None
        try:
            keeper.save_now(version)
        except VersionGone:
            continue
        return version if keeper.wait(_WITHIN_S / 2, version) else None
    return None
