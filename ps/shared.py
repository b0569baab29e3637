"""Payload between processes of one host: it stays in the sender's memory, which the receiver maps.

A nonce that the owner has just written proves the host: names would not, since hosts may share a name and one host may
have several `/dev/shm`. A member's segment belongs to one incarnation and is never used by another, for no message
would fence a dead one's last write.
"""

import contextlib
import ctypes
import logging
import mmap
import os
import re
import secrets
import stat
from collections.abc import Sequence

import numpy as np

from protos import pserver_pb2 as pb
from ps import segments
from ps.frame import Bytes
from ps.layout import IntArray, Run, ShardLayout
from ps.segments import Segment, remove_dead_segments, run_prefix
from ps.store import NONCE_AT, NONCE_BYTES, OLDEST_AT, Store

log = logging.getLogger(__name__)

_LEAD_BYTES = 4096
"""Before the contributions: the nonce."""
_IN_FOLDER = re.compile(r"[a-z0-9.-]{1,255}", re.ASCII)
"""What a name may be made of: it leads to no other folder."""


class MemberSegment:
    """A member's contributions, where the servers of its host read them."""

    def __init__(self, run_id: str, member: pb.Member, flat_bytes: int, own: Sequence[tuple[int, int]] | None = None) -> None:
        """`own`: the parts of the flat layout that the member contributes to. None: all. Raises OSError if `/dev/shm` has no room."""
        name = f"{_member_prefix(run_id, member)}{secrets.token_hex(4)}"
        size = _LEAD_BYTES + flat_bytes
        parts = None if own is None else [(0, _LEAD_BYTES), *((_LEAD_BYTES + start, _LEAD_BYTES + stop) for start, stop in own)]
        self._segment = Segment(segments.SHM / name, size, parts)
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._segment.memory[:NONCE_BYTES] = np.frombuffer(nonce, np.uint8)
        self.contributions: Bytes = self._segment.memory[_LEAD_BYTES:]
        """A flat layout."""
        self.offer = pb.SharedMemory(name=name, size_bytes=size, nonce=nonce)
        """What Join brings."""

    def close(self) -> None:
        """Removes the file; views of `contributions` stay valid."""
        self._segment.close(remove=True)


def member_segment(run_id: str, member: pb.Member, flat_bytes: int, own: Sequence[tuple[int, int]] | None = None) -> MemberSegment | None:
    """A new segment, or None after one warning if there is no room."""
    remove_dead_segments()
    try:
        return MemberSegment(run_id, member, flat_bytes, own)
    except OSError as error:
        log.warning(
            "shared memory is off for rank %d: %s has no %d bytes (%s); gradients go over gRPC: enlarge it (containers: --shm-size), "
            "or set comm.shared_memory = false",
            member.rank,
            segments.SHM,
            _LEAD_BYTES + flat_bytes,
            error.strerror or error,
        )
        return None


def map_contributions(run_id: str, member: pb.Member, offer: pb.SharedMemory, flat_bytes: int) -> Bytes | None:
    """The flat layout in the segment of this member's incarnation, for reading; None if this host has no such segment of it."""
    if offer.size_bytes != _LEAD_BYTES + flat_bytes:
        return None
    found = _map(_member_prefix(run_id, member), offer, nonce_at=0)
    return None if found is None else found[1][_LEAD_BYTES:]


def _member_prefix(run_id: str, member: pb.Member) -> str:
    """A member offers files of its own incarnation only: no other one's, and no server's."""
    return f"{run_prefix(run_id)}g{member.generation}-r{member.rank}.{member.stage}-i{member.incarnation}-"


