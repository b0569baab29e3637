"""Servers and workers that come with a failpoint, for launchers that start them by the name of a function."""

import json
import shutil
import tempfile
from pathlib import Path

from ps.server import serve as real_serve
from tests.deploy.faults import Faults, arm
from workers.worker import work as real_work


def plan(run: str, faults: Faults) -> None:
    """What the processes are armed with."""
    _folder(run).mkdir()
    for name, its in faults.arm(_folder(run)).items():
        (_folder(run) / name).write_text(json.dumps(its))


def forget(run: str, faults: Faults) -> None:
    """Removes the plan, all of which has happened."""
    faults.check_fired()
    shutil.rmtree(_folder(run))


def serve(settings_json: str) -> int:
    settings = json.loads(settings_json)
    _arm(settings["run_id"], f"server-{settings['shard']}")
    return real_serve(settings_json)


def work(settings_json: str) -> int:
    settings = json.loads(settings_json)
    _arm(settings["run_id"], f"worker-{settings['rank']}")
    return real_work(settings_json)


def _arm(run_id: str, name: str) -> None:
    file = _folder(run_id.rpartition("-")[0]) / name
    left = json.loads(file.read_text()) if file.exists() else []
    if left:
        arm(tuple(left[0]))
        file.write_text(json.dumps(left[1:]))


def _folder(run: str) -> Path:
    return Path(tempfile.gettempdir()) / f"pserver-faults-{run}"
