"""A torch model bound to flat host memory: landed versions are what it computes with, gradients are gathered into one buffer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from ps.contribution import KnownDigests
from ps.errors import ConfigError
from ps.frame import Bytes, chunk_digests, tensor_digests
from ps.groups import GroupConfig, assign_groups
from ps.kernels import copy
from ps.layout import DTYPES, Layout, Rule, Run, TensorSpec
from ps.stages.memory import untouched
from ps.weights import SUMS
from workers.device import Mover

SUM_NAMES = ("loss", "weight", "samples", "steps")
"""What the versioned epoch sums hold, in order: weighted loss, weights, samples, and 1 per step."""
DIGESTED_BYTES = 1 << 20
"""Digested and copied in one go: a multiple of every type's chunk, and short enough to be in the cache still when it is copied."""


def specs_of(model: nn.Module, groups: Sequence[GroupConfig] = (), stages: Mapping[str, int] | None = None) -> tuple[TensorSpec, ...]:
    """The model's distinct parameters and persistent buffers in state-dict order, then the epoch sums.

    `stages`: of each by its name, if the model is split. Raises ConfigError for a tensor of a type that is not served, and for a group whose
    pattern matches no parameter.
    """
    params = dict(model.named_parameters())
    group_of = assign_groups(params, groups)
    buffers = {name: b for name, b in model.named_buffers() if name in model.state_dict()}
    specs = []
    for name in model.state_dict():
        if name in params:
            rule = Rule.OPTIMIZER if params[name].requires_grad else Rule.FROZEN
            specs.append(_spec(name, params[name], rule, group_of[name] if rule is Rule.OPTIMIZER else 0))
        elif name in buffers:
            rule = Rule.MEAN if buffers[name].is_floating_point() else Rule.EQUAL
            specs.append(_spec(name, buffers[name], rule))
    specs.append(TensorSpec(name=SUMS, shape=(len(SUM_NAMES),), dtype="float64", rule=Rule.SUM))
    return tuple(specs) if stages is None else tuple(replace(spec, stage=stages[spec.name]) for spec in specs)


def _spec(name: str, tensor: torch.Tensor, rule: Rule, group: int = 0) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ConfigError(f"tensor {name} of the model is {dtype}: only {', '.join(DTYPES)} can be served")
    return TensorSpec(name=name, shape=tuple(tensor.shape), dtype=dtype, rule=rule, group=group)


def _copy_digested(source: torch.Tensor, view: torch.Tensor) -> list[int]:
    """Copies contiguous tensors on the CPU; xxh3-64 of every chunk."""
    to, values, dtype = _bytes(view), _bytes(source), str(source.dtype).removeprefix("torch.")
    digests: list[int] = []
    for at in range(0, len(values), DIGESTED_BYTES):
        part = slice(at, at + DIGESTED_BYTES)
        digests += tensor_digests(values[part], dtype)
        copy(to[part], values[part])
    return digests


def _bytes(tensor: torch.Tensor) -> Bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def digests_of(tensor: torch.Tensor) -> list[int]:
    """xxh3-64 of every chunk of a tensor on the CPU."""
    return tensor_digests(_bytes(tensor), str(tensor.dtype).removeprefix("torch."))


