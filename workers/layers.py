"""The next forward begins before the last chunks have landed: every layer waits for its own parameters only.

The first forward is traced: every use of a parameter or buffer is seen together with the modules that were running. What
was only used inside of modules' forwards is from then on waited for before the forward of the innermost of them, and of
the module that owns it; so `out_proj` of MultiheadAttention, whose own forward is never called, is waited for by the
attention. What the trace does not prove is waited for at the start. A parameter that has not been installed is NaN: a use
that the trace has not seen shows in the loss instead of computing with an old version. So is a floating-point buffer;
others, which cannot be NaN, are waited for at the start.
"""

import logging
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.overrides import TorchFunctionMode

from ps.frame import Bytes
from ps.layout import Rule
from workers.binding import BoundModel
from workers.spans import Spans

log = logging.getLogger(__name__)


class Landing(Protocol):
    """What has landed of the next version."""

    def missing(self) -> Sequence[int]:
        """Tensors of which something is missing."""

    def wait(self, tensors: Sequence[int]) -> None:
        """Returns when all of these tensors has landed."""

    def prioritise(self, order: dict[int, int]) -> None:
        """The order in which forward uses the tensors."""

    def share(self) -> tuple[Bytes, Bytes] | None:
        """Where even and odd versions can be read from now on without a copy; None if they cannot."""


class Layers:
    """Installs version after version into a bound model. One thread uses it."""

    def __init__(self, bound: BoundModel, landing: Landing, spans: Spans, *, layerwise: bool, in_place: bool) -> None:
        """`layerwise`: False waits for everything at the start of every forward, as for models whose parameters are copies.

        `in_place`: parameters may lie in the server's memory, where a write kills the process; not if the first step writes to one.
        """
        self._bound = bound
        self._landing = landing
        self._spans = spans
        self._layerwise = layerwise and not bound.copies
        self._in_place = in_place and not bound.copies
        self._pending: set[int] = set()
        """Tensors whose present version is not installed."""
        self._version = 0
        self._withheld: list[int] = []
        """What was NaN when the last forward started."""
        self._trace: _Trace | None = None
        """Of the first forward."""
        self._at_start: list[int] = []
        """What is waited for before the first layer."""
        self._has_computed = False

    @property
    def is_layerwise(self) -> bool:
        """Whether a forward may start before everything has landed."""
        return self._trace is not None

    def next(self, version: int) -> None:
        """From now on the model is to compute with `version`, of which nothing is installed."""
        self._version = version
        self._pending = set(self._bound.versioned)
        self._withheld = []

    def start(self) -> None:
        """Before a forward: installs what has landed and waits for what no layer waits for."""
        with self._spans.span("install"):
            missing = self._pending.intersection(self._landing.missing())
            self._install([i for i in self._pending if i not in missing])
            self._need(self._at_start)
            self._withheld = sorted(self._pending)
            self._bound.withhold(self._withheld)

    def finish(self) -> None:
        """Everything has landed: installs what is left."""
        if self._in_place and self._has_computed:
            if not self._bound.is_written and (copies := self._landing.share()):
                self._bound.read_from(copies)
                log.info(
                    "the model computes in its server's memory: a parameter that is written to from here on ends this process by SIGSEGV; "
                    "if it must be, set comm.shared_memory = false"
                )
            self._in_place = False
        self._install(sorted(self._pending))

    def unproven(self, forward: Callable[[], object]) -> str | None:
        """After a forward whose loss is not finite: a tensor that was NaN when it started, and that it uses where the first one did not.

        Runs `forward` once more, to see its uses; buffers stay as they are. None: overlap is not to blame.
        """
        if not self._trace or not self._withheld:
            return None
        again = _Trace(self._bound)
        with _kept(tuple(self._bound.model.buffers())), again.running():
            forward()
        return next((self._bound.layout.specs[i].name for i in self._withheld if again.users(i) - self._trace.users(i)), None)

    def _need(self, tensors: Sequence[int]) -> None:
        needed = [i for i in tensors if i in self._pending]
        if needed:
            self._landing.wait(needed)
            self._install(needed)

    def _install(self, tensors: Sequence[int]) -> None:
        with self._spans.span("install"):
            self._bound.install(self._version, tensors)
        self._pending.difference_update(tensors)

    # -- the trace -------------------------------------------------------------------------------------------

    @contextmanager
    def traced(self) -> Iterator[None]:
        """Around the loss of a step; only the first is looked at."""
        self._has_computed = True
        if not self._layerwise or self._trace:
            yield
            return
        trace = _Trace(self._bound)
        with trace.running():
            yield
        self._trace = trace
        self._at_start = sorted(set(self._bound.versioned) - self._proven(trace))
        self._wait_in(trace)
        start = dict.fromkeys(self._at_start, 0)
        self._landing.prioritise(start | {i: 1 + place for i, place in trace.order().items() if i not in start})

    def _proven(self, trace: "_Trace") -> set[int]:
        """What layers wait for: it was only used inside of modules, and is NaN if another use comes first."""
        specs = self._bound.layout.specs
        return {i for i in self._bound.versioned if specs[i].rule is not Rule.EQUAL and (users := trace.users(i)) and None not in users}

    def _wait_in(self, trace: "_Trace") -> None:
        proven = self._proven(trace)
        index = {id(self._bound.tensor(i)): i for i in self._bound.versioned}
        for module in self._bound.model.modules():
            own = {index.get(id(tensor)) for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))}
            needed = sorted(i for i in proven if i in own or module in trace.users(i))
            if needed:
                module.register_forward_pre_hook(_hook(self._need, needed))


