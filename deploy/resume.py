"""Where a run begins: new, or where a former driver has left it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.config import Config, to_dict
from deploy.result import versions
from deploy.rundir import RunDirectory
from ps.checkpoints.load import Checkpoint
from ps.errors import CheckpointDamaged, ConfigError

_FREE = frozenset(("run", "failure", "checkpoint", "security", "metrics"))
"""Sections that change no bit."""
_FREE_KEYS = frozenset(
    (
        *(f"scaling.{key}" for key in ("num_servers", "resources_per_worker", "placement_strategy", "slowdown")),
        *(f"train.{key}" for key in ("data_workers", "overlap")),
        *(f"pipeline.{key}" for key in ("schedule", "recompute")),
        *(f"comm.{key}" for key in ("frame_bytes", "window_frames", "out_of_order_bytes", "shared_memory")),
        *(f"comm.{key}" for key in ("bandwidth", "server_bandwidth", "worker_bandwidth", "shaping", "latency", "interface", "port_range")),
    )
)
_STAGES = ("scaling.num_stages", "pipeline.balance")
"""Which tensor is on which stage is part of a checkpoint."""
_VERSIONS = ("pserver", "torch")


@dataclass(frozen=True)
class Beginning:
    """The run directory is locked."""

    rundir: RunDirectory
    generation: int = 1
    """Grows with every driver of the run."""
    checkpoint: Checkpoint | None = None
    """What the run goes on from. None: it begins at step 0."""
    notes: tuple[str, ...] = ()
    """What the user must be told."""

    @property
    def version(self) -> int:
        return self.checkpoint.version if self.checkpoint else 0


def begin(config: Config, task: str) -> Beginning:
    """The run that `config.run` names, in a directory of its own. Raises ConfigError, for a run that is resumed with other settings too."""
    run = config.run
    found = RunDirectory.to_resume(run.storage_path, run.name) if run.resume == "auto" else None
    if found is None:
        rundir = RunDirectory.create(run.storage_path, run.name, task)
        rundir.lock()
        return Beginning(rundir, rundir.next_generation())
    found.lock()
    try:
        return _resumed(config, found)
    except BaseException:  # after Ctrl-C too, a caller that lives on may begin again
        found.unlock()
        raise


def _resumed(config: Config, rundir: RunDirectory) -> Beginning:
    if rundir.has_finished():
        raise ConfigError(f"{rundir.path} has finished: there is nothing to resume; choose another run.name, or leave run.resume out")
    rundir.checkpoints.remove_unfinished()
    checkpoint, notes = _newest_good(rundir)
    if checkpoint:
        drift = differences(checkpoint, config)
        if moved := [line for line in drift if line.startswith(_STAGES)]:
            raise ConfigError(f"{rundir.path} can only go on with the stages that its checkpoint was made with: {'; '.join(moved)}")
        if drift and not config.run.allow_drift:
            raise ConfigError(
                f"{rundir.path} would not come to the same bits, for it was trained otherwise up to step {checkpoint.version}:\n"
                + "\n".join(f"  {line}" for line in drift)
                + "\nleave these as they were, or resume with run.allow_drift = true (--allow-drift)"
            )
        notes += [f"warning: not the bits of an undisturbed run from step {checkpoint.version} on: {line}" for line in drift]
    for version in rundir.checkpoints.versions():
        if checkpoint is None or version > checkpoint.version:
            notes.append(f"the checkpoint of step {version} is kept as {rundir.checkpoints.set_aside(version)}")
    generation = rundir.next_generation()
    where = f"step {checkpoint.version}" if checkpoint else "step 0: there is no checkpoint that can be used"
    return Beginning(rundir, generation, checkpoint, (*notes, f"resumed from {where}, generation {generation}"))


def _newest_good(rundir: RunDirectory) -> tuple[Checkpoint | None, list[str]]:
    notes = []
    for version in reversed(rundir.checkpoints.versions()):
        try:
            found = Checkpoint(rundir.checkpoints.manifest(rundir.checkpoints.whole(version)))
            if (found.version, found.manifest.run) != (version, rundir.name):
                raise CheckpointDamaged(f"{found.path} is of step {found.version} of run {found.manifest.run}")
        except CheckpointDamaged as error:
            notes.append(f"warning: {error}: the checkpoint of step {version} is not used")
        else:
            return found, notes
    return None, notes


def differences(checkpoint: Checkpoint, config: Config) -> list[str]:
    """What changes bits: one line per key or version."""
    before, after = _flat(checkpoint.manifest.config), _flat(to_dict(config))
    lines = [f"{key}: {before.get(key)} -> {after.get(key)}" for key in sorted(before | after) if before.get(key) != after.get(key)]
    now = versions()
    return lines + [
        f"version of {name}: {checkpoint.manifest.versions.get(name)} -> {now[name]}"
        for name in _VERSIONS
        if checkpoint.manifest.versions.get(name) != now[name]
    ]


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section, values in config.items():
        if section not in _FREE:
            found |= {f"{section}.{key}": value for key, value in (values or {}).items() if f"{section}.{key}" not in _FREE_KEYS}
    return found
