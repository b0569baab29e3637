"""Models and tasks that are hard to overlap: what a layer computes with is not always what it owns."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.ps.training import Marked


class Attention(nn.Module):
    """`out_proj.forward` is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.inner(x.view(-1, 4, 2))
        return self.head(self.attention(hidden, hidden, hidden, need_weights=False)[0].mean(1))


class TiedHead(nn.Module):
    """Words go in by the matrix by which they come out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.inner = nn.Linear(8, 8)
        self.out = nn.Linear(8, 16, bias=False)
        self.out.weight = self.embed.weight
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        words = (x * 4).long() % 16
        return self.head(self.out(torch.tanh(self.inner(self.embed(words).mean(1)))))


class Checkpointed(nn.Module):
    """Its blocks are computed again in backward; with batch statistics, which backward then changes."""

    def __init__(self, *, use_reentrant: bool, norm: bool = False, twice: bool = False) -> None:
        super().__init__()
        self.use_reentrant, self.twice = use_reentrant, twice
        self.first = nn.Linear(8, 8)
        mixed = nn.Sequential(nn.Unflatten(1, (4, 2)), nn.BatchNorm1d(4), nn.Flatten()) if norm else nn.Dropout(0.3)
        self.block = nn.Sequential(nn.Linear(8, 8), mixed, nn.Tanh())
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        for _ in range(1 + self.twice):
            hidden = checkpoint(self.block, hidden, use_reentrant=self.use_reentrant)
        return self.head(hidden)


class Twice(nn.Module):
    """One layer is called twice, another one between."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(8, 8)
        self.between = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.again(torch.tanh(self.between(torch.tanh(self.again(x)))))))


class Functional(nn.Module):
    """`scale` has no layer, and a parameter is used outside of its owner, before that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.owner = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x) + functional.linear(x, self.owner.weight)
        return self.head(self.owner(torch.tanh(hidden)) * self.scale)


class Branches(nn.Module):
    """A branch that only some batches take, one that none takes, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.first = nn.Linear(8, 8)
        self.some = nn.Linear(8, 8)
        self.never = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(self.frozen(x)))
        return self.head(self.some(hidden) if float(x.sum()) > 0 else hidden)


class Normed(nn.Module):
    """Batch statistics, and a buffer that is read outside of its owner."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.first(x).view(-1, 4, 2)) + self.norm.running_mean[:, None]
        return self.head(torch.tanh(hidden.flatten(1)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 4)
        self.lstm = nn.LSTM(4, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.first(x.view(-1, 4, 2)))[0][:, -1])


class Spectral(nn.Module):
    """A weight that a hook before its layer's forward makes of two others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.hooked = nn.utils.spectral_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.hooked(torch.tanh(self.normed(self.first(x))))))


class Direct(nn.Module):
    """A layer's `forward` is called, not the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.second.forward(torch.tanh(self.first(x)))))


class Surprise(nn.Module):
    """What `turn` says is used where it was not used before: a parameter, before or after its owner, or a buffer. Or the loss is NaN
    by itself."""

    turn = ""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.late = nn.Linear(8, 8)
        self.norm = nn.Sequential(nn.Unflatten(1, (4, 2)), nn.BatchNorm1d(4), nn.Flatten())
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        if self.turn == "late.weight":
            hidden = hidden + functional.linear(x, self.late.weight)
        if self.turn == "norm.1.running_var":
            hidden = hidden * self.norm[1].running_var.mean()
        hidden = self.late(hidden) if self.turn != "late.bias" else hidden + self.late.bias
        hidden = self.head(torch.tanh(self.norm(hidden)))
        return hidden * torch.nan if self.turn == "nan" else hidden


MODELS = {
    "attention": Attention,
    "tied head": TiedHead,
    "checkpoint": lambda: Checkpointed(use_reentrant=False),
    "reentrant checkpoint": lambda: Checkpointed(use_reentrant=True),
    "checkpoint called twice": lambda: Checkpointed(use_reentrant=False, twice=True),
    "reentrant checkpoint called twice": lambda: Checkpointed(use_reentrant=True, twice=True),
    "batch statistics under checkpoint": lambda: Checkpointed(use_reentrant=False, norm=True),
    "batch statistics under reentrant checkpoint": lambda: Checkpointed(use_reentrant=True, norm=True),
    "layer called twice": Twice,
    "parameter outside of its owner": Functional,
    "branches": Branches,
    "batch statistics": Normed,
    "lstm": Recurrent,
    "weights made by hooks": Spectral,
    "forward called directly": Direct,
    "surprise": Surprise,
}


@dataclass(frozen=True)
class Overlapped(Marked):
    """Fits one of the models; `decay` adds a penalty on all parameters before the model is called, and `weighted` gives many
    micro-batches no weight; without `drops` there is no dropout."""

    name: str
    decay: bool = False
    weighted: bool = False
    drops: bool = True

    def model(self) -> nn.Module:
        made = MODELS[self.name]()
        for module in made.modules():
            if isinstance(module, nn.Dropout) and not self.drops:
                module.p = 0.0
            elif isinstance(module, nn.MultiheadAttention) and not self.drops:
                module.dropout = 0.0
        return made

    def loss(self, model: nn.Module, batch: Any) -> Any:
        x, y, _ = batch
        penalty = sum(parameter.square().sum() for parameter in model.parameters()) if self.decay else 0.0
        mean = functional.mse_loss(model(x), y) + 1e-3 * penalty
        return (mean, float(x[0, 0] > 0) * len(x)) if self.weighted else mean

    def metrics(self, model: nn.Module, batch: Any) -> dict[str, float]:
        x, y, _ = batch
        twin = copy.deepcopy(model).eval()
        for parameter in twin.parameters():
            parameter.detach().mul_(2)
        return {"twin": float(functional.mse_loss(twin(x), y))}
