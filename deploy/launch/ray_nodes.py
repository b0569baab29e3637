"""The nodes of the cluster that this program is connected to."""

from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.launch.fit import Resources


def on_node(node_id: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls `function` on a node; a ref of what it returns."""
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=there).remote(*arguments)


def alive_nodes() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def as_text(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items()) if name in ("CPU", "GPU")) or "nothing"
