"""Plain processes on this host."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import psutil
import torch

from deploy.interrupts import uninterrupted
from deploy.launch.base import ENVIRONMENT, Ending, LogPath, ProcessKey, Role, last_words, module_path
from ps.errors import ResourcesMissing
from ps.frame import Bytes
from ps.segments import read_segment

MODULES: Mapping[Role, str] = {"server": "ps.server", "worker": "workers.worker"}


class ProcessLauncher:
    """Starts `python -m MODULE` for every process, each in a process group of its own. Not thread-safe."""

    def __init__(self, log_path: LogPath, *, num_gpus: int = 0, modules: Mapping[Role, str] = MODULES) -> None:
        self._log_path = log_path
        self._num_gpus = num_gpus
        self._modules = modules
        self._running: dict[ProcessKey, subprocess.Popen[bytes]] = {}
        self._ended: dict[ProcessKey, Ending] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop(0.0)

    def check(self) -> None:
        there = torch.cuda.device_count() if self._num_gpus else 0
        if there < self._num_gpus:
            raise ResourcesMissing(
                f"GPU: {self._num_gpus} asked, {there} on this host: "
                "lower scaling.num_workers, or set scaling.use_gpu = false and scaling.resources_per_worker without GPU"
            )

    def control_host(self) -> str:
        return "127.0.0.1"

    def bind_host(self, key: ProcessKey) -> str:
        return "127.0.0.1"

    def start(self, key: ProcessKey, settings_json: str) -> None:
        with self._log_path(key).open("ab") as log:
            process = subprocess.Popen(
                self.command(key),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(module_path())},
                process_group=0,
            )
        self._ended.pop(key, None)
        self._running[key] = process
        assert process.stdin is not None
        # The settings hold the run's token: others on this host can read arguments, and children inherit the environment.
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(settings_json.encode())

    def command(self, key: ProcessKey) -> list[str]:
        """What is run for a process; it must keep its pid."""
        return [sys.executable, "-m", self._modules[key.role]]

    def ended(self) -> dict[ProcessKey, Ending]:
        for key, process in list(self._running.items()):
            if process.poll() is not None:
                self._bury(key)
        return dict(self._ended)

    def kill(self, key: ProcessKey) -> None:
        if key in self._running:
            self._bury(key)

    def cpu_s(self, key: ProcessKey) -> float | None:
        with contextlib.suppress(KeyError, psutil.NoSuchProcess):
            return sum(psutil.Process(self._running[key].pid).cpu_times()[:2])
        return None

    def memory_of(self, key: ProcessKey, name: str) -> Bytes | None:
        return read_segment(name)

    def stop(self, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        try:
            for process in self._running.values():
                process.terminate()
            for process in self._running.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:  # a second Ctrl-C ends the wait, not the killing
            with uninterrupted():
                for key in list(self._running):
                    self._bury(key)

    def _bury(self, key: ProcessKey) -> None:
        """Kills what is left of the process and of its children, and reaps it."""
        process = self._running[key]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        del self._running[key]
        self._ended[key] = _ending(code, last_words(self._log_path(key)))


def _ending(code: int, words: str) -> Ending:
    if code < 0:
        return Ending(None, f"was killed by {signal.Signals(-code).name}", words)
    return Ending(code, "ended normally" if code == 0 else f"exited with code {code}", words)