class BoundModel:
    """`model` computes with `landing[v % 2]` once version v is installed; gradients go to `gradients`.

    On the CPU parameters are views of what landed. On another device they stay there, and copies travel; the three pieces
    of memory are pinned then.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        *,
        copies: bool | None = None,
        gradients: Bytes | None = None,
        stage: int | None = None,
        digests: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """`copies`: whether parameters keep their own memory. None: unless they are on the CPU.

        `gradients`: memory of a flat layout, zeroed, that servers read too; its own (pinned) if there is none. `stage`: whose tensors the model
        computes with: those of others are given up, and their places take no memory. None: it computes with all. `digests`: of the chunks of
        others' tensors that have no values, by name.
        """
        self.model = model
        self.layout = layout
        params = dict(model.named_parameters())
        buffers = dict(model.named_buffers())
        self._tensors: list[torch.Tensor | None] = [params.get(s.name, buffers.get(s.name)) for s in layout.specs]
        self.device = next((tensor.device for tensor in self._tensors if tensor is not None), torch.device("cpu"))
        """Where the model is: batches must be there too."""
        self.mover = mover = Mover(self.device)
        self.copies = self.device.type != "cpu" if copies is None else copies
        """Whether parameters keep their own memory."""
        self._holds_frozen = False
        memory = mover.memory if stage is None else untouched
        self.landing: tuple[Bytes, Bytes] = (memory(layout.flat_bytes), memory(layout.flat_bytes))
        self.gradients: Bytes = memory(layout.flat_bytes) if gradients is None else gradients
        """Contributions of the step: mean gradients, buffers, sums."""
        self.digests = KnownDigests(layout)
        """Of `gradients`."""
        self.digests_gradients = False
        """Whether contributions are pushed as they lie in memory, with digests, which cost less while what is copied is in the cache."""
        self._views = [self._views_of(memory) for memory in (*self.landing, self.gradients)]
        self._present = [False] * len(layout.specs)
        self._collected = [False] * len(layout.specs)
        self._marks = [0] * len(layout.specs)
        self._sums = next(i for i, spec in enumerate(layout.specs) if spec.name == SUMS)
        self._has_sums = stage in (None, layout.specs[self._sums].stage)
        self._own = [(0, layout.flat_bytes)] if stage is None else layout.spans_of_stage(stage)
        """Where the landing memory is written, in bytes."""
        self._others: dict[int, Sequence[int]] = {}
        """Digests of the chunks of other stages' tensors, as they were built."""
        for i, (tensor, view) in enumerate(zip(self._tensors, self._views[0], strict=True)):
            if tensor is not None:
                if stage in (None, layout.specs[i].stage):
                    view.copy_(tensor.detach())
                else:
                    known = (digests or {}).get(layout.specs[i].name)
                    self._others[i] = digests_of(tensor.detach()) if known is None else known
                    tensor.data = torch.empty(0, dtype=tensor.dtype)
                    self._tensors[i] = None
        self.copy_across(0)

    def _views_of(self, memory: Bytes) -> list[torch.Tensor]:
        starts = self.layout.tensor_flat.tolist()
        return [
            torch.from_numpy(memory[a : a + spec.num_bytes].view(spec.dtype)).view(spec.shape)
            for spec, a in zip(self.layout.specs, starts, strict=True)
        ]

    def initial_digests(self) -> list[int]:
        """xxh3-64 of every chunk of version 0 as it was built, in layout order."""
        digests = [0] * len(self.layout)
        for shard in self.layout.shards:
            if len(shard):
                found = chunk_digests(self.landing[0], shard, Run(0, len(shard)), flat=True)
                for chunk, digest in zip(shard.chunks.tolist(), found, strict=True):
                    digests[chunk] = digest
        for index, theirs in self._others.items():
            first = self.layout.first_chunk(index)
            digests[first : first + len(theirs)] = theirs
        return digests

    def copy_across(self, version: int) -> None:
        """Copies what has landed as `version` to the other parity too: frozen tensors land once."""
        for start, stop in self._own:
            self.landing[(version + 1) % 2][start:stop] = self.landing[version % 2][start:stop]

    @property
    def versioned(self) -> list[int]:
        """Tensors of the model that every version brings anew."""
        return [i for i, spec in enumerate(self.layout.specs) if self._tensors[i] is not None and spec.rule is not Rule.FROZEN]

    def tensor(self, index: int) -> torch.Tensor:
        """Parameter or buffer of the model."""
        found = self._tensors[index]
        assert found is not None, "sums are no tensor of the model"
        return found

    def install(self, version: int, tensors: Sequence[int] | None = None) -> None:
        """Makes the model compute with `version` of `tensors` (None: of all). Parameters become views, or copies; buffers are copied,
        since forward changes them.

        `mover.wait()` tells when the copies have ended; what the device computes from now on waits for them by itself.
        """
        with self.mover.copies():
            for i in range(len(self.layout.specs)) if tensors is None else tensors:
                spec, tensor, view = self.layout.specs[i], self._tensors[i], self._views[version % 2][i]
                if tensor is None or (spec.rule is Rule.FROZEN and self._holds_frozen):
                    continue
                if self.copies or spec.rule in (Rule.MEAN, Rule.EQUAL):
                    tensor.detach().copy_(view, non_blocking=True)
                else:
                    tensor.data = view
                self._marks[i] = tensor._version
        self._holds_frozen = self.copies

    @property
    def is_written(self) -> bool:
        """Whether anybody has written to a parameter since it was installed."""
        params = [i for i in self.versioned if self.layout.specs[i].rule is Rule.OPTIMIZER]
        return any(self.tensor(i)._version != self._marks[i] for i in params)

    def read_from(self, copies: tuple[Bytes, Bytes]) -> None:
        """Versions are installed from these flat layouts in place of `landing`, frozen tensors excepted. They are not written to."""
        for views, memory in zip(self._views, copies, strict=False):
            for i, view in enumerate(self._views_of(memory)):
                if self.layout.specs[i].rule is not Rule.FROZEN:
                    views[i] = view

    def withhold(self, tensors: Sequence[int]) -> None:
        """Parameters that are views, and floating-point buffers, become NaN until they are installed: what computes with them shows it."""
        for i in tensors:
            tensor, rule = self.tensor(i), self.layout.specs[i].rule
            if rule is Rule.OPTIMIZER:
                tensor.data = torch.full((), math.nan, dtype=tensor.dtype).expand(tensor.shape)
            elif rule is Rule.MEAN:
                tensor.detach().fill_(math.nan)

    @torch.no_grad()
    def collect(self, index: int, divisor: float | None) -> None:
        """Copies tensor i's contribution into `gradients`, divided by `divisor`; `mover.wait()` tells when it is there."""
        with self.mover.copies():
            self._collect(index, divisor)

    def _collect(self, index: int, divisor: float | None) -> None:
        spec, tensor, view = self.layout.specs[index], self._tensors[index], self._views[2][index]
        is_parameter = tensor is not None and spec.rule is Rule.OPTIMIZER
        source = tensor.grad if tensor is not None and is_parameter else tensor
        self._collected[index] = True
        self._present[index] = source is not None
        self.digests.forget(index)
        if source is None or (source is view and divisor is None):
            return
        if divisor is None or not is_parameter:
            if self.digests_gradients and not self.copies and source.is_contiguous():
                self.digests.keep(index, _copy_digested(source.detach(), view))
            else:
                self._copy(source, view)
        elif self.copies:
            view.copy_(source / divisor, non_blocking=True)
        else:
            torch.div(source, divisor, out=view)

    def keep_gradient(self, index: int) -> None:
        """Tensor i's gradient lies in `gradients` from now on, where later backward passes of the step add to it."""
        tensor, view = self.tensor(index), self._views[2][index]
        if tensor.grad is not None and tensor.grad is not view:
            self._copy(tensor.grad, view)
            tensor.grad = view

    def _copy(self, source: torch.Tensor, view: torch.Tensor) -> None:
        if self.copies or not source.is_contiguous():
            view.copy_(source, non_blocking=True)
        else:
            copy(_bytes(view), _bytes(source.detach()))

    @torch.no_grad()
    def gather(self, total_weight: float, *, divide: bool, sums: Sequence[float] | None) -> list[int]:
        """Collects what is left of the step's contribution, and names it; gradients are divided by `total_weight` if they were added up
        over micro-batches.

        Without `sums` the rank had no samples: everything is absent. Returns when all copies have ended, those of `install` too:
        `gradients` may be read, and the memory of the installed version be landed in.
        """
        rest = [i for i, spec in enumerate(self.layout.specs) if spec.rule is not Rule.FROZEN and not self._collected[i]]
        with self.mover.copies():
            for i in rest:
                if sums is None:
                    self._present[i] = False
                elif i == self._sums:
                    self.collect_sums(sums)
                else:
                    self._collect(i, total_weight if divide else None)
        self._collected = [False] * len(self.layout.specs)
        self.mover.wait()
        return rest

    def collect_sums(self, sums: Sequence[float]) -> int:
        """Writes the step's SUM_NAMES into `gradients`, unless they are another stage's; returns the tensor."""
        if self._has_sums:
            self._views[2][self._sums].copy_(torch.tensor(sums, dtype=torch.float64))
        self._collected[self._sums] = self._present[self._sums] = True
        return self._sums

    def is_present(self, tensor: int) -> bool:
        """Whether tensor i has a contribution in `gradients`."""
        return self._present[tensor]

    def epoch_sums(self, version: int) -> dict[str, float]:
        """The versioned sums of the epoch so far."""
        return dict(zip(SUM_NAMES, self._views[version % 2][self._sums].tolist(), strict=True))
