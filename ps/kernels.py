"""Work on long memory in one pass, by compiled kernels (`ps/kernels.c`).

torch and numpy make a new version in several passes: the sum of the contributions, a look whether it is finite, the copy of parameters and
optimizer state, the update. A kernel reads contributions and the old copy, and writes the new one, once. It is used where it exists (there
was a compiler at the installation, and the processor has AVX2) and gives torch's bits, which every rule is tried for before its first use.
"""

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from ps.config import OptimizerConfig
from ps.frame import Bytes
from ps.optimizers import num_slots, update_rule
from ps.recipe import GroupSettings

try:
    from ps import _kernels

    _IS_COMPILED = True
except ImportError:  # there was no compiler, or it is not for this processor
    _IS_COMPILED = False

log = logging.getLogger(__name__)

_STREAMED_BYTES = 1 << 20
"""So long memory is written past the cache: without being read first, and without driving out what will be used sooner."""
_TRIED_ELEMENTS = 192


class OnePassRule(Protocol):
    """Sums, divides and updates float32 memory from the old copy into the new one."""

    def __call__(self, new: Sequence[Bytes], old: Sequence[Bytes], terms: Sequence[Bytes], updates: int, lr: float, divisor: float) -> bool:
        """Whether all sums are finite. `new`, `old`: parameters and every slot; `terms`: added up from left to right; `updates`: applied before."""


def copy(to: Bytes, values: Bytes) -> None:
    """Copies bytes that will not be read soon."""
    if _IS_COMPILED and len(to) >= _STREAMED_BYTES:
        _kernels.copy(to, values)
    else:
        to[:] = values


def one_pass_rule(config: OptimizerConfig, group: int = 0) -> OnePassRule | None:
    """The rule of a parameter group in one pass, to the bits of `update_rule`; None where there is none that does so."""
    rule = _rule(config, config.settings(group))
    if rule is None:
        return None
    if not _is_torchs(rule, config, group):
        log.warning("the compiled kernel of %s does not give torch's bits on this processor: torch's is used, which takes longer", config.name)
        return None
    return rule


def _rule(config: OptimizerConfig, settings: GroupSettings) -> OnePassRule | None:
    if not _IS_COMPILED:
        return None
    if config.name in ("adam", "adamw") and not settings.amsgrad:
        return _adam(settings, decoupled=config.name == "adamw")
    if config.name == "sgd":
        return _sgd(settings)
    return None


def _adam(settings: GroupSettings, *, decoupled: bool) -> OnePassRule:
    def update(new: Sequence[Bytes], old: Sequence[Bytes], terms: Sequence[Bytes], updates: int, lr: float, divisor: float) -> bool:
        stream = len(terms[0]) >= _STREAMED_BYTES
        betas = settings.beta1, settings.beta2
        return _kernels.adam(new, old, terms, divisor, lr, *betas, settings.eps, settings.weight_decay, decoupled, updates, stream)

    return update


def _sgd(settings: GroupSettings) -> OnePassRule:
    ema = settings.momentum_form == "ema"
    dampening = settings.momentum if ema else settings.dampening

    def update(new: Sequence[Bytes], old: Sequence[Bytes], terms: Sequence[Bytes], updates: int, lr: float, divisor: float) -> bool:
        stream = len(terms[0]) >= _STREAMED_BYTES
        is_first = updates == 0 and not ema  # as in `ps.optimizers`
        decay = settings.weight_decay
        return _kernels.sgd(new, old, terms, divisor, lr, settings.momentum, dampening, decay, settings.nesterov, is_first, stream)

    return update


def _is_torchs(rule: OnePassRule, config: OptimizerConfig, group: int) -> bool:
    """Whether both give the same bits for a first and a later update of the same values."""
    generator = torch.Generator().manual_seed(0)
    slots = num_slots(config)
    for updates in (0, 4):
        values = torch.randn((3 + slots, _TRIED_ELEMENTS), generator=generator).square()  # no square root of less than nothing
        terms, old = list(values[:2]), list(values[2 : 3 + slots])
        new = [torch.empty_like(part) for part in old]
        params, *state = (part.clone() for part in old)
        update_rule(config, group)(params, terms[0] + terms[1], state, updates, 0.01, 3.0)
        rule([_bytes(part) for part in new], [_bytes(part) for part in old], [_bytes(part) for part in terms], updates, 0.01, 3.0)
        if any(not np.array_equal(_bytes(a), _bytes(b)) for a, b in zip(new, (params, *state), strict=True)):
            return False
    return True


def _bytes(tensor: torch.Tensor) -> Bytes:
    return tensor.numpy().view(np.uint8)
