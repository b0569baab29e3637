"""Which runs of chunks a member pushes as one frame each, and how many of them may be on their way."""

from collections.abc import Sequence

from ps.comm import SHARED_FRAME_BYTES, CommConfig
from ps.exchange import Exchange
from ps.layout import Layout, Run
from ps.line import Line
from ps.pacing import Pacing, Windows, exact_bytes

Frames = Sequence[Sequence[Run]]
"""By shard."""


def plan_frames(layout: Layout, lines: Sequence[Line], comm: CommConfig, pacing: Pacing) -> tuple[Frames, Exchange]:
    """Frames that suit the lines, one to each shard, and an exchange of them that has not begun. `pacing`: of frames that travel."""
    shards, member, travelling = layout.shards, lines[0].member, comm.frame_bytes or exact_bytes(pacing, comm)
    sizes = [comm.frame_bytes or SHARED_FRAME_BYTES if line.pushes_shared else travelling for line in lines]
    frames = [[run for run in shard.frames(size, member.stage) if run.stop <= shard.num_versioned] for shard, size in zip(shards, sizes, strict=True)]
    all_shared = all(line.pushes_shared for line in lines)
    everything = len(frames) * max(map(len, frames)) if all_shared else comm.window_frames
    windows = Windows(everything, everything) if everything else Windows(pacing.window_frames, pacing.wide_frames)
    versioned = [shard.num_versioned for shard in shards]
    tensors = [shard.tensor[:count] for shard, count in zip(shards, versioned, strict=True)]
    own = [shard.stage[:count] == member.stage for shard, count in zip(shards, versioned, strict=True)]
    return frames, Exchange(member.rank, frames, tensors, windows, own)
