"""What may not leave before backward has ended is found out in the first step; later surprises end the run."""

import copy

import pytest
import torch
from torch import nn

from ps.errors import ConfigError
from ps.layout import Layout
from tests.workers.alone import Nobody
from tests.workers.lazy import Alone
from tests.workers.test_overlap import job
from workers.binding import BoundModel, specs_of
from workers.pushes import Pushes
from workers.spans import Spans


def last_ready(alone: Alone) -> list[str]:
    """What left when backward had ended."""
    alone.lazy.log.clear()
    alone.step()
    return [names for kind, names in alone.lazy.log if kind == "ready"][-1]


def test_gradients_that_a_backward_makes_in_two_parts_leave_at_its_end() -> None:
    alone = Alone(job("reentrant checkpoint called twice"))
    alone.step()
    assert last_ready(alone) == ["block.0.weight", "block.0.bias"]


def test_buffers_that_backward_changes_leave_at_its_end() -> None:
    alone = Alone(job("batch statistics under checkpoint"))
    alone.step()
    assert {"block.1.1.running_mean", "block.1.1.running_var", "block.1.1.num_batches_tracked"} <= set(last_ready(alone))


def test_a_gradient_that_grows_after_it_has_left_ends_the_run() -> None:
    alone = Alone(job("reentrant checkpoint"))
    alone.step()
    alone.bound.model.twice = True
    with pytest.raises(ConfigError, match=r"the gradient of block\.0\.\w+ was added to after it had been pushed: .*train.overlap = false"):
        alone.step()


def test_a_buffer_that_changes_after_it_has_left_ends_the_run() -> None:
    alone = Alone(job("batch statistics"))
    alone.step()
    model = alone.bound.model

    def changes(parameter: torch.Tensor) -> None:
        model.norm.running_var.mul_(2)

    model.first.weight.register_post_accumulate_grad_hook(changes)
    with pytest.raises(ConfigError, match=r"the buffer norm\.running_var was changed by backward after it had been pushed"):
        alone.step()


@pytest.mark.parametrize("early", [True, False])
def test_gradients_are_added_up_in_the_memory_that_they_are_pushed_from(early: bool) -> None:
    model = nn.Linear(5, 3).double()
    reference = copy.deepcopy(model)
    bound = BoundModel(model, Layout(specs_of(model), 1))
    bound.install(0)
    pushes = Pushes(bound, Nobody(), Spans(), early=early, own_loop=False, adds_in_place=True)
    at = torch.from_numpy(bound.gradients)
    for step, (first, second) in enumerate(torch.randn(3, 2, 4, 5, dtype=torch.float64)):
        for one in (model, reference):
            one.zero_grad(set_to_none=True)
            one(first).square().sum().backward()
        assert model.weight.grad is not None and 0 <= model.weight.grad.data_ptr() - at.data_ptr() < len(at)
        pushes.begin(step, (0.0, 8.0, 8.0, 1.0), weight=8.0, divide=True)
        for one in (model, reference):
            one(second).square().sum().backward()
        pushes.end()
        for index, parameter in enumerate(reference.parameters()):
            assert parameter.grad is not None and torch.equal(bound._views[2][index], parameter.grad / 8)
