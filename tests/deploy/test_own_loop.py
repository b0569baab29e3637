"""Own loops as a user runs them: the bits of the task way, the example, the command, and what their errors look like."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ps.config import OptimizerConfig
from tests.deploy.conftest import Ended
from tests.deploy.own_loops import HERE, Noisy, fit

ADAM = OptimizerConfig(name="adam", lr=0.01)


def summary_of(result: Any) -> dict[str, Any]:
    assert result.error is None, result.error
    summary: dict[str, Any] = json.loads((result.path / "summary.json").read_text())
    return summary


def bits_of(result: Any) -> tuple[str, str]:
    summary = summary_of(result)
    return summary["params_sha256"], summary["buffers_sha256"]


@pytest.mark.parametrize(
    ("loop", "task", "num_workers", "accumulate"),
    [
        ("noisy", Noisy(), 1, 1),
        ("noisy_telling_later", Noisy(), 2, 1),
        ("noisy_weighted", Noisy(weighted=True), 2, 1),
        ("noisy_accumulated", Noisy(), 3, 2),
        ("noisy", Noisy(), 5, 1),  # of its last batches of 2, three ranks have none
    ],
)
def test_an_own_loop_has_the_bits_of_the_task(loop: str, task: Noisy, num_workers: int, accumulate: int, tmp_path: Path) -> None:
    train = {"global_batch_size": 7, "accumulate": accumulate, "epochs": 2, "seed": 3}
    of_task = fit(tmp_path, task, train=train, num_workers=num_workers, num_servers=2, optimizer=ADAM)
    of_loop = fit(tmp_path, f"{HERE}:{loop}", train=train, num_workers=num_workers, num_servers=1, optimizer=ADAM)
    assert bits_of(of_loop) == bits_of(of_task)
    assert summary_of(of_loop)["steps"] == 8


def test_a_loop_may_leave_before_the_first_step(tmp_path: Path) -> None:
    result = fit(tmp_path, f"{HERE}:leaves_without_training", train={"batch_size": 5})
    summary = summary_of(result)
    assert (summary["steps"], summary["epochs"], summary["metrics"], summary["best"]) == (0, 0, {}, None)
    assert list(load_file(result.path / "weights" / "last.safetensors")) == ["bias", "weight"]


def test_a_loop_that_joins_nothing_ends_the_run(tmp_path: Path) -> None:
    result = fit(tmp_path, f"{HERE}:never_joins", train={"batch_size": 5})
    assert "has returned without ctx.optimizer(model): there is no model to train" in str(result.error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a loop that imports its neighbour, and initial values beside it."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "code").mkdir()
    (folder / "code" / "net.py").write_text("from torch import nn\n\ndef net():\n    return nn.Linear(2, 1)\n")
    (folder / "code" / "mine.py").write_text(
        "import torch\nfrom net import net\n\n"
        "def train(ctx):\n"
        "    model, x = net(), torch.ones(6, 2)\n"
        "    sampler = ctx.sampler(len(x))\n"
        "    opt = ctx.optimizer(model)\n"
        "    for step in ctx.steps():\n"
        "        opt.zero_grad()\n"
        "        model(x[sampler(step)]).mean().backward()\n"
        "        opt.step(weight=len(sampler(step)))\n"
        "        if step == 1 and ctx.report({'seen': 1.0}):\n"
        "            break\n\n"
        "def trian(ctx):\n"
        "    model, x = net(), torch.ones(6, 2)\n"
        "    ctx.sampler(len(x))\n"
        "    opt = ctx.optimizer(model)\n"
        "    for step in ctx.steps():\n"
        "        if ctx.rank == 1:\n"
        "            raise KeyError('no such\\ncolumn')\n"
        "        opt.step(weight=0)\n"
    )
    (folder / "job.toml").write_text('[train]\nbatch_size = 1\nepochs = 2\nloop = "code/other.py:train"\n')
    return folder


@pytest.fixture
def run_loop(folder: Path, pserver: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """`pserver run` in that folder."""
    monkeypatch.chdir(folder)
    return partial(pserver, "run", "job.toml", "--servers", "1", "--launcher", "process", "--json", "--set", f"run.storage_path={folder}/runs")


def test_the_command_runs_a_loop_of_a_file_that_imports_its_neighbour(run_loop: Callable[..., Ended]) -> None:
    ended = run_loop("--loop", "code/mine.py:train", "--workers", "1")
    assert ended.code == 0, ended.err
    summary = json.loads(ended.out)
    assert (summary["steps"], summary["metrics"]) == (12, {"seen": 1.0})


def test_an_error_in_the_loop_is_one_line_that_names_the_rank_and_the_stack_is_kept(folder: Path, run_loop: Callable[..., Ended]) -> None:
    ended = run_loop("--loop", str(folder / "code" / "mine.py:trian"), "--traceback")
    assert ended.code == 1
    *stack, line = ended.err.splitlines()
    assert line == "error: rank 1: KeyError: 'no such\\ncolumn'"
    assert any("in trian" in row for row in stack)


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        ("code/mine.py:trained", "train.loop = 'code/mine.py:trained': no trained in code/mine.py: did you mean train?"),
        ("code/min.py:train", "there is no file .*min.py: did you mean mine.py?"),
        ("code/mine.py", "names no function: write package.module:function or path/file.py:function"),
        ("mien:train", "No module named 'mien'"),
    ],
)
def test_a_loop_that_is_not_there_is_refused_before_anything_starts(loop: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy.config import load
    from ps.errors import ConfigError

    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=message):
        load("job.toml", [f"train.loop={loop}"])


def test_the_example_learns(tmp_path: Path) -> None:
    train = {"batch_size": 32, "epochs": 2, "seed": 0}
    result = fit(tmp_path, "examples/own_loop.py:train", train=train, optimizer=OptimizerConfig(name="adam", lr=0.003))
    summary = summary_of(result)
    assert (summary["steps"], summary["epochs"]) == (46, 2)
    assert summary["metrics"]["accuracy"] > 0.7
    assert summary["best"] is None, "no metric was chosen to judge by"


def test_the_page_for_users_shows_a_loop_that_runs(tmp_path: Path) -> None:
    page = Path("docs/own-loop.md").read_text()
    (tmp_path / "mine.py").write_text(page.split("```python\n")[1].split("```")[0])
    (tmp_path / "mynet.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def Net():\n    return nn.Linear(3, 1)\n\n"
        "def load():\n    made = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))\n    return made[:15], made[15:]\n\n"
        "def loss_of(model, batch):\n    return (model(batch).squeeze(1) - batch.sum(1)).square().mean()\n"
    )
    train = {"global_batch_size": 7, "epochs": 2}  # the third batch of an epoch is of one sample
    summary = summary_of(fit(tmp_path, f"{tmp_path}/mine.py:train", train=train))
    assert summary["best"]["version"] == summary["steps"] == 6
    assert summary["metrics"]["validation_loss"] == summary["best"]["validation_loss"]