def _hook(need: Callable[[Sequence[int]], None], tensors: Sequence[int]) -> Callable[[nn.Module, Any], None]:
    """A plain function, so that a deep copy of the model does not copy what is behind it."""

    def before(module: nn.Module, inputs: Any) -> None:
        need(tensors)

    return before


@contextmanager
def _kept(buffers: tuple[torch.Tensor, ...]) -> Iterator[None]:
    """Buffers are afterwards as before, also for a backward that is still to come."""
    values = [buffer.clone() for buffer in buffers]
    with _unsafe_preserve_version_counter(buffers):
        yield
        for buffer, value in zip(buffers, values, strict=True):
            buffer.detach().copy_(value)


class _Trace(TorchFunctionMode):
    """Sees every call of torch, and which modules are running then."""

    def __init__(self, bound: BoundModel) -> None:
        super().__init__()
        self._model = bound.model
        self._index = {id(bound.tensor(i)): i for i in bound.versioned}
        self._running: list[nn.Module] = []
        self._users: dict[int, set[nn.Module | None]] = {}
        """By tensor, in the order of first use: the innermost running modules of all uses."""

    @contextmanager
    def running(self) -> Iterator[None]:
        handles = []
        for module in self._model.modules():
            handles.append(module.register_forward_pre_hook(lambda module, inputs: self._running.append(module)))
            handles.append(module.register_forward_hook(lambda module, inputs, output: self._leave(module), always_call=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self, module: nn.Module) -> None:
        while self._running and self._running.pop() is not module:
            pass

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        for tensor in _tensors(arguments, keywords):
            if (found := self._index.get(id(tensor))) is not None:
                self._users.setdefault(found, set()).add(self._running[-1] if self._running else None)
        return function(*arguments, **(keywords or {}))

    def users(self, tensor: int) -> Set[nn.Module | None]:
        """The innermost running modules of all uses; None: no module was running."""
        return self._users.get(tensor, frozenset())

    def order(self) -> dict[int, int]:
        """Place of every used tensor in the order of first use."""
        return {i: place for place, i in enumerate(self._users)}


def _tensors(*values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(*value)
        elif isinstance(value, dict):
            yield from _tensors(*value.values())
