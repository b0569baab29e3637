"""Communication that overlaps with compute changes no bit."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from ps.errors import ConfigError, NonFinite
from tests.ps.training import Job, run
from tests.workers.lazy import Alone
from tests.workers.overlapped import MODELS, Overlapped, Surprise
from workers.config import TrainConfig

STEPS = 7


def job(name: str, *, overlap: bool = True, accumulate: int = 1, **task: Any) -> Job:
    train = TrainConfig(global_batch_size=12, accumulate=accumulate, max_steps=STEPS, epochs=10, seed=3, dtype="float64")
    return Job(task=Overlapped(name=name, **task), train=train, overlap=overlap)


def away_in_second_step(alone: Alone) -> dict[str, set[str]]:
    """What has not landed when each layer's forward begins."""
    alone.step()
    seen: dict[str, set[str]] = {}

    def note(name: str, module: nn.Module, inputs: Any) -> None:
        seen[name] = seen.get(name, set()) | alone.lazy.away

    for name, module in alone.bound.model.named_modules():
        module.register_forward_pre_hook(partial(note, name))
    alone.step()
    return seen


def trained(job: Job) -> tuple[Alone, dict[str, torch.Tensor], list[float]]:
    alone = Alone(job)
    losses = [alone.step() for _ in range(job.steps)]
    return alone, alone.weights(), losses


@pytest.mark.parametrize("decay", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_overlap_changes_no_bit(name: str, accumulate: int, decay: bool) -> None:
    task = job(name, accumulate=accumulate, decay=decay)
    alone, weights, losses = trained(task)
    _, wanted, wanted_losses = trained(replace(task, overlap=False))
    assert losses == wanted_losses
    assert all(torch.equal(weights[key], wanted[key]) for key in wanted)
    assert alone.overlap.layers.is_layerwise


@pytest.mark.parametrize("name", ["attention", "branches", "batch statistics", "reentrant checkpoint"])
def test_micro_batches_without_weight_change_no_bit(name: str) -> None:
    task = job(name, accumulate=4, weighted=True)
    _, weights, losses = trained(task)
    _, wanted, wanted_losses = trained(replace(task, overlap=False))
    assert str(losses) == str(wanted_losses)
    assert all(torch.equal(weights[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"weights made by hooks", "batch statistics", "branches"}))
def test_the_first_layer_computes_before_the_last_has_landed(name: str) -> None:
    seen = away_in_second_step(Alone(job(name)))
    assert {"head.weight", "head.bias"} <= seen[""]
    assert not any(key.startswith("head.") for key in seen["head"])


def test_every_layer_waits_for_its_own_alone() -> None:
    seen = away_in_second_step(Alone(job("layer called twice")))
    assert seen["between"] == {"head.weight", "head.bias", "pserver.sums"}


def test_what_no_forward_of_its_own_uses_is_waited_for_by_the_layer_around() -> None:
    seen = away_in_second_step(Alone(job("attention")))
    assert "attention.out_proj.weight" in seen["inner"] - seen["attention"]
    assert "attention.out_proj" not in seen


def test_what_is_used_before_the_model_is_called_is_waited_for_at_the_start() -> None:
    seen = away_in_second_step(Alone(job("layer called twice", decay=True)))
    assert seen[""] == {"pserver.sums"}


def test_what_the_first_step_has_not_used_is_waited_for_at_the_start() -> None:
    seen = away_in_second_step(Alone(job("branches")))
    assert not any(key.startswith("never.") for key in seen[""])


def test_frames_are_wanted_in_the_order_of_use() -> None:
    alone = Alone(job("layer called twice"))
    alone.step()
    assert [key.split(".")[0] for key in alone.lazy.order] == ["again", "again", "between", "between", "head", "head"]


def test_gradients_leave_as_backward_makes_them() -> None:
    alone = Alone(job("layer called twice"))
    alone.step()
    alone.lazy.log.clear()
    alone.step()
    ready = [names for kind, names in alone.lazy.log if kind == "ready"]
    assert ready[0] == ["pserver.sums"]
    assert {name.split(".")[0] for names in ready[1:3] for name in names} == {"head"}
    assert all(len(names) == 1 for names in ready)
    assert {name.split(".")[0] for name in ready[-1]} == {"again"}


@pytest.fixture
def turning() -> Iterator[None]:
    yield
    Surprise.turn = ""


@pytest.mark.usefixtures("turning")
@pytest.mark.parametrize("name", ["late.weight", "late.bias", "norm.1.running_var"])
def test_a_use_that_the_first_step_has_not_shown_ends_the_run_and_says_why(name: str) -> None:
    alone = Alone(job("surprise"))
    for _ in range(3):
        alone.step()
    Surprise.turn = name
    with pytest.raises(ConfigError, match=rf"loss is nan at step 3 on rank 0, .*{name} was used where the first step did not.*train.overlap = false"):
        alone.step()


@pytest.mark.usefixtures("turning")
@pytest.mark.parametrize("name", ["late.weight", "late.bias", "norm.1.running_var"])
def test_without_overlap_tensors_may_be_used_anywhere(name: str) -> None:
    alone = Alone(job("surprise", overlap=False))
    alone.step()
    Surprise.turn = name
    assert math.isfinite(alone.step())


@pytest.mark.usefixtures("turning")
def test_a_loss_that_is_not_finite_by_itself_is_not_blamed_on_overlap() -> None:
    alone = Alone(job("surprise"))
    alone.step()
    Surprise.turn = "nan"
    with pytest.raises(NonFinite, match="lower optimizer.lr"):
        alone.step()


@pytest.mark.usefixtures("turning")
def test_where_such_steps_are_skipped_overlap_changes_no_bit() -> None:
    found = []
    for overlap in (True, False):
        task = job("surprise", overlap=overlap)
        alone = Alone(replace(task, optimizer=replace(task.optimizer, nonfinite="skip")))
        alone.step()
        Surprise.turn = "nan"
        alone.step()
        Surprise.turn = ""
        found.append(alone.weights())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0] if "running" in key)


@pytest.mark.parametrize("num_servers", [1, 2])
@pytest.mark.parametrize("name", ["attention", "tied head", "reentrant checkpoint called twice", "batch statistics", "lstm"])
def test_overlap_with_servers_changes_no_bit(name: str, num_servers: int) -> None:
    task = replace(job(name, drops=False), num_servers=num_servers, num_workers=3)
    found, wanted = run(task), run(replace(task, overlap=False))
    assert (found.params_sha256, found.buffers_sha256, found.sums) == (wanted.params_sha256, wanted.buffers_sha256, wanted.sums)
