from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ps.layout import Layout, Rule
from tests.workers.alone import gradient_step
from workers.binding import BoundModel, specs_of
from workers.config import TrainConfig
from workers.data import TensorData
from workers.sampler import BatchPlan
from workers.spans import Spans
from workers.step import GradientStep
from workers.task import Task
from workers.tasks.synthetic_mlp import SyntheticMLP

MLP = SyntheticMLP(inputs=16, width=32, depth=2, classes=4, samples=96)
MakeStep = Callable[..., tuple[GradientStep, BoundModel]]


@pytest.fixture
def make() -> Iterator[MakeStep]:
    """A gradient step and the model it is bound to."""
    made: list[GradientStep] = []

    def make_step(
        task: Task,
        *,
        num_workers: int = 1,
        rank: int = 0,
        accumulate: int = 1,
        dtype: torch.dtype = torch.float32,
        autocast: Literal["none", "bfloat16"] = "none",
        global_batch: int = 24,
    ) -> tuple[GradientStep, BoundModel]:
        torch.manual_seed(0)
        model = task.model().to(dtype)
        data = task.train_data()
        bound = BoundModel(model, Layout(specs_of(model), 1))
        plan = BatchPlan(len(data), num_workers=num_workers, global_batch=global_batch, accumulate=accumulate, seed=1)
        made.append(gradient_step(task, data, plan, bound, dtype, rank=rank, nonfinite="error", autocast=autocast))
        return made[-1], bound

    yield make_step
    for step in made:
        step.close()


def gradients(bound: BoundModel) -> dict[str, Tensor]:
    """What the rank pushes, by name; copies."""
    return {
        spec.name: torch.from_numpy(bound.gradients[start : start + spec.num_bytes].view(spec.dtype)).view(spec.shape).clone()
        for spec, start in zip(bound.layout.specs, bound.layout.tensor_flat.tolist(), strict=True)
        if spec.rule is Rule.OPTIMIZER
    }


@dataclass(frozen=True)
class Seen(SyntheticMLP):
    """Notes the types that the forward computes in."""

    dtypes: ClassVar[list[torch.dtype]] = []

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        out = model(batch[0])
        self.dtypes.append(out.dtype)
        return out.square().mean()


def test_forward_is_bf16_while_weights_and_gradients_stay_float32(make: MakeStep) -> None:
    Seen.dtypes.clear()
    step, bound = make(Seen(inputs=16, width=32, depth=2, classes=4, samples=96), autocast="bfloat16")
    contribution = step.compute(0, Spans())
    assert Seen.dtypes == [torch.bfloat16]
    assert {p.dtype for p in bound.model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in bound.model.parameters() if p.grad is not None} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")
    assert 0 < contribution.loss < 100


def test_bf16_gradients_are_near_the_exact_ones_and_no_others(make: MakeStep) -> None:
    (exact_step, exact), (step, bound) = make(MLP), make(MLP, autocast="bfloat16")
    exact_loss, loss = exact_step.compute(0, Spans()).loss, step.compute(0, Spans()).loss
    assert loss != exact_loss
    assert loss == pytest.approx(exact_loss, rel=0.01)
    for name, gradient in gradients(bound).items():
        reference = gradients(exact)[name]
        assert not torch.equal(gradient, reference)
        assert (gradient - reference).norm() < 0.05 * reference.norm()


def test_bf16_gradients_are_the_same_bits_every_time(make: MakeStep) -> None:
    pushed = []
    for _ in range(2):
        step, bound = make(MLP, autocast="bfloat16", accumulate=2)
        step.compute(3, Spans())
        pushed.append(bound.gradients.tobytes())
    assert pushed[0] == pushed[1]


def test_bf16_training_learns(make: MakeStep) -> None:
    step, bound = make(MLP, autocast="bfloat16")
    optimizer = torch.optim.SGD(bound.model.parameters(), lr=0.2)
    losses = []
    for t in range(60):
        losses.append(step.compute(t, Spans()).loss)
        optimizer.step()
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) / 2


def test_autocast_of_float64_is_refused() -> None:
    with pytest.raises(ValueError, match=r'train\.autocast = "bfloat16" needs train\.dtype = "float32", not "float64"'):
        TrainConfig(batch_size=1, dtype="float64", autocast="bfloat16")


