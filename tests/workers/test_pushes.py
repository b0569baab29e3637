"""What may not leave before backward has ended is found out in the first step; later surprises end the run."""

import pytest
import torch

from ps.errors import ConfigError
from tests.workers.lazy import Alone
from tests.workers.test_overlap import job


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
