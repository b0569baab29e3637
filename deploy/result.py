"""What a run leaves behind: `Result` for the program that started it, `Summary` for the run directory."""

import importlib.metadata
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Result:
    """End of a run, also of one that failed."""

    metrics: dict[str, float]
    """Last values: train_loss, validation_loss, validation_<metric of the task>."""
    history: list[dict[str, Any]]
    """One entry per epoch, as in metrics.jsonl."""
    checkpoint: Path | None
    """The best weights, else the last; None if the run ended before it wrote any."""
    path: Path
    """The run directory."""
    error: Exception | None
    """What ended the run; None if it finished."""
    comm: dict[str, Any]
    """Totals of the ledger, as in summary.json."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Content of summary.json."""

    name: str
    """Name of the run."""
    status: Literal["finished", "failed", "interrupted"]
    error: str | None = None
    """One line; None if the run finished."""
    error_type: str | None = None
    """Class of the error, for example "ProcessDied"."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Last values, as in `Result`."""
    best: dict[str, float] | None = None
    """version, epoch and metrics of the best epoch; None before the first validation."""
    steps: int = 0
    """Versions applied on all shards, as far as anybody has told."""
    epochs: int = 0
    """Epochs ended."""
    stopped_early: bool = False
    """Whether early stopping ended the run before its last step."""
    restored_version: int | None = None
    """The best version, if its weights are the last ones since the run stopped early; else None."""
    failures: list[dict[str, Any]] = field(default_factory=list)
    """Deaths of processes that were made good, or were not: process, reason, step, back_after_s."""
    wall_s: float = 0.0
    """From the start of the first process to the end of the last one, seconds."""
    params_sha256: str | None = None
    """Of the last parameters, each once, in state dict order; None if none were written."""
    buffers_sha256: str | None = None
    """Of the last buffers, likewise."""
    digest_chain: str | None = None
    """Over all parameters and buffers at every line of metrics.jsonl; None before the first."""
    generation: int = 1
    """Drivers that the run has had."""
    resumed_from: int | None = None
    """Step of the checkpoint that this driver began with; None: it began at step 0."""
    checkpoint: int | None = None
    """Step of the newest checkpoint; None if there is none."""
    bit_exact: bool = True
    """False: `train.exact` was, so the same run may end with other bits."""
    diverged: int = 0
    """Frames that came again with other bytes than before, if that did not end the run."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of pserver, python and the libraries that computed."""
    scaling: dict[str, Any] = field(default_factory=dict)
    """The section of the config."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Name of the host where each process was last, by the process ("worker 0")."""
    comm: dict[str, Any] = field(default_factory=dict)
    """Totals of the ledger over the run."""
    verdict: str = ""
    """The bottleneck, with its evidence; "" if no step ended."""
    simulated: str | None = None
    """Hosts and links that were simulated, in words; None: nothing was."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def versions() -> dict[str, str]:
    """Installed versions of what may change bits or bytes; imports none of it."""
    found = {"python": platform.python_version()}
    for name in ("pserver", "torch", "ray", "grpcio", "protobuf", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
