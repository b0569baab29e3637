"""The durable state of a shard: version words and two copies of parameters and optimizer state.

The bytes of version t lie in copy t mod 2. A step fills the other copy, updates it there, and then writes the
chunks' words; a kill in between leaves version t intact. `oldest` is written before the first overwrite of a
version, so that version - 1 is served only while all of its bytes exist.
"""

import numpy as np
import numpy.typing as npt

from ps.errors import VersionGone
from ps.failpoints import hit
from ps.frame import Bytes
from ps.layout import IntArray, Rule, Run, ShardLayout

EMPTY = 1 << 62
"""Version of a shard without versioned chunks: it never holds anybody back."""
_MAGIC = np.frombuffer(b"pserver1", np.int64)[0]
_HEADER_BYTES = 512
OLDEST_AT = 8
"""Where `oldest` lies in the header."""
NONCE_AT = 96
"""Where the owner's nonce lies in the header."""
NONCE_BYTES = 32
_ALIGN = 512


class Store:
    """A shard's memory, laid out in a buffer that may survive the process. Not thread-safe: the shard locks.

    `slots` is the number of optimizer state tensors per parameter, `num_norms` the number of chunks with a
    norm in the whole model (0 if steps have one phase), `key` 32 bytes that identify model, run and generation.
    """

    def __init__(self, memory: Bytes, layout: ShardLayout, *, slots: int, num_norms: int, key: bytes) -> None:
        self.layout = layout
        self.slots = slots
        self._key = np.frombuffer(key, np.int64)
        sizes = self._sizes(layout, slots, num_norms)
        offsets = np.cumsum([0, *sizes.values()]).tolist()
        self.offsets = dict(zip(sizes, offsets, strict=False))
        """Where the parts begin, in bytes."""
        part = {name: memory[a : a + size] for (name, size), a in zip(sizes.items(), offsets, strict=False)}
        self._header: IntArray = part["header"].view(np.int64)
        n = len(layout)
        self.words: IntArray = part["words"].view(np.int64)[:n]
        """Version word of every chunk, -1 before Init; frozen chunks stay at 0 for ever."""
        self.norms: npt.NDArray[np.float64] = part["norms"].view(np.float64)[:num_norms]
        """Squared norms of all shards' chunks, of the recorded step."""
        self._params = (part["params 0"], part["params 1"])
        self._slots = tuple(tuple(part[f"slot {s} {copy}"] for s in range(slots)) for copy in (0, 1))
        self._updates: tuple[IntArray, ...] = tuple(part[f"updates {c}"].view(np.int64)[: layout.num_optimizer] for c in (0, 1))

    @staticmethod
    def _sizes(layout: ShardLayout, slots: int, num_norms: int) -> dict[str, int]:
        optimizer_bytes = layout.span_bytes(Run(0, layout.num_optimizer)).stop if layout.num_optimizer else 0
        versioned_bytes = layout.span_bytes(Run(0, layout.num_versioned)).stop if layout.num_versioned else 0
        sizes = {"header": _HEADER_BYTES, "words": 8 * len(layout), "norms": 8 * num_norms}
        for copy, params_bytes in ((0, layout.size_bytes), (1, versioned_bytes)):
            sizes[f"params {copy}"] = params_bytes
            sizes |= {f"slot {s} {copy}": optimizer_bytes for s in range(slots)}
            sizes[f"updates {copy}"] = 8 * layout.num_optimizer
        return {name: -(-size // _ALIGN) * _ALIGN for name, size in sizes.items()}

    @classmethod
    def size_bytes(cls, layout: ShardLayout, *, slots: int, num_norms: int) -> int:
        """Memory needed."""
        return sum(cls._sizes(layout, slots, num_norms).values())

    def format(self) -> None:
        """Makes an empty shard of the memory, which must be zeroed; the magic is written last."""
        self.words[:] = -1
        self._header[1] = -1
        self._header[2] = -1
        self._header[3] = self._header[5] = -1
        self._header[8:12] = self._key
        self._header[0] = _MAGIC

    def attach(self) -> bool:
        """Whether the memory holds this shard, formatted by a former process."""
        return bool(self._header[0] == _MAGIC and (self._header[8:12] == self._key).all())

    def set_nonce(self, nonce: bytes) -> None:
        """Marks the memory as this process's."""
        self._header.view(np.uint8)[NONCE_AT : NONCE_AT + NONCE_BYTES] = np.frombuffer(nonce, np.uint8)

    @property
    def initialised(self) -> bool:
        return bool((self.words >= 0).all())

    @property
    def version(self) -> int:
        """Smallest version word; -1 before Init has completed, EMPTY without versioned chunks."""
        if not self.initialised:
            return -1
        return int(self.words[: self.layout.num_versioned].min(initial=EMPTY))

    @property
    def oldest(self) -> int:
        """Largest version that has been or is about to be overwritten, plus 1; -1 if none."""
        return int(self._header[1])

    def raise_oldest(self, version: int) -> None:
        """Must precede the first overwrite that begins when `version` is updated: version - 1 is gone from here on."""
        self._header[1] = max(self.oldest, version)

    def readable(self, version: int) -> bool:
        """Whether all bytes of `version` exist."""
        now = self.version
        return version == now or (version == now - 1 and version >= 0 and self.oldest <= version)

    def params(self, version: int, run: Run) -> Bytes:
        """The run's bytes in the copy of `version`, alignment included; frozen chunks have one copy."""
        return self.copy_of(version, run)[self.layout.span_bytes(run)]

    def copy_of(self, version: int, run: Run) -> Bytes:
        """The whole copy that holds the run's bytes of `version`, by local offsets."""
        frozen = run.first >= self.layout.num_versioned
        return self._params[0 if frozen else version % 2]

    def state(self, version: int, run: Run) -> list[Bytes]:
        """The run's optimizer state of `version`, one array per slot."""
        return [slot[self.layout.span_bytes(run)] for slot in self._slots[version % 2]]

    def copies(self, version: int, run: Run) -> list[Bytes]:
        """The whole copies that hold parameters and slots of a run of `version` that the optimizer updates, by local offsets."""
        return [self.copy_of(version, run), *self._slots[version % 2]]

    def slot_copy(self, version: int, slot: int) -> Bytes:
        """The whole copy of one slot that holds its bytes of `version`, for reading by local offsets."""
        return self._slots[version % 2][slot]

    def updates(self, version: int, run: Run) -> IntArray:
        """Number of updates that each chunk of the run has had up to `version`."""
        return self._updates[version % 2][run.span]

    def fill_next(self, step: int, run: Run) -> None:
        """Copies everything of version `step` into the copy of step + 1."""
        self.params(step + 1, run)[:] = self.params(step, run)
        if self.layout.block_of(run).rule is Rule.OPTIMIZER:
            for new, old in zip(self.state(step + 1, run), self.state(step, run), strict=True):
                new[:] = old
            self.updates(step + 1, run)[:] = self.updates(step, run)

    def commit(self, step: int, run: Run) -> None:
        """Writes the words: version step + 1 of these chunks is there."""
        self.words[run.span] = step + 1

    @property
    def recorded_step(self) -> int:
        """Two-phase step whose norms are in `norms`; -1 if there is no valid record."""
        return int(self._header[2])

    def record(self, step: int, norms: npt.NDArray[np.float64]) -> None:
        """Makes a two-phase step's norms durable, before it is applied: invalidate, write, mark valid last."""
        self._header[2] = -1
        hit("store.recording")
        self.norms[:] = norms
        self._header[2] = step

    @property
    def decided(self) -> int:
        """Version of the newest decision; -1 if there is none."""
        return int(self._header[self._newest_decision()])

    @property
    def rate_factor(self) -> float:
        """What the newest decision multiplies the learning rate with."""
        at = self._newest_decision()
        return float(self._header[at + 1 : at + 2].view(np.float64)[0]) if self._header[at] >= 0 else 1.0

    def decide(self, version: int, rate_factor: float) -> None:
        """Makes a decision durable in the place of the one before the last: invalidate, write, mark valid last."""
        at = 8 - self._newest_decision()
        self._header[at] = -1
        hit("store.deciding")
        self._header[at + 1 : at + 2].view(np.float64)[0] = rate_factor
        self._header[at] = version

    def _newest_decision(self) -> int:
        """Where it lies in the header; there are two places."""
        return 3 if self._header[3] >= self._header[5] else 5

    def restore(self, version: int, decided: int, rate_factor: float) -> None:
        """All bytes of `version` are in their copies: nothing before it can be read. The words are written last."""
        self._header[1] = version
        self._header[2] = -1
        self._header[3] = self._header[5] = -1
        if decided >= 0:
            self.decide(decided, rate_factor)
        hit("store.restored")
        self.words[: self.layout.num_versioned] = version
        self.words[self.layout.num_versioned :] = 0

    def check_readable(self, version: int) -> None:
        """Raises VersionGone unless all bytes of `version` exist; call before and again after copying."""
        if not self.readable(version):
            raise VersionGone(f"shard {self.layout.index} holds version {self.version}, not {version}: join again")
