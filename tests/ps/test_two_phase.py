"""Steps that need the norms of all shards before any of them may apply."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protos import pserver_pb2 as pb
from ps.config import OptimizerConfig
from ps.errors import MalformedFrame
from ps.frame import Bytes
from ps.layout import Rule, TensorSpec
from ps.norms import decide
from ps.plan import Plan
from tests.ps.bench import Bench, settings, specs_of

CLIP = OptimizerConfig(lr=1.0, max_grad_norm=1.0)
SKIP = OptimizerConfig(lr=1.0, nonfinite="skip")
FINITE = st.floats(-1e100, 1e100)


class Shards:
    """Shards of one model; every rank pushes to all of them and relays norms between them."""

    def __init__(
        self, num_servers: int, num_workers: int = 2, *, optimizer: OptimizerConfig = CLIP, sizes: tuple[int, ...] = (9000, 3, 8192)
    ) -> None:
        specs = [*specs_of(*sizes), TensorSpec(name="sums", shape=(1,), dtype="float64", rule=Rule.SUM)]
        configs = [settings(num_workers, shard=s, num_servers=num_servers, optimizer=optimizer) for s in range(num_servers)]
        self.plan = Plan(steps_per_epoch=2, total_steps=100)
        self.benches = [Bench(specs, config, plan=self.plan) for config in configs]
        for bench in self.benches:
            bench.init(bench.flat(1.0))
        self.ranks = range(num_workers)

    def flat(self, *values: float) -> Bytes:
        return self.benches[0].flat([np.full(spec.shape, value) for spec, value in zip(self.benches[0].layout.specs, values, strict=True)])

    def push(self, step: int, flats: list[Bytes | None]) -> None:
        for rank, flat in enumerate(flats):
            for bench in self.benches:
                bench.push_all(rank, step, flat)

    def relay(self, step: int, sources: list[int] | None = None, rank: int = 0) -> None:
        """The rank passes on what it has been sent of the step's norms, to all shards."""
        for bench in self.benches:
            for header, _ in bench.lines[rank].of_kind(pb.NORMS):
                if header.step == step and (sources is None or header.norms_shard in sources):
                    for other in self.benches:
                        other.shard.learn_norms(other.member(rank), header)

    @property
    def versions(self) -> set[int]:
        return {bench.store.version for bench in self.benches}

    def values(self, version: int) -> list[np.ndarray]:
        whole = [np.zeros(spec.shape) for spec in self.benches[0].layout.specs]
        for bench in self.benches:
            for chunk, tensor in enumerate(bench.mine.tensor.tolist()):
                start = int(bench.layout.chunk_start[bench.mine.chunks[chunk]])
                size = int(bench.mine.num_bytes[chunk]) // 8
                memory = bench.store.copy_of(version, next(b.run for b in bench.mine.blocks if b.run.first <= chunk < b.run.stop))
                at = int(bench.mine.local[chunk])
                whole[tensor].ravel()[start : start + size] = memory[at : at + 8 * size].view(np.float64)
        return whole


