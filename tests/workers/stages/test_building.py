"""Models built block by block: the values of the whole model, without more than one block of another stage at a time."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from examples.shakespeare.task import Shakespeare
from ps.errors import ConfigError
from ps.stages.memory import forget_peak, peak_bytes
from tests.workers.stages.staged import Split5
from workers.binding import digests_of
from workers.config import PipelineConfig, TrainConfig
from workers.initial import build_model
from workers.stages.building import Built, build, check_blocks
from workers.stages.outline import is_chain, outline_of
from workers.stages.place import placed
from workers.task import Task
from workers.tasks.synthetic_mlp import SyntheticMLP

INPUTS = (torch.zeros(3, 8), torch.ones(3, dtype=torch.bool))


class Layers(Split5):
    """Blocks in a row."""

    def blocks(self, model: nn.Module) -> list[nn.Module] | None:
        return list(model.children())


class ManyKinds(Layers):
    """Buffers, attention, recurrence, a row of an embedding that is zero, orthogonal weights, and a frozen table from numpy."""

    def model(self) -> nn.Module:
        square = nn.Linear(6, 6)
        nn.init.orthogonal_(square.weight)
        nn.init.trunc_normal_(square.bias)
        table = nn.Embedding.from_pretrained(torch.from_numpy(np.arange(12, dtype=np.float32).reshape(3, 4)))
        scaled = nn.ParameterList([nn.Parameter(torch.randn(5) * 0.1)])
        return nn.Sequential(nn.BatchNorm1d(4), nn.MultiheadAttention(4, 2), nn.Embedding(5, 4, padding_idx=1), square, nn.LSTM(3, 4), table, scaled)


class InitialisedAtTheEnd(Layers):
    """As many language models are: what is made first is thrown away."""

    def model(self) -> nn.Module:
        model = nn.Sequential(nn.Embedding(9, 4), *[nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(3)])
        for part in reversed(list(model.modules())):
            if isinstance(part, nn.Linear):
                part.weight.data.normal_(std=0.02)
                nn.init.zeros_(part.bias)
            elif isinstance(part, nn.Embedding):
                nn.init.trunc_normal_(part.weight)
        return model


class Tied(Layers):
    """The second block's weight is the first one's."""

    def model(self) -> nn.Module:
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])
        model[1].weight = model[0].weight
        return model


class OutOfOrder(Layers):
    """The head is made first, and the body in two goes."""

    def model(self) -> nn.Module:
        head, body = nn.Linear(4, 2), [nn.Linear(4, 4) for _ in range(3)]
        parts = [nn.Sequential(layer, nn.Linear(4, 4)) for layer in body]
        return nn.Sequential(*parts, head)


class LooksBack(Layers):
    """Scales what it has made by what it is."""

    def model(self) -> nn.Module:
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
        with torch.no_grad():
            for layer in model:
                layer.weight.div_(layer.weight.norm())
        return model


class LooksBackInNumpy(Layers):
    """The same where torch does not see it."""

    def model(self) -> nn.Module:
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
        model[3].bias.data.fill_(float(model[0].weight.detach().numpy().sum()))
        return model


class SharedMemory(Layers):
    """Two blocks have weights in the same memory, which nobody will know later."""

    def model(self) -> nn.Module:
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
        model[2].weight.data = model[0].weight.data
        return model


class Branches(Layers):
    """Made as its values say."""

    def model(self) -> nn.Module:
        first = nn.Linear(4, 4)
        return nn.Sequential(first, nn.Linear(4, 4 if first.weight.any() else 3), nn.Linear(4, 4))


def of_stage(task: Task, stage: int, num_stages: int = 2, inputs: tuple[Any, ...] = INPUTS, **options: Any) -> Built:
    train = TrainConfig(batch_size=1, seed=3, **{key: value for key, value in options.items() if key != "balance"})
    return build(task, train, PipelineConfig(balance=options.get("balance", "bytes")), stage, num_stages, lambda: inputs)


def check(task: Task, num_stages: int = 2, **options: Any) -> list[Built]:
    """What the stages have is the whole model, bit by bit."""
    whole = build_model(task, TrainConfig(batch_size=1, seed=3, **options))
    named = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    made = [of_stage(task, stage, num_stages, **options) for stage in range(num_stages)]
    for stage, built in enumerate(made):
        stages = built.place.stages(built.model)
        tensors = {**dict(built.model.named_parameters()), **dict(built.model.named_buffers())}
        assert list(tensors) == list(named) and [t.shape for t in tensors.values()] == [t.shape for t in named.values()]
        for name, tensor in tensors.items():
            assert tensor.dtype == named[name].dtype
            if stages[name] == stage:
                assert torch.equal(tensor, named[name]) and name not in built.digests
            else:
                known = built.digests.get(name)
                assert digests_of(named[name].detach()) == (digests_of(tensor.detach()) if known is None else known)
    return made


ALONE = [ManyKinds(), InitialisedAtTheEnd(), Tied(), OutOfOrder(), Split5(), Shakespeare(layers=2, width=12)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("task", ALONE, ids=lambda task: type(task).__name__)
def test_blocks_that_are_built_alone_are_those_of_the_whole_model(task: Task, dtype: str) -> None:
    for num_stages in (2, 3):
        for stage, built in enumerate(check(task, num_stages, dtype=dtype)):
            stages = built.place.stages(built.model)
            theirs = {name for name, _ in (*built.model.named_parameters(), *built.model.named_buffers()) if stages[name] != stage}
            assert built.digests.keys() == theirs, "they have no values"


def test_initial_values_from_a_file_too(tmp_path: Path) -> None:
    task = Tied()
    torch.manual_seed(8)
    values = {name: torch.randn_like(value) for name, value in task.model().state_dict().items() if name != "1.weight"}
    save_file(values, tmp_path / "initial.safetensors")
    for built in check(task, init=str(tmp_path / "initial.safetensors")):
        assert built.digests


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (LooksBack(), "aten.linalg_vector_norm.default to a tensor of a block after having made another"),
        (LooksBackInNumpy(), "takes values into numpy"),
        (SharedMemory(), "gives tensors of two blocks the same memory"),
        (Branches(), "makes other tensors when it is called again"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_that_cannot_be_built_so_is_built_whole_and_the_log_says_why(task: Task, said: str, caplog: pytest.LogCaptureFixture) -> None:
    assert not check(task)[-1].digests
    assert "this stage builds the whole model, and then gives up what is not its own: its model() " in caplog.text and said in caplog.text


def test_cuts_by_time_are_those_of_the_whole_model() -> None:
    for task, inputs in ((Split5(), INPUTS), (Shakespeare(layers=3, width=12, context=8), (torch.zeros(2, 8, dtype=torch.long),))):
        whole = build_model(task, TrainConfig(batch_size=1))
        wanted = placed(task, whole, PipelineConfig(balance="time"), 0, 2, lambda inputs=inputs: inputs).split
        built = build(task, TrainConfig(batch_size=1), PipelineConfig(balance="time"), 1, 2, lambda inputs=inputs: inputs)
        assert built.place.split == wanted and built.digests


def test_no_more_than_one_block_of_another_stage_is_there_at_a_time() -> None:
    size = 4 << 20
    forget_peak()
    before = peak_bytes()
    built = of_stage(SyntheticMLP(inputs=1024, width=1024, depth=12, classes=1024), 2, 6)
    after = peak_bytes()
    assert before and after and built.digests
    own = sum(p.nbytes for p in built.model.parameters() if p.untyped_storage().nbytes())
    assert own < 3.1 * size and after - before < own + 2.5 * size


def test_blocks_that_are_the_model_are_seen_to_be_so_without_values(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    check_blocks(Split5(), TrainConfig(batch_size=1), lambda: INPUTS)
    assert "whole" not in caplog.text
    check_blocks(Branches(), TrainConfig(batch_size=1), lambda: (torch.zeros(2, 4),))
    assert "the whole model is built once, to compare it with its blocks" in caplog.text


class Around(nn.Module):
    """Two layers, and what happens between them."""

    def __init__(self, between: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Linear(4, 4), nn.Linear(4, 4), between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.between(self.first(x), x))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class AroundTask(Layers):
    between: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda y, x: y

    def model(self) -> nn.Module:
        return Around(self.between)


@pytest.mark.parametrize(
    ("between", "is_seen", "is_refused"),
    [
        (lambda y, x: y, True, False),
        (lambda y, x: y * 1, False, False),
        (lambda y, x: y + x, False, True),
        (lambda y, x: y.add_(1), False, True),
        (lambda y, x: x, False, True),
    ],
    ids=["nothing", "the same values", "a skip", "in place", "the input again"],
)
def test_what_a_model_does_between_its_blocks_is_seen(between: Callable[..., torch.Tensor], is_seen: bool, is_refused: bool) -> None:
    task, inputs = AroundTask(between=between), (torch.ones(2, 4),)
    assert is_chain(outline_of(task, torch.float32), inputs) is is_seen
    with pytest.raises(ConfigError, match="a skip connection") if is_refused else nullcontext():
        check_blocks(task, TrainConfig(batch_size=1), lambda: inputs)
