"""A model at version 0: as its task builds it, or with the values of a file."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ps.errors import ConfigError
from workers.answers import model_of
from workers.config import TrainConfig
from workers.task import Task


def build_model(task: Task, config: TrainConfig) -> nn.Module:
    """The task's model at version 0, the same on every rank."""
    torch.manual_seed(config.seed)
    model = model_of(task).to(getattr(torch, config.dtype))
    if config.init is not None:
        load_initial(model, Path(config.init))
    return model


def load_initial(model: nn.Module, path: Path) -> None:
    """Gives the model's parameters and persistent buffers the values of a safetensors file, in place.

    Names are those of `state_dict()`; of tied weights one name is enough. Raises ConfigError that names the first tensor
    that is missing, too much, of another shape or of another type; the model may then be changed in part.
    """
    if not path.is_file():
        raise ConfigError(f"train.init = {str(path)!r}: there is no such file on this host")
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            _check_names(state, set(file.keys()), path)
            given: dict[int, str] = {}
            for name in file.keys():  # noqa: SIM118 (the file is no dict)
                value = file.get_tensor(name)
                _check_value(name, state[name], value, path)
                first = given.setdefault(id(state[name]), name)
                if first != name and not torch.equal(file.get_tensor(first), value):
                    raise ConfigError(f"train.init: {first} and {name} are tied in the model but differ in {path}")
                state[name].copy_(value)
    except SafetensorError as error:
        raise ConfigError(f"train.init = {str(path)!r} is no safetensors file: {error}") from error


def _check_names(state: dict[str, Tensor], found: set[str], path: Path) -> None:
    present = {id(state[name]) for name in found if name in state}
    for name, tensor in state.items():
        if id(tensor) not in present:
            raise ConfigError(f"train.init: {path} lacks tensor {name}: it must hold every parameter and buffer of the model")
    unknown = sorted(found - state.keys())
    if unknown:
        raise ConfigError(f"train.init: {path} holds tensor {unknown[0]}, which the model does not have: is it another model's file?")


def _check_value(name: str, wanted: Tensor, value: Tensor, path: Path) -> None:
    if wanted.shape != value.shape:
        raise ConfigError(f"train.init: tensor {name} is {list(value.shape)} in {path}, {list(wanted.shape)} in the model")
    if wanted.dtype != value.dtype:
        theirs, ours = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, wanted.dtype))
        raise ConfigError(f"train.init: tensor {name} is {theirs} in {path}, {ours} in the model: convert the file, or set train.dtype")
