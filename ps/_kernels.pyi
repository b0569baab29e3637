from collections.abc import Sequence

from ps.frame import Bytes

def adam(
    new: Sequence[Bytes],
    old: Sequence[Bytes],
    terms: Sequence[Bytes],
    divisor: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    updates: int,
    stream: bool,
    /,
) -> bool: ...
def sgd(
    new: Sequence[Bytes],
    old: Sequence[Bytes],
    terms: Sequence[Bytes],
    divisor: float,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    first: bool,
    stream: bool,
    /,
) -> bool: ...
def copy(to: Bytes, values: Bytes, /) -> None: ...
