from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from ps.errors import ConfigError
from workers.initial import load_initial


class Net(nn.Module):
    """Tied, frozen and buffered."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.norm.bias.requires_grad_(False)


def net(seed: int) -> Net:
    torch.manual_seed(seed)
    made = Net()
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) * 100)
    return made


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor once, as a file may hold it."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "head.weight"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "init.safetensors"


def test_every_parameter_and_buffer_gets_the_files_value(path: Path) -> None:
    save_model(net(0), str(path))
    model = net(1)
    load_initial(model, path)
    for name, value in net(0).state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model.head.weight is model.embed.weight
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in net(1).parameters()]
    assert all(p.grad_fn is None for p in model.parameters())


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_one_name_of_a_tied_weight_is_enough(path: Path, name: str) -> None:
    tensors = values(net(0))
    save_file({name if key == "embed.weight" else key: value for key, value in tensors.items()}, path)
    load_initial(model := net(1), path)
    assert torch.equal(model.head.weight, tensors["embed.weight"])


def test_tied_weights_given_twice_must_agree(path: Path) -> None:
    tensors = values(net(0))
    save_file({**tensors, "head.weight": tensors["embed.weight"].clone()}, path)
    load_initial(net(1), path)
    save_file({**tensors, "head.weight": tensors["embed.weight"] + 1}, path)
    with pytest.raises(ConfigError, match=r"embed\.weight and head\.weight are tied in the model but differ"):
        load_initial(net(1), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.running_var": None}, r"init\.safetensors lacks tensor norm\.running_var"),
        ({"embed.weight": None}, r"lacks tensor embed\.weight"),
        ({"extra": torch.zeros(1)}, "holds tensor extra, which the model does not have"),
        ({"norm.weight": torch.zeros(4)}, r"tensor norm\.weight is \[4\] in .*, \[3\] in the model"),
        ({"norm.weight": torch.zeros(1, 3)}, r"tensor norm\.weight is \[1, 3\] in"),
        ({"norm.weight": torch.zeros(3, dtype=torch.float64)}, r"tensor norm\.weight is float64 in .*, float32 in the model"),
        ({"norm.weight": torch.zeros(3, dtype=torch.bfloat16)}, r"tensor norm\.weight is bfloat16 in .*, float32 in the model"),
    ],
)
def test_a_file_that_does_not_fit_names_the_tensor(path: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    tensors = {**values(net(0)), **change}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
    with pytest.raises(ConfigError, match=message):
        load_initial(net(1), path)


def test_no_file_and_no_safetensors_are_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.init = '.*init\.safetensors': there is no such file on this host"):
        load_initial(net(0), path)
    torch.save(net(0).state_dict(), path)
    with pytest.raises(ConfigError, match=r"init\.safetensors' is no safetensors file"):
        load_initial(net(0), path)
