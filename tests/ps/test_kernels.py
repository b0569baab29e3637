"""Compiled kernels give the bits of torch's and numpy's, wherever memory begins and however long it is."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ps import kernels
from ps.config import OptimizerConfig
from ps.errors import NonFinite
from ps.kernels import OnePassRule, one_pass_rule
from ps.layout import CHUNK_ELEMENTS, Run
from ps.optimizers import num_slots, update_rule
from tests.ps.bench import Bench, settings, specs_of
from tests.ps.rules import CONFIGS
from tests.ps.test_shared import drained, rejoin
from tests.ps.test_shared import push as push_shared

LONG = (1 << 18) + 100
"""Elements of memory that is streamed."""
IN_ONE_PASS = [name for name, config in CONFIGS.items() if config.name in ("sgd", "adam", "adamw")]
_BITS = {"zeros": 0.0, "tiny": 1e-42, "large": 1e18}


def rule_of(config: OptimizerConfig) -> OnePassRule:
    rule = one_pass_rule(config)
    assert rule is not None, "not compiled: is there a C compiler (gcc)? make setup"
    return rule


def parts(count: int, size: int, offset: int, seed: int) -> list[np.ndarray]:
    """Arrays of positive floats, `offset` elements from where numpy aligns them."""
    random = np.random.default_rng(seed)
    made = [np.empty(offset + size, np.float32)[offset:] for _ in range(count)]
    for array in made:
        array[:] = random.standard_normal(size) ** 2
    return made


def as_bytes(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [array.view(np.uint8) for array in arrays]


def torchs(config: OptimizerConfig, old: list[np.ndarray], terms: list[np.ndarray], updates: int, lr: float, divisor: float) -> list[bytes]:
    padding = -len(old[0]) % 64  # torch's kernels end in other bits after the last whole vector: our memory has none
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    grad, params, *slots = (torch.from_numpy(np.pad(array, (0, padding))) for array in (total, *old))
    update_rule(config)(params, grad, slots, updates, lr, divisor)
    return [tensor.numpy()[: len(old[0])].tobytes() for tensor in (params, *slots)]


@pytest.mark.parametrize("name", IN_ONE_PASS)
@given(
    size=st.sampled_from([1, 7, 64, 1000, 8192, 3 * 8192 + 5, LONG]),
    offset=st.integers(0, 9),
    num_terms=st.integers(1, 5),
    updates=st.sampled_from([0, 1, 6, 100_000]),
    divisor=st.sampled_from([1.0, 3.0, 13 / 7]),
    value=st.sampled_from([None, *_BITS]),
)
def test_a_rule_in_one_pass_has_torchs_bits(
    name: str, size: int, offset: int, num_terms: int, updates: int, divisor: float, value: str | None
) -> None:
    config = CONFIGS[name]
    old, terms = parts(1 + num_slots(config), size, offset, seed=1), parts(num_terms, size, offset, seed=2)
    if value:
        for array in (*old, *terms):
            array[::3] = _BITS[value]
    new = parts(len(old), size, offset + 1, seed=3)
    before = [array.tobytes() for array in (*old, *terms)]
    assert rule_of(config)(as_bytes(new), as_bytes(old), as_bytes(terms), updates, 0.02, divisor)
    assert [array.tobytes() for array in new] == torchs(config, old, terms, updates, 0.02, divisor)
    assert [array.tobytes() for array in (*old, *terms)] == before, "what is read was written to"


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan, "overflow"])
@pytest.mark.parametrize("at", [0, 63, 129, 999])
def test_a_sum_that_is_not_finite_is_told(odd: float | str, at: int) -> None:
    config = CONFIGS["adam"]
    old, terms, new = parts(3, 1000, 0, seed=1), parts(2, 1000, 0, seed=2), parts(3, 1000, 0, seed=3)
    for term in terms:
        term[at] = 3e38 if odd == "overflow" else odd
    assert not rule_of(config)(as_bytes(new), as_bytes(old), as_bytes(terms), 0, 0.1, 2.0)


@pytest.mark.parametrize("config", [OptimizerConfig(name="rmsprop"), OptimizerConfig(name="adagrad"), OptimizerConfig(name="adam", amsgrad=True)])
def test_other_rules_take_several_passes(config: OptimizerConfig) -> None:
    assert one_pass_rule(config) is None


def test_a_kernel_of_other_bits_is_noticed() -> None:
    adam, other = CONFIGS["adam"], replace(CONFIGS["adam"], beta2=0.999001)
    assert kernels._is_torchs(rule_of(adam), adam, 0)
    assert not kernels._is_torchs(rule_of(other), adam, 0)


def test_memory_that_does_not_fit_is_refused() -> None:
    rule, (a, b, c), terms = rule_of(CONFIGS["adam"]), as_bytes(parts(3, 100, 0, seed=1)), as_bytes(parts(2, 100, 0, seed=2))
    for new, old, summed in (
        ([a, b, c], [a, b], terms),
        ([a, b, c[:-4]], [a, b, c], terms),
        ([a, b, c], [a, b, c], [terms[0][:-4], terms[1]]),
        ([a[1:-3], b[4:], c[4:]], [a[4:], b[4:], c[4:]], [terms[0][4:]]),
        ([a[:-1], b[:-1], c[:-1]], [a[:-1], b[:-1], c[:-1]], [terms[0][:-1]]),
    ):
        with pytest.raises(ValueError, match="update"):
            rule(new, old, summed, 0, 0.1, 1.0)
    kept = a.copy()
    kept.flags.writeable = False
    with pytest.raises((BufferError, ValueError), match="read-only|not writable"):
        rule([kept, b, c], [a, b, c], terms, 0, 0.1, 1.0)
    with pytest.raises(ValueError, match="a copy is as long"):
        kernels.copy(np.zeros(4 * LONG, np.uint8), np.zeros(4 * LONG - 1, np.uint8))


@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from([0, 1, 31, 5000, (1 << 20) - 1, 1 << 20, (1 << 20) + 77]))
def test_a_copy_is_what_it_copies(to_at: int, from_at: int, size: int) -> None:
    values = np.arange(from_at + size, dtype=np.uint32).view(np.uint8)[from_at : from_at + size]
    memory = np.full(to_at + size + 64, 7, np.uint8)
    kernels.copy(memory[to_at : to_at + size], values)
    assert (memory[to_at : to_at + size] == values).all()
    assert (memory[:to_at] == 7).all() and (memory[to_at + size :] == 7).all(), "it wrote beside its place"


# -- a shard ---------------------------------------------------------------------------------------------------

SIZES = (3 * CHUNK_ELEMENTS + 5, 7, 64, 2 * CHUNK_ELEMENTS)


def final(config: OptimizerConfig, weights: Sequence[float], shared: Sequence[bool], absent: tuple[int, int] | None) -> list[bytes]:
    """A shard's memory after three steps of contributions that come in segments or in frames. `absent`: a rank, and the chunk it leaves out."""
    bench = Bench(specs_of(*SIZES, dtype="float32"), settings(len(weights), optimizer=config))
    random = np.random.default_rng(5)
    bench.init(bench.flat([random.standard_normal(size) for size in SIZES]))
    memories = [bench.flat([random.standard_normal(size) for size in SIZES]) for _ in weights]
    for rank, memory in enumerate(memories):
        if shared[rank]:
            rejoin(bench, rank, 1, memory)
    for step in range(3):
        bench.shard.work._pool.submit(lambda: None).result()
        for rank, memory in enumerate(memories):
            runs = [Run(0, bench.mine.num_versioned)]
            if absent and absent[0] == rank and step == 1:
                runs = [Run(0, absent[1]), Run(absent[1] + 1, bench.mine.num_versioned)]
                bench.push(rank, step, Run(absent[1], absent[1] + 1), None, weights[rank])
            for run in (run for run in runs if len(run)):
                if shared[rank]:
                    push_shared(bench, rank, step, memory, weight=weights[rank], run=run)
                else:
                    bench.push(rank, step, run, memory, weights[rank])
        with bench.shard._changed:
            assert bench.shard._changed.wait_for(lambda s=step: bench.store.version == s + 1, 30)
    drained(bench)
    memory = [bench.store.params(3, Run(0, len(bench.mine))), *bench.store.state(3, Run(0, len(bench.mine)))]
    return [part.tobytes() for part in memory]


