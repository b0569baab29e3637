"""Whether the nodes of a cluster see the run directory: the driver leaves a file there, and every process looks for it."""

import logging
import secrets
from collections.abc import Sequence
from pathlib import Path

from ps.errors import ConfigError
from workers.ray_actor import Place

log = logging.getLogger(__name__)


class SharedStorage:
    """`shared`: all nodes must see `storage`, the folder of run directories; else those that do not are named in a warning. Not thread-safe."""

    def __init__(self, storage: Path, *, shared: bool) -> None:
        self.folder = storage
        self.shared = shared
        self.probe = secrets.token_hex(16)
        """Text of the file: a folder that is merely called the same has another one, or none."""
        self._path: Path | None = None
        self._checked = False

    def write_probe(self, logs: Path) -> Path:
        """Path of the file, in the folder of the run's logs."""
        if self._path is None:
            self._path = logs / ".seen"
            self._path.write_text(self.probe)
        return self._path

    def refuses(self, place: Place | None) -> bool:
        """Whether the process has not begun, which `check` explains when all places are known."""
        return self.shared and not self._checked and place is not None and not place.sees_run

    def check(self, places: Sequence[Place | None]) -> str | None:
        """Once, when all `places` are known: what the user must be told. Raises ConfigError that names the hosts without the folder."""
        if self._checked or not all(places):
            return None
        self._checked = True
        blind = ", ".join(sorted({place.host for place in places if place and not place.sees_run}))
        if not blind:
            return None
        if self.shared:
            raise ConfigError(
                f"run.storage_path: {blind} cannot see {self.folder} of the driver's host: mount it there under the same path, "
                "or set run.shared_storage = false, which leaves the logs of such hosts in Ray's"
            )
        text = f"logs of processes on {blind} stay there, in Ray's logs: run.storage_path is not shared with the driver's host"
        log.warning("%s", text)
        return text

    def close(self) -> None:
        """Removes the file; nothing is checked any more."""
        self._checked = True
        if self._path:
            self._path.unlink(missing_ok=True)
            self._path = None
