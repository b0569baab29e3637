"""What is to be predicted: a model's tensors, the compute of a step, hosts, links and wire formats."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from deploy.predict.costs import Costs
from ps.comm import SHARED_FRAME_BYTES, CommConfig
from ps.errors import ConfigError
from ps.layout import Layout, Rule, TensorSpec
from ps.pacing import Pacing, exact_bytes, pacing_of, windows_of
from workers.stages.schedule import Schedule

Hosts = Literal["apart", "colocated", "one"]


@dataclass(frozen=True)
class Pipeline:
    """How every rank is split over stages, in order; which stage has a tensor is in its spec."""

    forward_shares: tuple[float, ...]
    """Part of a rank's forward pass that each stage computes: they add up to 1."""
    backward_shares: tuple[float, ...]
    passed_bytes: tuple[float, ...]
    """Behind each stage but the last: activations of a rank's samples in a step, as they travel; their gradients are as many."""
    micro_batches: int = 1
    """Parts of a rank's samples in a step."""
    schedule: Schedule = "1f1b"

    @property
    def num_stages(self) -> int:
        return len(self.forward_shares)


@dataclass(frozen=True, kw_only=True)
class Racks:
    """Workers' hosts stand in racks, in rank order; servers outside of them. What leaves a rack, or comes in, passes its uplink."""

    size: int
    """Workers of a rack; the last one may have fewer."""
    uplink_bytes_per_s: float = math.inf
    """Of a rack, each way."""
    aggregator_bytes_per_s: float | None = None
    """The link of a host in every rack that sums what its workers push and pushes one contribution to the servers; None: there is none."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Times in seconds, rates in bytes/s."""

    specs: tuple[TensorSpec, ...]
    """Tensors in the order in which forward uses them."""
    forward_s: float
    """One rank's forward pass of a step, alone on its cores or its device; of all its stages together."""
    backward_s: float
    num_workers: int
    """Ranks."""
    num_servers: int
    pipeline: Pipeline | None = None
    """None: a rank is one worker."""
    comm: CommConfig = field(default_factory=CommConfig)
    """Formats, window, frames; `bandwidth` is the rate of every host's link, or of every process's where `hosts` is "one"."""
    hosts: Hosts = "apart"
    """One host for every process; servers on the hosts of the first workers; or all on one host, which shares its cores."""
    cores_per_host: float = math.inf
    machine_cores: float = math.inf
    """Of the machine that plays all hosts, if they are virtual: they share them, whatever each may use."""
    computes_on_host: bool = True
    """False: on a device, which takes no core."""
    latency_s: float = 0.0
    """One way, on every link."""
    stragglers: Mapping[int, float] = field(default_factory=dict)
    """Rank: how many times as long its compute takes."""
    slow_servers: Mapping[int, float] = field(default_factory=dict)
    """Shard: how many times as long its server's work takes, for want of a processor."""
    server_cores: Mapping[int, float] = field(default_factory=dict)
    """Shard: cores of its server's host where these are not `cores_per_host`; only where servers have hosts of their own."""
    worker_links: Mapping[int, float] = field(default_factory=dict)
    """Rates of single workers' links by number (rank, or rank * stages + stage) in place of `comm.bandwidth`."""
    racks: Racks | None = None
    """None: nothing is between hosts but their links."""
    overlap: bool = True
    """As `train.overlap`."""
    samples: float = 1.0
    """Of one rank in a step."""
    micro_batches: int = 1
    """Of one rank in a step, before stages cut them once more: only the last one's backward makes gradients that leave."""
    global_batch: int | None = None
    """Samples of all ranks in a step, where the config says it so; None: where it has those of one rank in a micro-batch."""
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        if self.num_workers < 1 or self.num_servers < 1:
            raise ConfigError(f"{self.num_workers} workers and {self.num_servers} servers: at least one each")
        if self.hosts == "colocated" and self.num_servers > self.num_members:
            raise ConfigError(f"{self.num_servers} servers on the hosts of {self.num_members} workers: at most one each, or leave --colocate out")
        for name, ranks, count in (("straggler", self.stragglers, self.num_workers), ("link", self.worker_links, self.num_members)):
            if wrong := [rank for rank in ranks if not 0 <= rank < count]:
                raise ConfigError(f"{name} of {'rank' if count == self.num_workers else 'worker'} {wrong[0]}: there are 0 to {count - 1}")
        if racks := self.racks:
            if self.hosts != "apart" or self.pipeline:
                raise ConfigError("hosts in racks: servers have hosts of their own, and ranks are whole; leave racks, or the other, out")
            if racks.size < 1 or racks.uplink_bytes_per_s <= 0:
                raise ConfigError(f"racks of {racks.size} workers with uplinks of {racks.uplink_bytes_per_s} bytes/s: at least one, and above 0")
            if racks.aggregator_bytes_per_s is not None and self.comm.push_format == "topk":
                raise ConfigError("an aggregator's sum of topk contributions is not a topk contribution: plan with another push format")

    @property
    def num_racks(self) -> int:
        """0 without racks."""
        return math.ceil(self.num_workers / self.racks.size) if self.racks else 0

    @property
    def num_stages(self) -> int:
        return self.pipeline.num_stages if self.pipeline else 1

    @property
    def num_members(self) -> int:
        """Worker processes."""
        return self.num_workers * self.num_stages

    @property
    def compute_s(self) -> float:
        """Of a rank that is no straggler, or of that of its stages which computes longest."""
        if self.pipeline is None:
            return self.forward_s + self.backward_s
        shares = zip(self.pipeline.forward_shares, self.pipeline.backward_shares, strict=True)
        return max(forward * self.forward_s + backward * self.backward_s for forward, backward in shares)

    @property
    def model_bytes(self) -> int:
        """Exact bytes that are pushed in a step."""
        return sum(spec.num_bytes for spec in self.specs if spec.rule is not Rule.FROZEN)

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.specs, self.num_servers)

    @property
    def is_shared(self) -> bool:
        """Exact payload stays in shared memory."""
        return self.hosts == "one" and self.comm.may_share and self.comm.shaping == "streams"

    @cached_property
    def pacing(self) -> Pacing:
        """Length of frames, and how many may be on their way: the config's, or what suits the link as workers find when they join, all at once."""
        summed = self.num_racks if self.racks and self.racks.aggregator_bytes_per_s else 0
        to_all = self.num_servers * min(map(self.server_link, range(self.num_servers)))  # an echo is as late as that of the thinnest link
        links = min(min(map(self.worker_link, range(self.num_members))), to_all / (summed or self.num_members))
        if self.racks and not self.racks.aggregator_bytes_per_s:
            links = min(links, self.racks.uplink_bytes_per_s / self.racks.size)
        elif self.racks and self.racks.aggregator_bytes_per_s:
            links = min(links, self.racks.aggregator_bytes_per_s / self.racks.size)
        windows = windows_of(summed or self.num_workers, self.num_servers)
        found = pacing_of(links, 2 * self.latency_s, windows) if math.isfinite(links) else Pacing()
        frame_bytes = SHARED_FRAME_BYTES if self.is_shared and self.comm.push_format == "fp32" else exact_bytes(found, self.comm)
        window, wide = [self.comm.window_frames] * 2 if self.comm.window_frames else (found.window_frames, found.wide_frames)
        return replace(found, frame_bytes=self.comm.frame_bytes or frame_bytes, window_frames=window, wide_frames=wide)

    def worker_link(self, number: int) -> float:
        return self.worker_links.get(number, self.comm.link_bytes_per_s(worker=number) or math.inf)

    def server_link(self, shard: int) -> float:
        return self.comm.link_bytes_per_s(shard) or math.inf


