"""What every wire format does to accuracy, on Fashion-MNIST over gRPC: `make bench-formats` writes docs/formats.md (some minutes)."""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deploy.config import load
from deploy.result import Result
from deploy.trainer import Trainer

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "formats.md"
BASE = ROOT / "examples" / "fashion-mnist.toml"
FORMATS: dict[str, dict[str, object]] = {
    "fp32": {},
    "bf16 both ways": {"push_format": "bf16", "pull_format": "bf16"},
    "fp16 both ways": {"push_format": "fp16", "pull_format": "fp16"},
    "int8 push": {"push_format": "int8"},
    "int8 push, bf16 pull": {"push_format": "int8", "pull_format": "bf16"},
    "topk 10% push": {"push_format": "topk", "topk_fraction": 0.1},
    "topk 1% push": {"push_format": "topk", "topk_fraction": 0.01},
}
_HEAD = """# Wire formats

What `comm.push_format` and `comm.pull_format` cost and do: `examples/fashion-mnist.toml` with {channels} channels, batches of 2 x {batch},
{epochs} epochs over all 60,000 pictures and seed {seed}, two workers and two servers over gRPC, as `make bench-formats` measures it. Bytes are
payload of one worker in one step; encoding is what all threads of a worker spend on it in a step, digests included. The runs differ in nothing
but the format, and a run with the same format has the same bits again. `make bench-codecs` measures the codecs alone, on 100 MB.

| format | pushed | pulled | encoding | validation accuracy | loss | against fp32 |
|---|---|---|---|---|---|---|
"""
_TAIL = """
- `bf16` and `fp16` round every gradient and every parameter that a worker computes with; servers keep and update exact ones.
- `int8` and `topk` keep what they leave out and add it to the next step's gradient (`ps/rank_state.py`): what was decoded and what is left are
  the gradient, over any number of steps (`tests/ps/test_rank_state.py`). With `topk` most of it comes late.
- A format pays where the bytes that it saves take longer than encoding them: the log says so when it does not. In shared memory it saves nothing.
"""


@dataclass(frozen=True)
class Outcome:
    """What a run with a format showed."""

    push_bytes: float
    pull_bytes: float
    encode_s: float
    accuracy: float
    loss: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256, help="samples per worker")
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    head = _HEAD.format(**vars(arguments))
    lines: list[str] = []
    exact: Outcome | None = None
    for name, comm in FORMATS.items():
        found = _trained(comm, arguments)
        exact = exact or found
        lines.append(_line(name, found, exact))
        print(lines[-1], file=sys.stderr, flush=True)
    PAGE.write_text(head + "".join(lines) + _TAIL)
    print(PAGE.read_text())


def _trained(comm: dict[str, object], arguments: argparse.Namespace) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        sets = [f"comm.{key}={json.dumps(value)}" for key, value in comm.items()]
        sets += [f"train.epochs={arguments.epochs}", f"train.seed={arguments.seed}", f"task.channels={arguments.channels}"]
        sets += [f"train.batch_size={arguments.batch}", "optimizer.lr=0.1", "schedule.warmup_steps=50"]
        config = load(BASE, [*sets, "comm.shared_memory=false", f"run.storage_path={json.dumps(folder)}"])
        result = Trainer.from_config(config, launcher="process", quiet=True).fit()
        if result.error:
            raise result.error
        return _outcome(result, config.scaling.num_workers)


def _outcome(result: Result, workers: int) -> Outcome:
    steps = [json.loads(line) for line in (result.path / "comm.jsonl").read_text().splitlines()]
    rows = [row for step in steps for row in step["rows"] if row["kind"] == "worker"]
    return Outcome(
        push_bytes=result.comm["push_bytes"] / result.comm["steps"] / workers,
        pull_bytes=result.comm["pull_bytes"] / result.comm["steps"] / workers,
        encode_s=statistics.fmean(sum(shard["encode_s"] for shard in row["shards"]) for row in rows),
        accuracy=result.metrics["validation_accuracy"],
        loss=result.metrics["validation_loss"],
    )


def _line(name: str, found: Outcome, exact: Outcome) -> str:
    sizes = f"{found.push_bytes / 1e3:.0f} kB | {found.pull_bytes / 1e3:.0f} kB | {found.encode_s * 1e3:.1f} ms"
    return f"| {name} | {sizes} | {found.accuracy:.2%} | {found.loss:.4f} | {(found.accuracy - exact.accuracy) * 100:+.2f} points |\n"


if __name__ == "__main__":
    main()
