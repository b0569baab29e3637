"""Do all members bring the same model? Pure: the first one sets the reference, every other is compared with it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from protos import pserver_pb2 as pb
from ps.errors import ModelMismatch
from ps.layout import CHUNK_ELEMENTS, DTYPES, Layout, Rule, TensorSpec
from ps.plan import Plan

MAX_TENSORS = 1 << 17
"""More tensors than that are refused before anything is built of them."""
MAX_CHUNKS = 1 << 21
"""As many as the digests of a message can be."""
_MAX_DIMENSIONS = 64
_MAX_SIZE = 1 << 62
"""Of one dimension, which may stand beside a 0."""
_RULES = frozenset(map(int, Rule))
_MAX_TEXT = 1024
"""Characters of a name."""


@dataclass(frozen=True)
class Model:
    """What a member says at Join."""

    rank: int
    specs: tuple[TensorSpec, ...]
    digests: tuple[int, ...]
    plan: Plan
    environment: dict[str, str]

    def check_same(self, other: "Model", layout: Layout) -> None:
        """Raises ModelMismatch that names the other rank and the first thing that differs."""
        who = f"rank {other.rank} against rank {self.rank}"
        for mine, theirs in zip(self.specs, other.specs, strict=False):
            if mine != theirs:
                raise ModelMismatch(
                    f"{who}: tensor {theirs.name} is {_text(theirs)}, expected {mine.name} {_text(mine)}: every rank must build the same model"
                )
        if len(self.specs) != len(other.specs):
            raise ModelMismatch(f"{who}: {len(other.specs)} tensors, expected {len(self.specs)}: every rank must build the same model")
        for chunk, (digest, its) in enumerate(zip(self.digests, other.digests, strict=True)):
            if digest != its:
                name = self.specs[int(layout.chunk_tensor[chunk])].name
                raise ModelMismatch(f"{who}: initial values of {name} differ: build the model from the given seed alone{self._suspects(other)}")
        if self.plan != other.plan:
            raise ModelMismatch(f"{who}: {other.plan}, expected {self.plan}: does every rank see the same training data?")

    def _suspects(self, other: "Model") -> str:
        changed = [f"{k} {other.environment[k]} against {v}" for k, v in self.environment.items() if other.environment.get(k) != v]
        return f" (differs there: {', '.join(changed)})" if changed else ""


def model_from(request: pb.JoinRequest) -> Model:
    """The model of a Join request, checked. Raises ModelMismatch before memory is allocated for it."""
    rank = request.member.rank
    if any(len(text) > _MAX_TEXT for text in _texts(request.environment)):
        raise ModelMismatch(f"rank {rank} brings an environment of more than {_MAX_TEXT} characters")
    if not request.steps_per_epoch or not request.total_steps:
        raise ModelMismatch(f"rank {rank} brings a plan without steps: is the training data empty?")
    specs = specs_from(request.tensors, f"rank {rank}")
    if len(request.chunk_digests) != (count := num_chunks(specs)):
        raise ModelMismatch(f"rank {rank} brings {len(request.chunk_digests)} digests of {count} chunks: is its version of pserver the same?")
    environment = request.environment
    return Model(
        rank=rank,
        specs=specs,
        digests=tuple(request.chunk_digests),
        plan=Plan(request.steps_per_epoch, request.total_steps, request.validate_every, request.own_loop),
        environment={
            "python": environment.python,
            "torch": environment.torch,
            "pserver": environment.pserver,
            "threads": str(environment.num_threads),
            "CPU capability": environment.cpu_capability,
        },
    )


def _texts(environment: pb.Environment) -> Iterable[str]:
    return (environment.host, environment.python, environment.torch, environment.pserver, environment.cpu_capability)


def specs_from(tensors: Sequence[pb.Tensor], sender: str) -> tuple[TensorSpec, ...]:
    """The specs of messages from `sender`. Raises ModelMismatch for a dtype or rule that is not served, and for more than any Join may bring."""
    if len(tensors) > MAX_TENSORS:
        raise ModelMismatch(f"{sender} brings {len(tensors)} tensors, at most {MAX_TENSORS} are served")
    specs = tuple(_spec(tensor, sender) for tensor in tensors)
    if (count := num_chunks(specs)) > MAX_CHUNKS:
        raise ModelMismatch(f"{sender} brings {count} chunks, at most {MAX_CHUNKS} are served")
    return specs


def num_chunks(specs: Iterable[TensorSpec]) -> int:
    """Of their layout, which need not be made for it."""
    return sum(-(-spec.num_elements // CHUNK_ELEMENTS) for spec in specs)


def _spec(tensor: pb.Tensor, sender: str) -> TensorSpec:
    if len(tensor.name) > _MAX_TEXT or len(tensor.shape) > _MAX_DIMENSIONS:
        raise ModelMismatch(f"{sender}: tensor {tensor.name[:80]} has {len(tensor.shape)} dimensions and a name of {len(tensor.name)} characters")
    if max(tensor.shape, default=0) > _MAX_SIZE:
        raise ModelMismatch(f"{sender}: tensor {tensor.name} is {list(tensor.shape)} large")
    if tensor.dtype not in DTYPES or tensor.rule not in _RULES:
        raise ModelMismatch(f"{sender}: tensor {tensor.name} has dtype {tensor.dtype!r} and rule {tensor.rule}: not supported")
    if tensor.rule == pb.RULE_OPTIMIZER and tensor.dtype not in ("float32", "float64"):
        raise ModelMismatch(f"{sender}: parameter {tensor.name} is {tensor.dtype}: train in float32 or float64")
    return TensorSpec(name=tensor.name, shape=tuple(tensor.shape), dtype=tensor.dtype, rule=Rule(tensor.rule), group=tensor.group, stage=tensor.stage)


def spec_messages(specs: Iterable[TensorSpec]) -> list[pb.Tensor]:
    """The messages of specs."""
    return [pb.Tensor(name=s.name, shape=s.shape, dtype=s.dtype, rule=pb.Rule.Name(s.rule), group=s.group, stage=s.stage) for s in specs]


def _text(spec: TensorSpec) -> str:
    where = f" on stage {spec.stage}" if spec.stage else ""
    return f"{spec.dtype}{list(spec.shape)} ({spec.rule.name.lower()}){where}"
