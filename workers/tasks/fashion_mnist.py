"""Fashion-MNIST: 60,000 + 10,000 pictures of clothes in 28 x 28 grey pixels (Xiao, Rasul, Vollgraf 2017, MIT licence)."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ps.errors import ConfigError
from workers.data import TensorData
from workers.tasks.classification import Classification
from workers.tasks.idx import read_idx

SYSTEM_DIR = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""
IMAGES, LABELS = "{part}-images-idx3-ubyte.gz", "{part}-labels-idx1-ubyte.gz"
MAX_SAMPLES = 60_000
NUM_CLASSES = 10
MEAN, DEVIATION = 0.2860, 0.3530
"""Of the training pixels, scaled to [0, 1]."""


class Standardise(nn.Module):
    """Bytes to numbers with mean 0 and deviation 1, in the type of the weights that follow."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1 / (255 * DEVIATION)), persistent=False)
        self.register_buffer("shift", torch.tensor(-MEAN / DEVIATION), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels * self.scale + self.shift


@dataclass(frozen=True)
class FashionMNIST(Classification):
    """Two convolutions and two dense layers on the raw bytes; validates on the test pictures."""

    data_dir: str | None = None
    """Folder with the four IDX files. None: $PSERVER_DATA/fashion-mnist, $PSERVER_DATA, then the folder of the Debian package."""
    channels: int = 16
    """Channels of the first convolution, >= 1; the second has twice as many."""
    hidden: int = 128
    """Width of the hidden dense layer, >= 1."""

    def __post_init__(self) -> None:
        for name in ("channels", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"task.{name} = {getattr(self, name)} is out of range: >= 1")

    def model(self) -> nn.Module:
        c = self.channels
        return nn.Sequential(
            Standardise(),
            *(nn.Conv2d(1, c, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(c, 2 * c, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(2 * c * 7 * 7, self.hidden), nn.ReLU()),
            nn.Linear(self.hidden, NUM_CLASSES),
        )

    def train_data(self) -> TensorData:
        return self._pictures("train")

    def validation_data(self) -> TensorData:
        return self._pictures("t10k")

    def _pictures(self, part: str) -> TensorData:
        """uint8 pixels [n, 1, 28, 28] and int64 classes of the files of `part`, checked."""
        folder = self._folder()
        pixels = read_idx(folder / IMAGES.format(part=part), (28, 28), MAX_SAMPLES)
        labels = read_idx(path := folder / LABELS.format(part=part), (), MAX_SAMPLES)
        if len(labels) != len(pixels) or labels.max() >= NUM_CLASSES:
            raise ConfigError(
                f"{path}: {len(labels)} labels up to {int(labels.max())} for {len(pixels)} pictures of {NUM_CLASSES} classes: fetch the files again"
            )
        return TensorData(pixels.unsqueeze(1), labels.long())

    def _folder(self) -> Path:
        """The first folder that holds the training pictures."""
        if self.data_dir is not None:
            folders = [Path(self.data_dir).expanduser()]
        else:
            own = os.environ.get("PSERVER_DATA")
            folders = [*([Path(own, "fashion-mnist"), Path(own)] if own else []), SYSTEM_DIR]
        for folder in folders:
            if (folder / IMAGES.format(part="train")).is_file():
                return folder
        raise ConfigError(
            f"no Fashion-MNIST in {' or '.join(map(str, folders))}: "
            f"`apt-get install dataset-fashion-mnist` (Debian, Ubuntu) puts it into {SYSTEM_DIR}; or fetch the four *-ubyte.gz "
            "files of github.com/zalandoresearch/fashion-mnist and name their folder with task.data_dir or $PSERVER_DATA"
        )
