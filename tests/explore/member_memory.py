"""What a worker process has in its memory, with bytes and the real rank state."""

from collections.abc import Collection

import numpy as np

from protos import pserver_pb2 as pb
from ps import frame
from ps.codecs import is_lossy, lossy_codec
from ps.contribution import Contribution, Encoder
from ps.frame import Bytes
from ps.layout import Run
from ps.rank_state import RankState
from tests.explore.job import SEED, Job, Vector
from tests.ps.models.core import Violation


class MemberMemory:
    """Two versions of what has landed, the gradients of one step, and what lossy pushes of its rank have left out, which outlives it."""

    def __init__(self, job: Job, rank: int, residuals: Bytes) -> None:
        self._job, self._rank = job, rank
        self._landing = (np.zeros(job.layout.flat_bytes, np.uint8), np.zeros(job.layout.flat_bytes, np.uint8))
        self.gradients: Bytes = np.zeros(job.layout.flat_bytes, np.uint8)
        """Its segment, if payload stays there."""
        self._state = self._rank_state(residuals)
        self._encoders = [Encoder(shard, job.push_format, self._state) for shard in job.layout.shards]

    def _rank_state(self, residuals: Bytes) -> RankState | None:
        job = self._job
        if not is_lossy(job.push_format):
            return None
        codec = lossy_codec(job.push_format, job.settings(0).comm.topk_fraction)
        skips = job.optimizer.nonfinite == "skip"
        return RankState(residuals, job.layout, codec, seed=SEED, rank=self._rank, skip_nonfinite=skips, key=bytes(32))

    def resume(self, version: int, *, skipped: bool) -> None:
        """Begins at `version`; whether the step before was skipped."""
        if self._state:
            self._state.resume(version, skipped=skipped)

    def settle(self, version: int, norms: Collection[Vector]) -> None:
        """The step before `version` is applied everywhere; its norms, as far as they are known."""
        if self._state and self._state.version < version:
            skipped = self._state.skip_nonfinite and not all(np.isfinite(squares).all() for squares in norms)
            self._state.settle(version - 1, skipped=skipped)

    def land(self, shard: int, version: int, run: Run, payload: Bytes) -> None:
        """Raises Violation for other bytes than the reference's."""
        if payload.tobytes() != self._job.bytes_of(shard, run, version):
            raise Violation(f"rank {self._rank} gets other bytes than the reference's as version {version} of chunks {run} of shard {shard}")
        frame.land(payload, self._landing[version % 2], self._job.layout.shards[shard], run, flat=True)

    def sums(self, version: int) -> list[float]:
        """What has been counted up to `version`."""
        return self._job.tensors(self._landing[version % 2])[-1].tolist()

    def compute(self, step: int) -> None:
        """The gradients of a step."""
        job = self._job
        params = job.tensors(self._landing[step % 2] if step else job.reference[0])
        for tensor, view in enumerate(job.tensors(self.gradients)):
            view[:] = job.gradient(tensor, params[tensor], self._rank, step)
        present = np.array([not job.is_absent(tensor, self._rank, step) for tensor in range(len(params))])
        self._contribution = Contribution(step, job.weight(self._rank, step), self.gradients, present)

    def parts(self, shard: int, run: Run) -> list[tuple[pb.Kind, Run]]:
        """The run, cut where present and absent tensors meet."""
        return self._contribution.parts(self._job.layout.shards[shard], run)

    def encode(self, member: pb.Member, shard: int, kind: pb.Kind, part: Run, sequence: int, *, receipt_may_wait: bool) -> bytes:
        """The frame of a part."""
        shared, contribution = self._job.shared, self._contribution
        return self._encoders[shard].encode(member, kind, part, contribution, sequence, shared=shared, receipt_may_wait=receipt_may_wait).data
