"""Tasks whose methods return what they should not: what is said in a whole run."""

import re
from pathlib import Path

import pytest

from ps.errors import ConfigError
from tests.deploy.forked import train

WRONG = [
    ("no model", r"the task's model\(\) returned None: return a torch.nn.Module"),
    ("half model", r"parameter 0.weight of the model is float16: train in float32 or float64"),
    ("no data", r"the task's train_data\(\) returned None, which has no length: return map-style data"),
    ("vector loss", r"the task's loss\(\) returned a tensor of shape \[1\]: return the mean"),
    ("detached loss", r"the task's loss\(\) returned a tensor without gradient: compute it"),
    ("weightless loss", r"the task's loss\(\) returned the weight 0 on every worker in 32 steps: nothing is learned"),
    ("metric loss", r"the task's metrics\(\) returns a metric called loss, .*: rename it"),
]


@pytest.mark.parametrize(("how", "message"), WRONG)
def test_a_task_that_returns_what_it_should_not_is_told_what_to_return(how: str, message: str, tmp_path: Path) -> None:
    result = train(tmp_path, "tests.deploy.broken:Wrong", {"how": how}, batch_size=8, epochs=1, num_workers=1, num_servers=1)
    assert isinstance(result.error, ConfigError)
    assert re.search(message, str(result.error)) and "\n" not in str(result.error), result.error
