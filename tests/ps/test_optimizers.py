"""Every update rule against plain torch, and the same bits however chunks are grouped into runs."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import optim

from ps.config import OptimizerConfig
from ps.layout import CHUNK_ELEMENTS
from ps.optimizers import can_divide, num_slots, update_rule
from tests.ps.rules import CONFIGS, EMA, TABLE, Parameters

STEPS = 25


def gradients(size: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for _ in range(STEPS)]


def ours(config: OptimizerConfig, start: torch.Tensor, grads: list[torch.Tensor], cuts: tuple[int, ...] = ()) -> torch.Tensor:
    """The parameters after all steps, every step done in runs that end at `cuts`."""
    params = start.clone()
    slots = [torch.zeros_like(params) for _ in range(num_slots(config))]
    rule = update_rule(config)
    lr = config.settings().lr
    for step, grad in enumerate(grads):
        for a, b in zip((0, *cuts), (*cuts, len(params)), strict=True):
            rule(params[a:b], grad[a:b].clone(), [slot[a:b] for slot in slots], step, lr)
    return params


def theirs(make: Callable[[Parameters], optim.Optimizer], start: torch.Tensor, grads: list[torch.Tensor]) -> torch.Tensor:
    params = start.clone().requires_grad_()
    optimizer = make([params])
    for grad in grads:
        params.grad = grad.clone()
        optimizer.step()
    return params.detach()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", TABLE)
def test_a_rule_is_torchs(name: str, dtype: torch.dtype) -> None:
    config, make, float32_tolerance = TABLE[name]
    tolerance = 1e-10 if dtype is torch.float64 else float32_tolerance or 2e-3
    start = torch.linspace(-2, 2, 1000, dtype=dtype)
    grads = gradients(1000, dtype)
    found, wanted = ours(config, start, grads), theirs(make, start, grads)
    assert float((found - wanted).abs().max()) <= tolerance
    assert float((wanted - start).abs().max()) >= 1000 * min(tolerance, 1e-5), "the weights have hardly moved"


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if can_divide(config, "float32")])
@pytest.mark.parametrize("divisor", [2.0, 3.0, 13 / 7])
def test_a_gradient_is_divided_by_the_kernel_to_the_bits_of_a_division_before(name: str, divisor: float) -> None:
    config, bits = CONFIGS[name], []
    for by_kernel in (True, False):
        params, slots = torch.linspace(-2, 2, 1003), [torch.zeros(1003) for _ in range(num_slots(config))]
        rule, lr = update_rule(config), config.settings().lr
        for step, grad in enumerate(gradients(1003, torch.float32)):
            rule(params, *((grad.clone(), slots, step, lr, divisor) if by_kernel else (grad / divisor, slots, step, lr)))
        bits.append([tensor.numpy().tobytes() for tensor in (params, *slots)])
    assert bits[0] == bits[1]


def test_the_table_has_every_optimizer() -> None:
    assert {config.name for config in CONFIGS.values()} == set(OptimizerConfig.__annotations__["name"].__args__)


def test_moving_average_momentum_is_its_two_lines() -> None:
    start = torch.linspace(-2, 2, 1000, dtype=torch.float64)
    grads = gradients(1000, torch.float64)
    w, v = start.clone(), torch.zeros_like(start)
    for g in grads:
        v = 0.9 * v + (1 - 0.9) * g
        w = w - 0.1 * v
    assert float((ours(EMA, start, grads) - w).abs().max()) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CONFIGS)
@hypothesis_settings(max_examples=6)
@given(data=st.data())
def test_grouping_chunks_into_runs_changes_no_bit(name: str, dtype: torch.dtype, data: st.DataObject) -> None:
    size = 3 * CHUNK_ELEMENTS + 77
    cuts = tuple(sorted(data.draw(st.sets(st.integers(1, size // 64).map(lambda i: 64 * i), max_size=6))))
    start = torch.linspace(-2, 2, size, dtype=dtype)
    grads = gradients(size, dtype)[:4]
    whole, parts = ours(CONFIGS[name], start, grads), ours(CONFIGS[name], start, grads, cuts)
    assert np.array_equal(whole.numpy().view(np.uint8), parts.numpy().view(np.uint8))


@pytest.mark.parametrize("name", CONFIGS)
def test_zeros_between_tensors_stay_zeros(name: str) -> None:
    zeros = torch.zeros(64)
    assert not ours(CONFIGS[name], zeros, [zeros] * 3).any()
