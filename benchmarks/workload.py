"""What every contender of a benchmark trains, and how its members take part: they wait at a gate and step when told to.

Torch is imported where a model is made: not all members have one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

VARIABLE = "PSERVER_BENCHMARK"
"""Environment variable that brings the workload to every process of a contender."""
ENDS = 1024
"""Inputs and outputs of the perceptron."""
LEARNING_RATE = 1e-6
"""So small that the model stays as it is: with 1e-3 it has learnt its one batch by heart after ten steps, gradients and Adam's state become denormal
numbers, and processors need twice the time for everything."""
Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A perceptron ENDS-width-width-ENDS, or tensors without meaning, and who trains it where."""

    contender: str
    gate: str
    """Socket of the harness."""
    workers: int = 2
    servers: int = 2
    width: int = 4096
    batch: int = 32
    compute: bool = True
    """False: the members exchange the same gradients again and again (only pserver)."""
    tensors: int = 0
    """Above 0: so many equal tensors of `model_bytes` together in place of the perceptron."""
    model_bytes: int = 0
    layer_s: float = 0.0
    """Above 0: each of the tensors is a layer whose forward pass takes so long and whose backward twice, without using a processor."""
    comm: dict[str, Any] = field(default_factory=dict)
    """Fields of CommConfig that are not the default's (only pserver)."""
    stub: dict[str, Any] = field(default_factory=dict)
    """Where the only server is, and what opens it: data, control, run_id, secret or every rank's tls (only stubs)."""
    places: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Virtual hosts by name: pid of the holder, address. Empty: this host alone."""

    @classmethod
    def here(cls) -> Workload:
        """The workload of this process."""
        return cls(**json.loads(os.environ[VARIABLE]))

    def environment(self) -> dict[str, str]:
        """What the contender's processes need to know."""
        return {VARIABLE: json.dumps(asdict(self)), "OMP_NUM_THREADS": "1"}

    def model(self) -> nn.Module:
        """The same on every member."""
        import torch
        from torch import nn

        from benchmarks.idle import Idle

        torch.manual_seed(0)
        if self.layer_s:
            return nn.Sequential(*(Idle(size, self.layer_s) for size in self.sizes()))
        if self.tensors:
            return nn.ParameterList(torch.randn(size) for size in self.sizes())
        width = self.width
        return nn.Sequential(nn.Linear(ENDS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, ENDS))

    def sizes(self) -> list[int]:
        """Elements of every tensor in place of the perceptron."""
        each, rest = divmod(self.model_bytes // 4, self.tensors)
        return [each + (i < rest) for i in range(self.tensors)]

    def loss(self, model: nn.Module, rank: int) -> Tensor:
        """On the rank's batch, which is the same in every step: making it is no part of what is measured."""
        from torch.nn import functional

        inputs, classes = self.batch_of(rank)
        return functional.cross_entropy(model(inputs), classes)

    def batch_of(self, rank: int) -> tuple[Tensor, Tensor]:
        """Inputs and classes of a rank."""
        import torch

        if rank not in _batches:
            generator = torch.Generator().manual_seed(rank)
            inputs = torch.randn(self.batch, ENDS, generator=generator)
            _batches[rank] = inputs, torch.randint(ENDS, (self.batch,), generator=generator)
        return _batches[rank]


_batches: dict[int, tuple[Tensor, Tensor]] = {}


def width_of(model_bytes: float) -> int:
    """Width at which the perceptron has about so many bytes: w**2 + 2*ENDS*w = bytes / 4; rounded to a multiple of 64."""
    return max(64, round((math.sqrt(ENDS**2 + model_bytes / 4) - ENDS) / 64) * 64)


def model_bytes_of(width: int) -> int:
    """Bytes of all parameters."""
    return 4 * (width * width + 2 * ENDS * width + 2 * width + ENDS)


def parse_size(text: str) -> int:
    """Bytes of "400MB" or "8MiB"."""
    match = re.fullmatch(r"([\d.]+)([KMG])(i?)B", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: for example 400MB or 8MiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** ("KMG".index(match[2]) + 1))


def take_part(workload: Workload, member: int, step_of: Callable[[str], Step]) -> None:
    """Steps whenever the harness says so, in the variant it names, and answers with the seconds of every step; until it hangs up."""
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rw") as lines:
        connection.connect(workload.gate)
        lines.write(f"{workload.contender} {member}\n")
        lines.flush()
        for line in lines:
            order = json.loads(line)
            step = step_of(order["variant"])
            for _ in range(order["warmup"]):
                step()
            seconds = []
            for _ in range(order["steps"]):
                started = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - started)
            lines.write(json.dumps(seconds) + "\n")
            lines.flush()
