"""Parameter groups by name: which settings a parameter is updated with. Pure."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from pydantic import ConfigDict

from ps.checks import require
from ps.errors import ConfigError, ModelMismatch
from ps.layout import Rule, TensorSpec


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Parameters that are updated with settings of their own; what is not set is the optimizer's."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    pattern: str | tuple[str, ...]
    """Names of parameters, with the wildcards `*`, `?` and `[...]` of the shell, case-sensitive: "*.bias", or ["*.bias", "norm?.*"]."""
    lr: float | None = None
    """Learning rate, > 0. None: `optimizer.lr`. Schedule and batch rule act on either."""
    lr_factor: float | None = None
    """In place of `lr`: multiplies `optimizer.lr`, > 0."""
    weight_decay: float | None = None
    """As `optimizer.weight_decay`, >= 0. None: the optimizer's."""

    def __post_init__(self) -> None:
        key = f"optimizer.groups ({', '.join(self.patterns)})"
        if not self.patterns or not all(self.patterns):
            raise ValueError('optimizer.groups: a group has no pattern: for example pattern = "*.bias"')
        if self.lr is not None and self.lr_factor is not None:
            raise ValueError(f"{key}: lr and lr_factor exclude each other: remove one")
        require(self.lr is None or self.lr > 0, f"{key}: lr", self.lr, "> 0")
        require(self.lr_factor is None or self.lr_factor > 0, f"{key}: lr_factor", self.lr_factor, "> 0")
        require(self.weight_decay is None or self.weight_decay >= 0, f"{key}: weight_decay", self.weight_decay, ">= 0")

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.pattern,) if isinstance(self.pattern, str) else tuple(self.pattern)


def assign_groups(names: Iterable[str], groups: Sequence[GroupConfig]) -> Mapping[str, int]:
    """Group of every parameter: 1 for the first of `groups` if that matches, ..., 0 if none does.

    Raises ConfigError for a pattern that matches no name.
    """
    known = list(names)
    assigned = dict.fromkeys(known, 0)
    for index, group in enumerate(groups, start=1):
        for pattern in group.patterns:
            matched = [name for name in known if fnmatchcase(name, pattern)]
            if not matched:
                raise ConfigError(f"optimizer.groups: pattern {pattern!r} matches no parameter of the model: {_remedy(pattern, known)}")
            for name in matched:
                assigned[name] = assigned[name] or index
    return assigned


def check_groups(specs: Iterable[TensorSpec], num_groups: int) -> None:
    """Raises ModelMismatch for a tensor of a group that the server's optimizer does not have."""
    for spec in specs:
        if spec.rule is Rule.OPTIMIZER and spec.group > num_groups:
            raise ModelMismatch(
                f"tensor {spec.name} is in parameter group {spec.group}, the server's optimizer has {num_groups}: "
                "give servers and workers the same optimizer.groups"
            )


def _remedy(pattern: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
    if near:
        return f"did you mean {' or '.join(near)}?"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"its parameters are {', '.join(names[:5])}{more}"
