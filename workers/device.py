"""The device of a worker: which one it is, the same bits from every run on it, and copies between it and host memory."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ps.errors import ConfigError, ResourcesMissing
from ps.frame import Bytes
from ps.layout import ALIGN_BYTES

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_VALUES = (":4096:8", ":16:8")
_NOT_DETERMINISTIC = re.compile(r"([^\n:]+) does not have a deterministic implementation")


def device_of_rank(rank: int, gpus: float, num_visible: int) -> torch.device:
    """The first device of the rank's own if it has whole ones, else the one it shares. Raises ResourcesMissing.

    `gpus`: what each worker was promised, a part of one below 1. `num_visible`: what torch sees; in a process that Ray has
    given GPUs these are its own, else all of the host, where the ranks take turns.
    """
    if gpus == 0:
        return torch.device("cpu")
    if num_visible == 0:
        raise ResourcesMissing(
            f"GPU: torch {torch.__version__} sees none on {socket.gethostname()}: install a CUDA build of torch and its driver there, "
            "or set scaling.use_gpu = false"
        )
    return torch.device("cuda", rank * max(1, int(gpus)) % num_visible)


def prepare_device(rank: int, gpus: float, *, exact: bool) -> torch.device:
    """The rank's device; a CUDA device becomes the current one, and deterministic if `exact`. Before the process first uses CUDA.

    Raises ResourcesMissing, ConfigError.
    """
    device = device_of_rank(rank, gpus, torch.cuda.device_count() if gpus else 0)
    if device.type == "cuda":
        if exact:
            make_deterministic()
        torch.cuda.set_device(device)
    return device


def make_deterministic() -> None:
    """For this whole process: operations give the same bits every time, or raise (see `operations_named`).

    cuBLAS is told by an environment variable, which it reads when it is first used. Raises ConfigError if that has another value.
    """
    value = os.environ.setdefault(_CUBLAS, _CUBLAS_VALUES[0])
    if value not in _CUBLAS_VALUES:
        raise ConfigError(f"{_CUBLAS} = {value!r} lets cuBLAS give other bits in every run: unset it, or set it to {_CUBLAS_VALUES[0]}")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


@contextmanager
def operations_named() -> Iterator[None]:
    """Turns torch's error about an operation without a deterministic implementation into a ConfigError of one line."""
    try:
        yield
    except RuntimeError as error:
        found = _NOT_DETERMINISTIC.search(str(error))
        if found is None:
            raise
        raise ConfigError(
            f"{found[1].strip()} has no deterministic implementation on the worker's device, where it would give other bits in every run: "
            "use another operation in the model or the loss, or train without GPUs (scaling.use_gpu = false)"
        ) from error


def check_device(model: nn.Module, device: torch.device) -> None:
    """Raises ConfigError that names the first parameter or buffer which is not on `device`."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and tensor.device != device:
            raise ConfigError(f"{name} of the model is on {tensor.device}, but the worker trains on {device}: model.to(ctx.device) moves it")


class Mover:
    """Copies between tensors of a device and host memory, on a stream of their own. One thread uses it.

    On the CPU torch's own stand-ins for streams do nothing, and a copy has ended when it returns.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._torch: Any = torch.get_device_module(device)  # torch.cuda or torch.cpu
        self._side = self._torch.Stream(device) if self._is_cuda else self._torch.Stream()
        self._copied = self._event()

    def memory(self, size: int) -> Bytes:
        """Zeros in host memory, aligned; pinned if a device copies from there by itself."""
        size += ALIGN_BYTES
        memory: Bytes = torch.zeros(size, dtype=torch.uint8, pin_memory=True).numpy() if self._is_cuda else np.zeros(size, np.uint8)
        start = -memory.ctypes.data % ALIGN_BYTES
        return memory[start : start + size - ALIGN_BYTES]

    @contextmanager
    def copies(self) -> Iterator[None]:
        """On the device, what is copied inside comes after all that was computed before, and before all that is computed later.

        The host must `wait` before it reads what was copied to it, or overwrites what was copied from it.
        """
        compute = self._torch.current_stream(self._device)
        self._side.wait_stream(compute)
        with self._torch.stream(self._side):
            yield
        compute.wait_stream(self._side)
        self._copied.record(self._side)

    def wait(self) -> None:
        """Returns when all copies have ended."""
        self._copied.synchronize()

    def mark(self) -> Any:
        """An event whose `query` tells whether the copies so far have ended."""
        event = self._event()
        event.record(self._side)
        return event

    def wait_for_compute(self) -> None:
        """Returns when all that was computed so far has ended."""
        computed = self._event()
        computed.record(self._torch.current_stream(self._device))
        computed.synchronize()

    def _event(self) -> Any:
        # one that sleeps while it waits: the cores are for the threads that receive
        return self._torch.Event(blocking=True) if self._is_cuda else self._torch.Event()
