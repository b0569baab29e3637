"""A model's tensors without its computation: what a step of it exchanges, for measurements."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ps.errors import ConfigError
from workers.data import TensorData
from workers.shapes import Shapes, shapes_named
from workers.task import Task, load_task


@dataclass(frozen=True)
class ModelShapes(Task):
    """Its gradients are the same random numbers in every step, and are there as soon as backward begins."""

    like: str = "resnet50"
    """A well-known model ("gpt2"), a file of weights (.safetensors) or a task ("package.module:Task")."""
    samples: int = 64
    """Training samples, >= 1: as many as ranks and steps need, one each."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"task.samples = {self.samples} is out of range: >= 1")

    def model(self) -> nn.Module:
        model = load_task(self.like, {}).model() if ":" in self.like else _module(shapes_named(self.like))
        generator = torch.Generator().manual_seed(0)
        own = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not own:
            raise ConfigError(f"{self.like} has no parameters to train: there is nothing to exchange")
        self._gradients_of(model, [torch.randn(parameter.shape, generator=generator).to(parameter.dtype) for parameter in own])
        return model

    @staticmethod
    def _gradients_of(model: nn.Module, gradients: list[Tensor]) -> None:
        object.__setattr__(model, "constant_gradients", gradients)  # no part of the module: neither parameters nor buffers

    def train_data(self) -> TensorData:
        return TensorData(torch.zeros(self.samples, 1))

    def validation_data(self) -> TensorData:
        return TensorData(torch.zeros(1, 1))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        own = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return _Constant.apply(model.constant_gradients, *own)  # type: ignore[no-any-return, no-untyped-call]


class _Constant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.gradients


def _module(shapes: Shapes) -> nn.Module:
    """Nested as the dots in the names say."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        owner = root
        for part in path:
            if part not in dict(owner.named_children()):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(last, nn.Parameter(torch.zeros(shape)))
    return root