def offer_store(segment: Segment, store: Store) -> pb.SharedStore | None:
    """Marks a shard's memory with a new nonce and describes it to members; None if it is not in `/dev/shm`."""
    if segment.path.parent != segments.SHM:
        return None
    nonce = secrets.token_bytes(NONCE_BYTES)
    store.set_nonce(nonce)
    return pb.SharedStore(
        segment=pb.SharedMemory(name=segment.path.name, size_bytes=len(segment.memory), nonce=nonce),
        nonce_at=NONCE_AT,
        oldest_at=OLDEST_AT,
        words_at=store.offsets["words"],
        even_at=store.offsets["params 0"],
        odd_at=store.offsets["params 1"],
    )


class StoreView:
    """A shard's memory as a member of its host sees it, for reading."""

    def __init__(self, file: tuple[int, int], memory: Bytes, places: pb.SharedStore, layout: ShardLayout) -> None:
        self.file = file
        """Device and inode: a server that is started again on its memory has the same."""
        self._layout = layout
        self._oldest: IntArray = memory[places.oldest_at : places.oldest_at + 8].view(np.int64)
        self._words: IntArray = memory[places.words_at : places.words_at + 8 * len(layout)].view(np.int64)
        self._copies = (memory[places.even_at :], memory[places.odd_at :])

    def land(self, version: int, run: Run, into: Bytes) -> bool:
        """Copies a versioned run's bytes of `version` into a flat layout; False if they were gone before the copy was complete."""
        copy = self._copies[version % 2]
        for piece in self._layout.pieces(run):
            into[piece.flat : piece.flat + piece.num_bytes] = copy[piece.local : piece.local + piece.num_bytes]
        return self.holds(version, run)

    def holds(self, version: int, run: Run) -> bool:
        """Whether the run's bytes of `version` are complete and have not been overwritten."""
        return bool((self._words[run.span] >= version).all()) and int(self._oldest[0]) <= version

    @property
    def flat_copies(self) -> tuple[Bytes, Bytes] | None:
        """Even and odd versions where the server has them, if they lie there as in the flat layout. To write into them kills the process."""
        size = self._layout.size_bytes
        if (self._layout.flat != self._layout.local).any():
            return None
        even, odd = (_writable(copy[:size]) for copy in self._copies)
        return even, odd


def _writable(memory: Bytes) -> Bytes:
    """The same memory for torch, which knows no tensors that may only be read; the pages stay protected."""
    buffer = (ctypes.c_uint8 * len(memory)).from_address(memory.ctypes.data)
    buffer.owner = memory  # type: ignore[attr-defined] # or the map would go before the view
    return np.ctypeslib.as_array(buffer)


def map_store(run_id: str, places: pb.SharedStore, layout: ShardLayout) -> StoreView | None:
    """The shard's memory; None if this host has no such segment or it does not hold such a shard."""
    size, versioned = places.segment.size_bytes, layout.span_bytes(Run(0, layout.num_versioned)).stop if layout.num_versioned else 0
    ends = (places.oldest_at + 8, places.words_at + 8 * len(layout), places.even_at + layout.size_bytes, places.odd_at + versioned)
    if max(ends) > size:
        return None
    found = _map(run_prefix(run_id), places.segment, nonce_at=places.nonce_at)
    return None if found is None else StoreView(*found, places, layout)


def _map(prefix: str, offer: pb.SharedMemory, *, nonce_at: int) -> tuple[tuple[int, int], Bytes] | None:
    if not (offer.name.startswith(prefix) and _IN_FOLDER.fullmatch(offer.name)) or len(offer.nonce) != NONCE_BYTES:
        return None
    with contextlib.suppress(OSError):
        file = os.open(segments.SHM / offer.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # not a pipe
        try:
            about = os.fstat(file)
            if stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and about.st_size == offer.size_bytes:
                memory = np.frombuffer(mmap.mmap(file, about.st_size, prot=mmap.PROT_READ), np.uint8)
                if secrets.compare_digest(memory[nonce_at : nonce_at + NONCE_BYTES].tobytes(), offer.nonce):
                    return (about.st_dev, about.st_ino), memory
        finally:
            os.close(file)
    return None
