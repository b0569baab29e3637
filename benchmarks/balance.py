"""How evenly well-known models are dealt to servers: `python -m benchmarks.balance` writes docs/balance.md."""

from pathlib import Path

from ps.layout import Layout, TensorSpec
from workers.shapes import MODELS

SERVERS = (2, 4, 8, 16)
PAGE = Path(__file__).parent.parent / "docs" / "balance.md"
_HEAD = """# Balance of the layout

Bytes of the largest shard over the mean of all shards (1.0 is perfect), float32, as `python -m benchmarks.balance`
computes it from the shapes alone. A test keeps this page true and every number at most 1.02.

"""


def imbalance(model: str, num_servers: int) -> float:
    """Largest shard over the mean, in bytes."""
    specs = [TensorSpec(name=name, shape=shape, dtype="float32") for name, shape in MODELS[model]().items()]
    return Layout(specs, num_servers).imbalance


def page() -> str:
    """The table as Markdown."""
    lines = ["| model | parameters | " + " | ".join(f"{n} servers" for n in SERVERS) + " |", "|---" * (len(SERVERS) + 2) + "|"]
    for model, shapes in MODELS.items():
        count = sum(TensorSpec(name=n, shape=s, dtype="float32").num_elements for n, s in shapes().items())
        cells = [f"{imbalance(model, n):.4f}" for n in SERVERS]
        lines.append(f"| {model} | {count:,} | {' | '.join(cells)} |")
    return _HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(page())
