"""With one server on its host a model computes in the server's own memory, where a write would kill the process."""

from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch
from torch import nn

from ps.config import CommConfig
from ps.errors import VersionGone
from tests.ps.cluster import Cluster, Member, cluster, start
from tests.ps.training import Job, Overlap, run


def served(num_servers: int = 1, *, comm: CommConfig | None = None) -> AbstractContextManager[Cluster]:
    return cluster(1, num_servers, comm=comm)


def step(overlap: Overlap, number: int, model: nn.Module, *, words: bool = False, has_samples: bool = True) -> None:
    """One step from `enter` to the installed parameters."""
    overlap.enter()
    if has_samples:
        with overlap.layers.traced():
            loss = model(torch.tensor([[1, 2]]) if words else torch.ones(3, 4)).square().mean()
    overlap.pushes.begin(number, (0.0, 1.0, 1.0, 1.0) if has_samples else None, weight=float(has_samples), divide=False)
    if has_samples:
        loss.backward()
    overlap.pushes.end()
    overlap.step(number)
    overlap.settle()


def is_in_servers_memory(member: Member) -> bool:
    """Whether all of the model's parameters lie there, or none does."""
    store = member.client._state.lines[0].store
    copies = (store.flat_copies if store else None) or ()
    ranges = [range(copy.ctypes.data, copy.ctypes.data + len(copy)) for copy in copies]
    found = {any(parameter.data_ptr() in its for its in ranges) for parameter in member.bound.model.parameters()}
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize(
    ("num_servers", "comm", "expected"), [(1, None, True), (2, None, False), (1, CommConfig(shared_memory=False), False)], ids=["one", "two", "grpc"]
)
def test_parameters_lie_in_the_memory_of_the_one_server_of_the_host(num_servers: int, comm: CommConfig | None, expected: bool) -> None:
    with served(num_servers, comm=comm) as servers:
        member = servers.member(0, nn.Linear(4, 40))
        start(member)
        overlap = Overlap(member)
        for number in range(3):
            step(overlap, number, member.bound.model)
            assert is_in_servers_memory(member) is expected
        assert all(torch.equal(value, dict(member.bound.model.named_parameters())[name]) for name, value in servers.weights(3).items())


def test_a_model_whose_forward_writes_to_a_parameter_keeps_its_own_memory() -> None:
    with served() as servers:
        member = servers.member(0, nn.Embedding(4, 40, max_norm=0.5))
        start(member)
        overlap = Overlap(member)
        for number in range(3):
            step(overlap, number, member.bound.model, words=True)
            assert not is_in_servers_memory(member)


def test_whether_forward_writes_is_not_known_before_there_was_one() -> None:
    with served() as servers:
        member = servers.member(0, nn.Embedding(4, 40, max_norm=0.5))
        start(member)
        overlap = Overlap(member)
        for number in range(3):
            step(overlap, number, member.bound.model, words=True, has_samples=number > 0)
            assert not is_in_servers_memory(member)


def test_streams_that_break_keep_the_servers_memory_and_change_no_bit() -> None:
    job = Job(num_servers=1, num_workers=2)
    assert run(replace(job, breaks=True)).params_sha256 == run(job).params_sha256


def test_a_server_that_comes_back_with_other_memory_ends_the_worker() -> None:
    with served() as servers:
        model = nn.Linear(4, 40)
        member = servers.member(0, model)
        start(member)
        overlap = Overlap(member)
        step(overlap, 0, model)
        before = member.client._state.in_place
        assert before is not None
        before.file = (0, 0)
        member.client._state.lines[0]._stream.cancel()
        with pytest.raises(VersionGone, match="server 0 came back with other memory, and rank 0 computes in the former one"):
            step(overlap, 1, model)