@dataclass(frozen=True)
class Tokens(Task):
    """Sequences of unequal length, padded with -1: the mean is over tokens, so is the weight."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7))

    def train_data(self) -> TensorData:
        rng = np.random.default_rng(0)
        tokens = torch.from_numpy(rng.integers(0, 7, (50, 9)))
        lengths = torch.from_numpy(rng.integers(0, 9, (50, 1)))
        lengths[:6] = 0
        return TensorData(tokens, torch.where(torch.arange(9) < lengths, tokens.roll(1, 1), -1))

    validation_data = train_data

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, float]:
        tokens, wanted = batch
        mean = functional.cross_entropy(model(tokens).flatten(0, 1), wanted.flatten(), ignore_index=-1)
        return mean, float((wanted >= 0).sum())


@pytest.mark.parametrize(("num_workers", "accumulate"), [(1, 1), (1, 4), (2, 3), (3, 1), (4, 7), (30, 1)])
def test_accumulated_token_losses_are_the_mean_over_all_tokens(make: MakeStep, num_workers: int, accumulate: int) -> None:
    """Against one backward over the whole global batch; some micro-batches and some ranks have no token at all."""
    task = Tokens()
    reference = make(task, dtype=torch.float64)[1].model
    plan = BatchPlan(50, num_workers=1, global_batch=24, accumulate=1, seed=1)
    for t in range(3):
        reference.zero_grad()
        loss, tokens = task.loss(reference, task.train_data().batch(plan.global_indices(t)))
        loss.backward()  # type: ignore[no-untyped-call]
        sums = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
        total = loss_sum = 0.0
        for rank in range(num_workers):
            step, bound = make(task, num_workers=num_workers, rank=rank, accumulate=accumulate, dtype=torch.float64)
            contribution = step.compute(t, Spans())
            total += contribution.weight
            if contribution.weight:
                loss_sum += contribution.loss * contribution.weight
                for name, gradient in gradients(bound).items():
                    sums[name] += gradient * contribution.weight
        assert total == tokens > 0
        assert loss_sum / total == pytest.approx(loss.item(), rel=1e-12)
        for name, parameter in reference.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(sums[name] / total, parameter.grad, rtol=1e-11, atol=1e-14)


def test_a_rank_whose_samples_have_no_token_pushes_nothing(make: MakeStep) -> None:
    step, bound = make(Tokens(), num_workers=50, rank=0, global_batch=50)
    contributions = [make(Tokens(), num_workers=50, rank=rank, global_batch=50)[0].compute(0, Spans()) for rank in range(50)]
    empty = next(rank for rank, contribution in enumerate(contributions) if contribution.weight == 0)
    step, bound = make(Tokens(), num_workers=50, rank=empty, global_batch=50)
    assert step.compute(0, Spans()).samples == 1
    assert not any(bound.is_present(i) for i in range(len(bound.layout.specs)))
    assert sum(c.samples for c in contributions) == 50


@dataclass(frozen=True)
class Dropping(SyntheticMLP):
    masks: ClassVar[list[list[float]]] = []

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(self.inputs, self.classes))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        model[0].register_forward_hook(lambda _, given, out: self.masks.append((out / given[0]).flatten().tolist()))  # type: ignore[index]
        return super().loss(model, batch)


def test_dropout_is_a_function_of_seed_step_rank_and_micro_batch(make: MakeStep) -> None:
    """Each rank drops by its own mask; asked again, or after other steps, by the same one."""
    task = Dropping(inputs=16, classes=4, samples=24)

    def pushed(step: int, rank: int, accumulate: int = 1, before: tuple[int, ...] = ()) -> bytes:
        compute, bound = make(task, num_workers=2, rank=rank, accumulate=accumulate)
        for earlier in before:
            compute.compute(earlier, Spans())
        torch.rand(7)
        compute.compute(step, Spans())
        return bound.gradients.tobytes()

    assert pushed(2, 1) == pushed(2, 1, before=(0, 1)) == pushed(2, 1, before=(5,))
    assert len({pushed(step, rank) for step in (2, 3) for rank in (0, 1)}) == 4
    Dropping.masks.clear()
    pushed(2, 0, accumulate=3)
    masks = Dropping.masks[0], Dropping.masks[1], Dropping.masks[-1]
    assert {len(mask) for mask in masks} == {4 * 16}
    assert masks[0] != masks[1] != masks[2] != masks[0]
