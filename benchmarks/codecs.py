"""What each wire format costs: `python -m benchmarks.codecs [--elements N]`, one thread, best of five."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ps.codecs import CASTS, Chunk, Codec, ErrorFeedback, Int8, Seed, TopK
from ps.layout import CHUNK_ELEMENTS

CODECS: dict[str, Codec] = {**CASTS, "int8": Int8(), "top-k 1%": TopK(0.01), "top-k 0.1%": TopK(0.001)}
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
        feedback = "-" if codec.lossless else f"{feedback_ms:.0f}"
        print(f"{name:<12}{size / len(values):>14.3f}{encode_ms:>9.0f}{feedback:>12}{decode_ms:>9.0f}")


def _measure(codec: Codec, values: np.ndarray, count: int) -> tuple[int, float, float, float]:
    runs = [[Chunk(i + k, CHUNK_ELEMENTS) for k in range(_SLICE)] for i in range(0, count, _SLICE)]
    places = [slice(run[0].id * CHUNK_ELEMENTS, (run[-1].id + 1) * CHUNK_ELEMENTS) for run in runs]
    feedback = ErrorFeedback(codec, (np.zeros_like(values), np.zeros_like(values)))
    cut = list(zip(places, runs, strict=True))
    payloads, encode_s = _best(lambda: [codec.encode(values[place], run, Seed()) for place, run in cut])
    _, feedback_s = _best(lambda: [feedback.encode(values[place], place, run, Seed()) for place, run in cut])
    _, decode_s = _best(lambda: [len(codec.decode(payload, "float32", run)) for payload, run in zip(payloads, runs, strict=True)])
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