@pytest.mark.parametrize("name", ["momentum", "adam"])
@given(data=st.data())
@hypothesis_settings(max_examples=30)
def test_a_shard_that_updates_in_one_pass_has_the_bits_of_several(name: str, data: st.DataObject) -> None:
    """A limit that nothing reaches makes it look at every mean, and so take several."""
    num_workers = data.draw(st.integers(1, 4))
    weights = data.draw(st.lists(st.sampled_from([1.0, 3.0]), min_size=num_workers, max_size=num_workers))
    shared = data.draw(st.lists(st.booleans(), min_size=num_workers, max_size=num_workers))
    absent = data.draw(st.none() | st.tuples(st.integers(0, num_workers - 1), st.integers(0, 6)))
    found = final(CONFIGS[name], weights, shared, absent)
    assert found == final(replace(CONFIGS[name], clip_value=1e30), weights, [False] * num_workers, absent)


def test_a_gradient_that_is_not_finite_ends_the_run_by_name() -> None:
    bench = Bench(specs_of(*SIZES, dtype="float32"), settings(1, optimizer=CONFIGS["adam"]))
    bench.init(bench.flat(1.0))
    gradient = [np.ones(size, np.float32) for size in SIZES]
    gradient[3][CHUNK_ELEMENTS + 1] = np.inf
    with pytest.raises(NonFinite, match="mean gradient of w3 is not finite at step 0"):
        bench.push(0, 0, Run(0, bench.mine.num_versioned), bench.flat(gradient))
    assert bench.store.version == 0
