"""What a member pushes in a step, and the frames that bring it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from protos import pserver_pb2 as pb
from ps import frame
from ps.comm import EXACT
from ps.frame import Bytes
from ps.layout import Layout, Run, ShardLayout
from ps.rank_state import RankState


class KnownDigests:
    """xxh3-64 of chunks of a flat layout, as far as somebody had them in the cache: what is not known is read again."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known = np.zeros(len(layout.specs), np.bool_)
        self._digests = np.zeros(len(layout), np.uint64)

    def keep(self, tensor: int, digests: Sequence[int]) -> None:
        """All of the tensor's, whose bytes stay as they are until `forget`."""
        first = self._layout.first_chunk(tensor)
        self._digests[first : first + len(digests)] = digests
        self._known[tensor] = True

    def forget(self, tensor: int) -> None:
        """Its bytes change."""
        self._known[tensor] = False

    def of(self, layout: ShardLayout, run: Run) -> list[int] | None:
        """Of a shard's run; None unless all are known."""
        if not self._known[layout.tensor[run.span]].all():
            return None
        return self._digests[layout.chunks[run.span]].tolist()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Contribution:
    """What a member pushes in a step."""

    step: int
    weight: float
    values: Bytes
    """A flat layout."""
    present: npt.NDArray[np.bool_]
    """By tensor; others are absent, or not ready yet."""
    digests: KnownDigests | None = None
    """Of `values`."""

    def parts(self, layout: ShardLayout, run: Run) -> list[tuple[pb.Kind, Run]]:
        """The run, cut where present and absent tensors meet."""
        present = self.present[layout.tensor[run.span]]
        cuts = [run.first, *(np.flatnonzero(present[1:] != present[:-1]) + run.first + 1).tolist(), run.stop]
        return [(pb.PUSH if present[a - run.first] else pb.ABSENT, Run(a, b)) for a, b in pairwise(cuts)]


class Encoded(NamedTuple):
    """A frame, and its payload's length, wherever that lies."""

    data: bytes
    payload_bytes: int


class Encoder:
    """Makes frames of contributions to one shard. What a lossy format leaves out goes into the rank state."""

    def __init__(self, layout: ShardLayout, push_format: str, rank_state: RankState | None = None) -> None:
        self._layout = layout
        self._push_format = push_format
        self._rank_state = rank_state

    def encode(
        self, member: pb.Member, kind: pb.Kind, run: Run, contribution: Contribution, sequence: int, *, shared: bool, receipt_may_wait: bool = False
    ) -> Encoded:
        """A frame of a run, with its bytes of the contribution unless it is absent or, `shared`, the shard reads them there."""
        header = pb.FrameHeader(
            kind=kind,
            member=member,
            step=contribution.step,
            first_chunk=run.first,
            num_chunks=len(run),
            weight=contribution.weight,
            sequence=sequence,
            receipt_may_wait=receipt_may_wait,
        )
        layout, values = self._layout, contribution.values
        state = self._rank_state if self._rank_state and self._rank_state.covers(layout, run) else None
        if kind == pb.ABSENT:
            if state:
                state.keep(layout, run, contribution.step)
            return Encoded(frame.encode(header), 0)
        if kind == pb.PUSH and state:
            payload = state.encode(layout, run, values, contribution.step)
            return Encoded(frame.encode_coded(header, payload, layout, run, self._push_format), len(payload))
        wire = self._push_format if kind == pb.PUSH else EXACT
        size = frame.payload_bytes(layout, run, wire)
        if kind != pb.PUSH or not shared:
            digests = contribution.digests.of(layout, run) if contribution.digests else None
            return Encoded(frame.encode_run(header, values, layout, run, flat=True, wire=wire, digests=digests), size)
        header.dtype = layout.block_of(run).dtype
        header.shared = True
        return Encoded(frame.encode(header), size)
