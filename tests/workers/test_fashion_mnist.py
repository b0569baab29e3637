import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ps.errors import ConfigError
from tests.workers.idx_files import NUM_TEST, NUM_TRAIN, write_images, write_labels, write_pictures
from workers.sampler import BatchPlan
from workers.task import load_task
from workers.tasks import fashion_mnist
from workers.tasks.fashion_mnist import FashionMNIST

SMALL: dict[str, Any] = {"channels": 4, "hidden": 16}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four small files; the system has none and no variable is set."""
    monkeypatch.delenv("PSERVER_DATA", raising=False)
    monkeypatch.setattr(fashion_mnist, "SYSTEM_DIR", tmp_path / "system")
    return write_pictures(tmp_path / "data")


def test_pictures_are_bytes_with_a_class_each(folder: Path) -> None:
    task = FashionMNIST(data_dir=str(folder))
    train, validation = task.train_data(), task.validation_data()
    assert (len(train), len(validation)) == (NUM_TRAIN, NUM_TEST)
    pixels, classes = train.tensors
    assert (pixels.shape, pixels.dtype, classes.dtype) == ((NUM_TRAIN, 1, 28, 28), torch.uint8, torch.int64)
    assert classes.tolist() == [i % 10 for i in range(NUM_TRAIN)]
    assert all((pixels[i, 0, 4 + 2 * (i % 10)] == 255).all() for i in range(NUM_TRAIN))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_learns(folder: Path, dtype: torch.dtype) -> None:
    task = load_task("fashion-mnist", {"data_dir": str(folder), **SMALL})
    assert isinstance(task, FashionMNIST)
    torch.manual_seed(0)
    model, data, validation = task.model().to(dtype), task.train_data(), task.validation_data()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    plan = BatchPlan(len(data), num_workers=1, global_batch=32, accumulate=1, seed=0)
    for step in range(45):
        optimizer.zero_grad()
        loss = task.loss(model, data.batch(plan.global_indices(step)))
        assert loss.dtype == dtype
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        assert task.metrics(model, validation.tensors)["accuracy"] >= 0.9 * len(validation)


def test_the_model_takes_raw_bytes_and_keeps_their_scale_out_of_its_weights(folder: Path) -> None:
    model = FashionMNIST(data_dir=str(folder), **SMALL).model()
    assert sorted(model.state_dict()) == sorted(f"{i}.{kind}" for i in (1, 4, 8, 10) for kind in ("weight", "bias"))
    black, white = (float(model[0](torch.full((1, 1, 1, 1), value, dtype=torch.uint8))) for value in (0, 255))  # type: ignore[index]
    assert black == pytest.approx(-0.2860 / 0.3530)
    assert white == pytest.approx((1 - 0.2860) / 0.3530)


def test_the_folder_is_the_field_then_the_variable_then_the_systems(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    places = [tmp_path / "field", tmp_path / "variable" / "fashion-mnist", tmp_path / "variable", tmp_path / "system"]
    for i, place in enumerate(places):
        write_pictures(place)
        write_images(place / "train-images-idx3-ubyte.gz", np.full((NUM_TRAIN, 28, 28), i))

    def used(data_dir: Path | None = None) -> int:
        return int(FashionMNIST(data_dir=data_dir and str(data_dir)).train_data().tensors[0][0, 0, 0, 0])

    assert used() == 3
    monkeypatch.setenv("PSERVER_DATA", str(tmp_path / "variable"))
    assert used() == 1
    assert used(places[0]) == 0
    (places[1] / "train-images-idx3-ubyte.gz").unlink()
    assert used() == 2
    monkeypatch.setenv("PSERVER_DATA", str(tmp_path / "other data sets"))
    assert used() == 3


def test_a_missing_data_set_says_how_to_get_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no Fashion-MNIST in .*/system: .*apt-get install dataset-fashion-mnist.*task.data_dir or \$PSERVER_DATA"):
        FashionMNIST().train_data()
    write_pictures(tmp_path / "system")
    with pytest.raises(ConfigError, match="no Fashion-MNIST in .*/empty: "):
        FashionMNIST(data_dir=str(tmp_path / "empty")).train_data()


def _magic(path: Path) -> None:
    path.write_bytes(gzip.compress(struct.pack(">4I", 0x801, 1, 28, 28) + bytes(784)))


def _not_gzip(path: Path) -> None:
    path.write_bytes(b"<html>moved</html>")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut_archive(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def _wrong_checksum(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-8] ^= 0xFF
    path.write_bytes(data)


def _cut_content(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))


def _more_content(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"x"))


def _only_half_a_header(path: Path) -> None:
    path.write_bytes(gzip.compress(b"\0\0\x08\x03\0\0"))


def _another_size(path: Path) -> None:
    write_images(path, np.zeros((NUM_TRAIN, 27, 28)))


def _no_pictures(path: Path) -> None:
    write_images(path, np.zeros((0, 28, 28)))


def _more_than_there_are(path: Path) -> None:
    path.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 60_001, 28, 28)))


def _other_number(path: Path) -> None:
    write_images(path, np.zeros((NUM_TRAIN - 1, 28, 28)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_magic, r"magic 0x00000801 and sizes \[1, 28, 28\], expected 0x00000803"),
        (_not_gzip, "is no whole gzipped IDX file"),
        (_empty, "is no whole gzipped IDX file"),
        (_cut_archive, "is no whole gzipped IDX file"),
        (_wrong_checksum, "is no whole gzipped IDX file .*CRC"),
        (_only_half_a_header, "is no whole gzipped IDX file"),
        (_cut_content, "holds 75263 of the 75264 bytes its header announces"),
        (_more_content, "holds more than the 75264 bytes its header announces"),
        (_another_size, r"sizes \[96, 27, 28\]"),
        (_no_pictures, r"sizes \[0, 28, 28\]"),
        (_more_than_there_are, r"sizes \[60001, 28, 28\], expected .* at most \[60000, 28, 28\]"),
        (_other_number, "96 labels up to 9 for 95 pictures"),
    ],
)
def test_a_spoiled_file_is_refused_by_name(folder: Path, spoil: Callable[[Path], None], message: str) -> None:
    path = folder / "train-images-idx3-ubyte.gz"
    spoil(path)
    with pytest.raises(ConfigError, match=message) as caught:
        FashionMNIST(data_dir=str(folder)).train_data()
    assert "train-" in str(caught.value)
    assert "fetch" in str(caught.value)


def test_a_label_beyond_the_classes_is_refused(folder: Path) -> None:
    write_labels(folder / "t10k-labels-idx1-ubyte.gz", np.full(NUM_TEST, 10))
    with pytest.raises(ConfigError, match="t10k-labels.* labels up to 10 for 24 pictures of 10 classes"):
        FashionMNIST(data_dir=str(folder)).validation_data()


@pytest.mark.parametrize("name", ["channels", "hidden"])
def test_fields_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"task.{name} = 0 is out of range: >= 1"):
        load_task("fashion-mnist", {name: 0})
