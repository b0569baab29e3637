"""Where torch's generator stands in a forward pass."""

from dataclasses import dataclass
from itertools import product

import torch
from torch import nn

from workers.sampler import layer_seed, torch_seed
from workers.seeds import BlockSeeds
from workers.tasks.digits import Digits


class Drawing(nn.Module):
    """Notes what the generator was seeded with last."""

    def __init__(self, seen: list[int]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen.append(torch.initial_seed())
        return inputs


@dataclass(frozen=True)
class Blocks(Digits):
    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.children())


def test_blocks_have_seeds_of_their_own_in_training_only() -> None:
    seen: list[int] = []
    model = nn.Sequential(Drawing(seen), Drawing(seen))
    seeds = BlockSeeds(Blocks(), model, seed=3, rank=1)
    seeds.begin(5, 2)
    first = torch_seed(3, 5, 1, 2)
    assert torch.initial_seed() == first
    model(torch.ones(1))
    assert seen == [layer_seed(first, 1), layer_seed(first, 2)]
    torch.manual_seed(7)
    model.eval()
    model(torch.ones(1))
    assert seen[2:] == [7, 7]


def test_seeds_of_layers_are_different_ones_and_begin_with_the_micro_batchs() -> None:
    seeds = {(step, layer): layer_seed(torch_seed(0, step, 0), layer) for step, layer in product(range(50), range(50))}
    assert len(set(seeds.values())) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds.values())
    assert seeds[3, 0] == torch_seed(0, 3, 0)
