"""Weights as files: safetensors, written beside and renamed, so that a file is whole or not there."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ps.errors import PserverError
from ps.frame import Bytes
from ps.layout import Layout, Rule

SUMS = "pserver.sums"
"""Name of the pseudo tensor that holds an epoch's loss sums; no part of the model."""


def tensors_of(layout: Layout, flat: Bytes) -> dict[str, torch.Tensor]:
    """The model's tensors as views of a flat layout, in state-dict order, the sums left out."""
    return {
        spec.name: torch.from_numpy(flat[start : start + spec.num_bytes].view(spec.dtype)).view(spec.shape)
        for spec, start in zip(layout.specs, layout.tensor_flat.tolist(), strict=True)
        if spec.name != SUMS
    }


def sha256_of(layout: Layout, flat: Bytes, *, buffers: bool) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter (or every buffer), in state-dict order."""
    digest = hashlib.sha256()
    for spec, start in zip(layout.specs, layout.tensor_flat.tolist(), strict=True):
        if spec.name != SUMS and (spec.rule in (Rule.MEAN, Rule.EQUAL)) == buffers:
            digest.update(f"{spec.name} {spec.dtype} {list(spec.shape)}\n".encode())
            digest.update(flat[start : start + spec.num_bytes].data)
    return digest.hexdigest()


def load_weights(path: Path, layout: Layout, version: int) -> Bytes:
    """The flat layout of a file that `save_weights` wrote of this model and version; sums are zero. Raises PserverError for any other file."""
    flat: Bytes = np.zeros(layout.flat_bytes, np.uint8)
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("pserver_version")
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PserverError(f"{path} cannot be read ({error}): it is damaged") from error
    if found != str(version):
        raise PserverError(f"{path} holds version {found}, the best one is {version}")
    for name, view in tensors_of(layout, flat).items():
        if name not in stored or (stored[name].shape, stored[name].dtype) != (view.shape, view.dtype):
            raise PserverError(f"{path} has no {name} as the model has it: it is another model's file")
        view.copy_(stored[name])
    return flat


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor], version: int) -> None:
    """Writes a safetensors file that plain torch loads; fsynced, then renamed to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(dict(tensors), beside, metadata={"format": "pt", "pserver_version": str(version)})
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        raise PserverError(f"{path} cannot be written: {error}: free space there, or choose another run.storage_path") from error
    finally:
        beside.unlink(missing_ok=True)
