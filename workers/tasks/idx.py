"""Files of the MNIST family: gzipped IDX, magic and sizes big-endian (LeCun, Cortes, Burges, "The MNIST database")."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ps.errors import ConfigError

UNSIGNED_BYTES = 0x08


def read_idx(path: Path, sample_shape: tuple[int, ...], max_samples: int) -> Tensor:
    """uint8 samples [n, *sample_shape], 1 <= n <= max_samples. Raises ConfigError before a wrong file is unpacked."""
    wanted = (UNSIGNED_BYTES << 8) + 1 + len(sample_shape)
    try:
        with gzip.open(path) as file:
            header = np.frombuffer(file.read(4 * (2 + len(sample_shape))), ">u4").tolist()
            magic, num_samples, *shape = header
            if magic != wanted or tuple(shape) != sample_shape or not 1 <= num_samples <= max_samples:
                raise ConfigError(
                    f"{path}: magic {magic:#010x} and sizes {[num_samples, *shape]}, "
                    f"expected {wanted:#010x} and at most {[max_samples, *sample_shape]}: fetch the file again"
                )
            size = num_samples * math.prod(sample_shape)
            data = bytearray(file.read(size + 1))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ConfigError(f"{path} is no whole gzipped IDX file ({error}): fetch it again") from error
    if len(data) != size:
        more = "more than" if len(data) > size else f"{len(data)} of"
        raise ConfigError(f"{path} holds {more} the {size} bytes its header announces: fetch it again")
    return torch.frombuffer(data, dtype=torch.uint8).view(num_samples, *sample_shape)