def equal_tensors(model_bytes: int, num_tensors: int = 32) -> tuple[TensorSpec, ...]:
    """A model of which only the size is known: equal layers of float32."""
    elements = max(1, model_bytes // 4)
    count = min(num_tensors, elements)
    sizes = [elements // count + (i < elements % count) for i in range(count)]
    return tuple(TensorSpec(name=f"layer{i}.weight", shape=(size, 1), dtype="float32") for i, size in enumerate(sizes))


def tensors_of(shapes: Mapping[str, Sequence[int]]) -> tuple[TensorSpec, ...]:
    """float32 parameters by name."""
    return tuple(TensorSpec(name=name, shape=tuple(shape), dtype="float32") for name, shape in shapes.items())


@dataclass(frozen=True)
class Layers:
    """The modules that own tensors, in the order of the forward pass."""

    of_tensor: tuple[int, ...]
    """Layer of every tensor."""
    shares: tuple[float, ...]
    """Part of the compute in every layer, which add up to 1."""
    num_bytes: tuple[int, ...]
    """Exact bytes of every layer."""

    def __len__(self) -> int:
        return len(self.shares)


def layers_of(specs: Iterable[TensorSpec]) -> Layers:
    """Tensors of one module are a layer. A matrix multiplies each sample once, so its compute goes with its elements; the convolutions of a
    network are taken to cost the same each, as those of ResNets do, which halve the image when they double the channels."""
    specs = tuple(specs)
    index: dict[str, int] = {}
    of_tensor = tuple(index.setdefault(spec.name.rpartition(".")[0] or spec.name, len(index)) for spec in specs)
    kernels = [spec.num_elements for spec in specs if len(spec.shape) > 2]
    work = [0.0] * len(index)
    num_bytes = [0] * len(index)
    for spec, layer in zip(specs, of_tensor, strict=True):
        num_bytes[layer] += spec.num_bytes
        if len(spec.shape) > 1:
            work[layer] += sum(kernels) / len(kernels) if len(spec.shape) > 2 else spec.num_elements
    total = sum(work)
    return Layers(of_tensor, tuple(one / total if total else 1 / len(index) for one in work), tuple(num_bytes))
