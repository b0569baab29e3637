import warnings

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ps.errors import ConfigError
from ps.frame import chunk_digests
from ps.layout import ALIGN_BYTES, CHUNK_ELEMENTS, Layout, Rule, Run
from ps.weights import SUMS
from workers.binding import SUM_NAMES, BoundModel, specs_of


class Everything(nn.Module):
    """Parameters, tied, frozen, empty and scalar ones; buffers of both rules, and one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)
        self.tied = nn.Linear(3, 5, bias=False)
        self.tied.weight = self.inner.weight
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.scalar = nn.Parameter(torch.tensor(3.0))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.register_buffer("cache", torch.ones(9), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.inner(x)) * self.scalar


def bound(num_servers: int = 2, *, copies: bool | None = None) -> BoundModel:
    torch.manual_seed(1)
    model = Everything()
    return BoundModel(model, Layout(specs_of(model), num_servers), copies=copies)


def view(made: BoundModel, memory: int, name: str) -> torch.Tensor:
    """A tensor in landing[0], landing[1] or the gradients (2)."""
    return made._views[memory][[spec.name for spec in made.layout.specs].index(name)]


def set_version(made: BoundModel, version: int, value: float) -> None:
    """Fills what landed as a version."""
    for view, spec in zip(made._views[version % 2], made.layout.specs, strict=True):
        if spec.rule is not Rule.FROZEN:
            view.fill_(value)


def test_every_distinct_tensor_has_its_rule_and_the_sums_come_last() -> None:
    rules = {spec.name: spec.rule for spec in specs_of(Everything())}
    assert rules == {
        "inner.weight": Rule.OPTIMIZER,
        "inner.bias": Rule.OPTIMIZER,
        "norm.weight": Rule.OPTIMIZER,
        "norm.bias": Rule.OPTIMIZER,
        "norm.running_mean": Rule.MEAN,
        "norm.running_var": Rule.MEAN,
        "norm.num_batches_tracked": Rule.EQUAL,
        "frozen": Rule.FROZEN,
        "scalar": Rule.OPTIMIZER,
        "empty": Rule.OPTIMIZER,
        SUMS: Rule.SUM,
    }
    assert list(rules)[-1] == SUMS


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float16])
def test_a_type_that_is_not_served_is_refused_by_name(dtype: torch.dtype) -> None:
    model = nn.Module()
    model.odd = nn.Parameter(torch.zeros(2, dtype=dtype))
    with pytest.raises(ConfigError, match="tensor odd of the model is (complex64|float16)"):
        specs_of(model)


def test_an_installed_version_is_what_the_model_computes_with_without_a_copy() -> None:
    made = bound()
    set_version(made, 1, 2.0)
    made.install(1)
    model = made.model
    assert torch.equal(model.inner.weight, torch.full((5, 3), 2.0)) and model.tied.weight is model.inner.weight
    assert (model.frozen == 1).all() and model.norm.num_batches_tracked == 2
    view(made, 1, "inner.weight").fill_(7.0)
    assert (model.inner.weight == 7.0).all(), "parameters are views of what landed"
    model.norm.running_mean.fill_(9.0)
    assert float(view(made, 1, "norm.running_mean")[0]) == 2.0, "forward changes buffers, never what landed"


def test_with_copies_a_model_keeps_its_own_memory() -> None:
    made = bound(copies=True)
    before = {name: t.data_ptr() for name, t in made.model.state_dict().items()}
    for version in (0, 1, 2):
        set_version(made, version, float(version))
        made.install(version)
        assert (made.model.inner.weight == version).all() and (made.model.norm.running_var == version).all()
        view(made, version, "inner.weight").fill_(7.0)
        assert (made.model.inner.weight == version).all()
    assert {name: t.data_ptr() for name, t in made.model.state_dict().items()} == before
    assert made.model.tied.weight is made.model.inner.weight


def test_with_copies_frozen_tensors_travel_once() -> None:
    made = bound(copies=True)
    view(made, 0, "frozen").fill_(3.0)  # as a pull brings it
    made.install(0)
    view(made, 1, "frozen").fill_(4.0)
    made.install(1)
    assert (made.model.frozen == 3.0).all()


def test_with_copies_a_models_own_order_of_elements_stays_and_its_values_are_right() -> None:
    model = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
    made = BoundModel(model, Layout(specs_of(model), 1), copies=True)
    weight = model.weight.detach().clone()
    made.install(0)
    assert torch.equal(model.weight, weight) and torch.equal(view(made, 0, "weight"), weight)
    model(torch.randn(1, 2, 4, 4).contiguous(memory_format=torch.channels_last)).sum().backward()
    made.gather(1.0, divide=False, sums=(1.0, 1.0, 1.0, 1.0))
    assert model.weight.is_contiguous(memory_format=torch.channels_last) and torch.equal(view(made, 2, "weight"), model.weight.grad)


@pytest.mark.parametrize("copies", [False, True])
def test_gradients_that_can_be_differentiated_leave_no_graph_behind(copies: bool) -> None:
    made = bound(copies=copies)
    made.install(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph=True", UserWarning)
        made.model(torch.ones(4, 3)).square().sum().backward(create_graph=True)
    made.gather(2.0, divide=copies, sums=(1.0, 1.0, 1.0, 1.0))
    assert made.model.scalar.grad.requires_grad and not view(made, 2, "scalar").requires_grad
    made.model.zero_grad(set_to_none=True)  # torch: breaks the cycle


def test_memory_and_tensors_are_aligned() -> None:
    made = bound()
    for memory in (*made.landing, made.gradients):
        assert memory.ctypes.data % ALIGN_BYTES == 0
    made.install(0)
    assert all(p.data_ptr() % ALIGN_BYTES == 0 for p in made.model.parameters() if p.numel())


def test_gradients_are_gathered_and_what_has_none_is_absent() -> None:
    made = bound()
    made.install(0)
    made.model(torch.randn(4, 3, generator=torch.Generator().manual_seed(0))).sum().backward()
    made.gather(4.0, divide=False, sums=(1.0, 4.0, 4.0, 1.0))
    names = [spec.name for spec in made.layout.specs]
    present = {name for i, name in enumerate(names) if made.is_present(i)}
    assert present == set(names) - {"frozen", "empty"}
    assert torch.equal(view(made, 2, "inner.weight"), made.model.inner.weight.grad)
    assert torch.equal(view(made, 2, "norm.running_mean"), made.model.norm.running_mean)
    assert view(made, 2, SUMS).tolist() == [1.0, 4.0, 4.0, 1.0]
    made.model.zero_grad(set_to_none=True)
    made.gather(4.0, divide=False, sums=(1.0, 4.0, 4.0, 1.0))
    assert not made.is_present(names.index("inner.weight")) and made.is_present(names.index("norm.running_mean"))


@pytest.mark.parametrize("copies", [False, True])
def test_gradients_of_micro_batches_are_divided_buffers_are_not(copies: bool) -> None:
    made = bound(copies=copies)
    made.install(0)
    made.model(torch.ones(4, 3)).sum().backward()
    made.gather(8.0, divide=True, sums=(1.0, 8.0, 8.0, 1.0))
    assert torch.equal(view(made, 2, "inner.weight"), made.model.inner.weight.grad / 8)
    assert torch.equal(view(made, 2, "norm.running_mean"), made.model.norm.running_mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_digests_are_made_of_what_is_copied_and_forgotten_when_it_changes(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(700, 3 * 2**10, dtype=dtype), nn.BatchNorm1d(3 * 2**10, dtype=dtype))
    layout = Layout(specs_of(model), 2)
    made = BoundModel(model, layout)
    made.digests_gradients = True
    made.install(0)
    weight = next(i for i, spec in enumerate(layout.specs) if spec.name == "0.weight")
    assert layout.specs[weight].num_elements % CHUNK_ELEMENTS and layout.specs[weight].num_bytes > 8 << 20
    for number in range(2):
        model.zero_grad()
        model(torch.randn(4, 700, dtype=dtype)).square().sum().backward()
        made.gather(4.0, divide=False, sums=(1.0, 4.0, 4.0, 1.0))
        for shard in layout.shards:
            known = [made.digests.of(shard, Run(i, i + 1)) for i in range(len(shard))]
            true = chunk_digests(made.gradients, shard, Run(0, len(shard)), flat=True)
            of_sums = [layout.specs[tensor].name == SUMS for tensor in shard.tensor]
            assert known == [None if sums else [digest] for digest, sums in zip(true, of_sums, strict=True)], number


def test_digests_are_forgotten_when_what_they_are_of_changes() -> None:
    model = nn.Linear(3, 5)
    layout = Layout(specs_of(model), 1)
    made = BoundModel(model, layout)
    made.digests_gradients = True
    made.install(0)
    weight = [spec.name for spec in layout.specs].index("weight")
    run = Run(first := layout.shards[0].tensor.tolist().index(weight), first + 1)

    def is_known(divisor: float | None) -> bool:
        made.collect(weight, divisor)
        return made.digests.of(layout.shards[0], run) is not None

    model(torch.ones(4, 3)).sum().backward()
    assert is_known(None) and not is_known(2.0), "divided on its way"
    assert is_known(None)
    made.keep_gradient(weight)
    assert not is_known(None), "added up in place"
    model.weight.grad = torch.ones(5, 3)
    assert is_known(None)
    model.zero_grad()
    assert not is_known(None), "absent"


@pytest.mark.parametrize(("copies", "digests_gradients", "transposed"), [(True, True, False), (False, False, False), (False, True, True)])
def test_digests_are_made_only_of_host_copies_of_what_lies_row_by_row_and_is_pushed_exactly(
    copies: bool, digests_gradients: bool, transposed: bool
) -> None:
    model = nn.Linear(3, 5)
    layout = Layout(specs_of(model), 1)
    made = BoundModel(model, layout, copies=copies)
    made.digests_gradients = digests_gradients
    gradient = torch.arange(15.0).view(3, 5).t() if transposed else torch.arange(15.0).view(5, 3)
    model.weight.grad = gradient
    weight = [spec.name for spec in layout.specs].index("weight")
    made.collect(weight, None)
    assert torch.equal(view(made, 2, "weight"), gradient)
    run = Run(first := layout.shards[0].tensor.tolist().index(weight), first + 1)
    assert made.digests.of(layout.shards[0], run) is None


def test_without_samples_everything_is_absent() -> None:
    made = bound()
    made.model(torch.ones(4, 3)).sum().backward()
    made.gather(0.0, divide=False, sums=None)
    assert not any(made.is_present(i) for i in range(len(made.layout.specs)))


@given(st.integers(1, 5))
def test_initial_digests_do_not_depend_on_the_number_of_servers(num_servers: int) -> None:
    assert bound(num_servers).initial_digests() == bound(1).initial_digests()
    torch.manual_seed(2)
    other = Everything()
    assert BoundModel(other, Layout(specs_of(other), 1)).initial_digests() != bound(1).initial_digests()


def large() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(4096, 4096, bias=False), nn.BatchNorm1d(4096), nn.Linear(16, 16))


STAGES = {name: int(name.startswith("2.")) for name in large().state_dict()} | {SUMS: 1}


def test_a_stage_has_digests_of_the_whole_model_and_memory_for_its_own_tensors() -> None:
    process = psutil.Process()
    whole = BoundModel(model := large(), Layout(specs_of(model), 2)).initial_digests()
    del model
    before = process.memory_info().rss
    model = large()
    made = BoundModel(model, Layout(specs_of(model, stages=STAGES), 2), stage=1)
    assert made.initial_digests() == whole
    assert process.memory_info().rss - before < 32 << 20, "64 MB are another stage's"
    made.install(0)
    assert torch.equal(model[2].weight, large()[2].weight) and model[0].weight.numel() == 0
    assert [made.layout.specs[i].name for i in made.versioned] == ["2.weight", "2.bias"]


def test_a_stage_contributes_its_own_tensors() -> None:
    made = BoundModel(model := large(), Layout(specs_of(model, stages=STAGES), 2), stage=0)
    model[1](model[0](torch.ones(3, 4096))).sum().backward()
    made.gather(1.0, divide=False, sums=(1.0, 2.0, 3.0, 4.0))
    present = [spec.name for i, spec in enumerate(made.layout.specs) if made.is_present(i) and spec.stage == 0]
    assert present == [name for name, stage in STAGES.items() if stage == 0]
    at = int(made.layout.tensor_flat[len(made.layout.specs) - 1])
    assert not made.gradients[at : at + 32].any(), "the sums' memory is another stage's"


def test_copying_across_gives_both_parities_everything() -> None:
    made = bound()
    set_version(made, 3, 5.0)
    made.copy_across(3)
    assert np.array_equal(made.landing[0], made.landing[1])


def test_epoch_sums_have_their_names() -> None:
    made = bound()
    set_version(made, 2, 6.0)
    assert made.epoch_sums(2) == dict.fromkeys(SUM_NAMES, 6.0)
