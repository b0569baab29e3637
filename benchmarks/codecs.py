"""What each wire format costs: `python -m benchmarks.codecs [--elements N]`, one thread, best of five."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ps.codecs import CASTS, Codec, Int8, Seed, TopK
from ps.frame import chunks_of
from ps.layout import CHUNK_ELEMENTS, Layout, Run, TensorSpec
from ps.rank_state import RankState

CODECS: dict[str, Codec] = {**CASTS, "int8": Int8(), "topk 1%": TopK(0.01), "topk 0.1%": TopK(0.001)}
_SLICE = 32
"""Chunks encoded at a time: frames of 1 MiB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=25_000_000, help="float32 gradients (25 million are 100 MB)")
    count = parser.parse_args().elements // (CHUNK_ELEMENTS * _SLICE) * _SLICE
    torch.set_num_threads(1)
    values = np.random.default_rng(0).standard_normal(count * CHUNK_ELEMENTS, np.float32)
    print(f"{values.nbytes / 1e6:.0f} MB of float32, in runs of {_SLICE} chunks; ms per 100 MB\n")
    print(f"{'format':<12}{'bytes/element':>14}{'encode':>9}{'+ feedback':>12}{'decode':>9}")
    for name, codec in CODECS.items():
        size, encode_ms, feedback_ms, decode_ms = _measure(codec, values, count)
        feedback = "-" if name in CASTS else f"{feedback_ms:.0f}"
        print(f"{name:<12}{size / len(values):>14.3f}{encode_ms:>9.0f}{feedback:>12}{decode_ms:>9.0f}")


def _measure(codec: Codec, values: np.ndarray, count: int) -> tuple[int, float, float, float]:
    layout = Layout([TensorSpec(name="w", shape=(len(values),), dtype="float32")], 1)
    shard = layout.shards[0]
    runs = [Run(i, i + _SLICE) for i in range(0, count, _SLICE)]
    places = [slice(run.first * CHUNK_ELEMENTS, run.stop * CHUNK_ELEMENTS) for run in runs]
    chunks = [chunks_of(shard, run) for run in runs]
    memory = np.zeros(RankState.size_bytes(layout), np.uint8)
    state = RankState(memory, layout, codec, seed=0, rank=0, skip_nonfinite=False, key=bytes(32))
    flat = values.view(np.uint8)
    payloads, encode_s = _best(lambda: [codec.encode(values[place], of, Seed()) for place, of in zip(places, chunks, strict=True)])
    _, feedback_s = _best(lambda: [state.encode(shard, run, flat, 0) for run in runs])
    _, decode_s = _best(lambda: [len(codec.decode(payload, "float32", of)) for payload, of in zip(payloads, chunks, strict=True)])
    scale = 1e3 * 100e6 / values.nbytes
    return sum(map(len, payloads)), encode_s * scale, feedback_s * scale, decode_s * scale


def _best(call: Callable[[], Any]) -> tuple[Any, float]:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - started)
    return result, min(seconds)


if __name__ == "__main__":
    main()
