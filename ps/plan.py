"""How long a run is and where its phases end; the same on every rank, and known to every shard. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Counted in steps."""

    steps_per_epoch: int
    total_steps: int
    validate_every: int = 0
    """Steps between two validation phases; 0: none but at the end of the run."""
    own_loop: bool = False
    """A user's own loop reports when it likes: no version is known to wait for a decision."""

    def validates(self, version: int) -> bool:
        """Whether a validation phase runs on the parameters of `version`."""
        regular = self.validate_every > 0 and version % self.validate_every == 0
        return version > 0 and (regular or version == self.total_steps)

    def decides(self, version: int) -> bool:
        """Whether the driver decides at `version` how the run goes on: at ends of epochs and after validation."""
        if self.own_loop:
            return False
        return (version > 0 and version % self.steps_per_epoch == 0) or self.validates(version)