@given(st.lists(FINITE, min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_the_factor_is_torchs(values: list[float], max_norm: float) -> None:
    grad = torch.tensor(values, dtype=torch.float64)
    parameter = torch.zeros_like(grad, requires_grad=True)
    parameter.grad = grad.clone()
    torch.nn.utils.clip_grad_norm_([parameter], max_norm)
    found = grad * decide(np.array(values) ** 2, max_norm, skip_nonfinite=False).factor
    np.testing.assert_allclose(found, parameter.grad, rtol=1e-12)


@given(st.lists(st.floats(0, 1e300), min_size=2, max_size=20), st.randoms())
def test_the_factor_depends_neither_on_order_nor_on_sharding(squares: list[float], random: object) -> None:
    shuffled = list(squares)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decide(np.array(squares), 1.0, skip_nonfinite=False) == decide(np.array(shuffled), 1.0, skip_nonfinite=False)


def test_a_norm_too_large_for_a_number_clips_to_nothing_as_in_torch() -> None:
    assert decide(np.array([1.7e308, 1.7e308]), 1.0, skip_nonfinite=False).factor == 0.0
    assert decide(np.array([math.inf, 1.0]), 1.0, skip_nonfinite=False).factor == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_skips(bad: float) -> None:
    assert decide(np.array([1.0, bad]), None, skip_nonfinite=True).skip
    assert decide(np.array([1.0, 2.0]), None, skip_nonfinite=True) == decide(np.array([1.0, 2.0]), None, skip_nonfinite=False)


@pytest.mark.parametrize("num_servers", [1, 2, 3, 6])  # 6: more than there are chunks
def test_no_shard_applies_before_it_knows_all_norms_and_all_use_one_factor(num_servers: int) -> None:
    shards = Shards(num_servers)
    shards.push(0, [shards.flat(0.5, 2.0, 0.25, 1.0), shards.flat(0.5, 2.0, 0.25, 1.0)])
    if num_servers > 1:
        assert 0 in shards.versions and 1 not in shards.versions
        shards.relay(0, sources=list(range(1, num_servers)))
        assert shards.benches[0].store.version == 1, "shard 0 knows its own norms"
    shards.relay(0)
    assert {bench.store.version for bench in shards.benches if len(bench.mine)} == {1}
    norm = math.sqrt(9000 * 0.25 + 3 * 4 + 8192 * 0.0625)
    for value, grad in zip(shards.values(1), (0.5, 2.0, 0.25), strict=False):
        np.testing.assert_allclose(value, 1 - grad / (norm + 1e-6), rtol=1e-14)


@pytest.mark.parametrize("where", range(3))
def test_a_gradient_that_is_not_finite_skips_the_step_on_all_shards(where: int) -> None:
    shards = Shards(3, optimizer=SKIP)
    good = shards.flat(0.5, 0.5, 0.5, 4.0)
    shards.push(0, [good, good])
    shards.relay(0)
    before = shards.values(1)
    bad = shards.flat(*[math.nan if i == where else 0.5 for i in range(3)], 8.0)
    shards.push(1, [good, bad])
    shards.relay(1)
    assert shards.versions == {2}
    for value, old in zip(shards.values(2), before, strict=True):
        np.testing.assert_array_equal(value, old)
    shards.push(2, [good, good])
    shards.relay(2)
    np.testing.assert_array_equal(shards.values(3)[1], before[1] - 0.5)
    assert {int(n) for bench in shards.benches for n in bench.store.updates(3, bench.mine.blocks[0].run)} == {2}


def test_a_skipped_first_step_of_an_epoch_does_not_keep_the_sums_of_the_last() -> None:
    shards = Shards(2, num_workers=1, optimizer=SKIP)
    for step, value in enumerate([0.5, 0.5, math.nan, 0.5]):
        shards.push(step, [shards.flat(value, 0.5, 0.5, 4.0)])
        shards.relay(step)
    assert shards.values(4)[3].tolist() == [4.0]


def test_a_restarted_shard_applies_by_its_record_without_new_norms() -> None:
    shards = Shards(2, num_workers=1)
    grad = shards.flat(0.5, 2.0, 0.25, 1.0)
    shards.push(0, [grad])
    first = shards.benches[0]
    memory = first.memory.copy()  # all runs complete, nothing known of the other shard
    shards.relay(0)
    wanted = shards.values(1)
    again = Bench(first.layout.specs, first.config, memory, plan=shards.plan)
    again.push_all(0, 0, grad)
    assert again.store.version == 0
    shards.benches[1].push_all(0, 0, grad)
    for header, _ in shards.benches[1].lines[0].of_kind(pb.NORMS):
        again.shard.learn_norms(again.member(0), header)
    assert again.store.version == 1
    shards.benches[0] = again
    for found, value in zip(shards.values(1), wanted, strict=True):
        np.testing.assert_array_equal(found, value)


def test_the_record_is_whole_before_the_first_write() -> None:
    shards = Shards(2, num_workers=1)
    bench = shards.benches[0]
    recorded: list[int] = []
    write = bench.shard.updater.write

    def watched(step: int, *args: Any, **kwargs: Any) -> None:
        recorded.append(bench.store.recorded_step)
        write(step, *args, **kwargs)

    bench.shard.updater.write = watched  # type: ignore[method-assign]
    for step in range(2):
        shards.push(step, [shards.flat(0.5, 2.0, 0.25, 1.0)])
        shards.relay(step)
    assert set(recorded) == {0, 1} and recorded == sorted(recorded) and len(recorded) == 2 * len(bench.mine.frames(4096))
    assert bench.store.norms.sum() == pytest.approx(9000 * 0.25 + 3 * 4 + 8192 * 0.0625)


def test_a_record_outlives_its_shard() -> None:
    shards = Shards(2, num_workers=1)
    grad = shards.flat(0.5, 2.0, 0.25, 1.0)
    shards.push(0, [grad])
    first = shards.benches[0]
    norms = {int(h.norms_shard): np.array(h.norms) for bench in shards.benches for h, _ in bench.lines[0].of_kind(pb.NORMS)}
    memory = first.memory.copy()
    again = Bench(first.layout.specs, first.config, memory, plan=shards.plan)
    again.store.record(0, np.concatenate([norms[0], norms[1]]))  # killed between the record and the first write
    again.push_all(0, 0, grad)
    shards.relay(0)
    assert again.store.version == 1 and np.array_equal(
        again.store.params(1, again.mine.blocks[0].run), first.store.params(1, first.mine.blocks[0].run)
    )
    assert {int(h.norms_shard) for h, _ in again.lines[0].of_kind(pb.NORMS)} == {0, 1}, "the other shard may need them again"


def test_norms_of_another_step_change_nothing_and_wrong_ones_are_refused() -> None:
    shards = Shards(2, num_workers=1)
    bench = shards.benches[0]
    right = pb.FrameHeader(kind=pb.NORMS, step=1, norms_shard=1, norms=[1.0] * shards.benches[1].mine.num_optimizer)
    bench.shard.learn_norms(bench.member(0), right)
    shards.push(0, [shards.flat(0.5, 2.0, 0.25, 1.0)])
    assert bench.store.version == 0
    for wrong in (pb.FrameHeader(norms_shard=1, norms=[1.0] * 9), pb.FrameHeader(norms_shard=7)):
        with pytest.raises(MalformedFrame, match="norms of shard"):
            bench.shard.learn_norms(bench.member(0), wrong)


def test_every_answer_to_a_push_carries_the_norms_once_per_stream() -> None:
    shards = Shards(2, num_workers=1)
    bench = shards.benches[0]
    shards.push(0, [shards.flat(0.5, 2.0, 0.25, 1.0)])
    assert len(bench.lines[0].of_kind(pb.NORMS)) == 1
    line = bench.join(0)
    bench.push_all(0, 0, shards.flat(0.5, 2.0, 0.25, 1.0))
    assert len(line.of_kind(pb.NORMS)) == 1
