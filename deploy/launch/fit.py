"""How processes are placed in a cluster, and whether it can ever hold them. Pure."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from deploy.launch.base import ProcessKey
from ps.errors import ResourcesMissing

Resources = Mapping[str, float]

REMEDY = {"GPU": "set scaling.use_gpu = false, lower scaling.num_workers or add nodes with GPUs"}
_REMEDY = "lower scaling.num_workers, scaling.num_servers or scaling.resources_per_worker, or add nodes"
HOST_SHARE = 0.001
"""What a process takes of the resource that is its virtual host's alone."""
_EPSILON = 1e-9
"""Three times 0.333… is one GPU."""


def host_resource(host: str) -> str:
    """Ray resource that only the node on virtual host `host` has."""
    return f"pserver-{host}"


def check_fit(bundles: Sequence[Resources], nodes: Sequence[Resources], strategy: str) -> None:
    """Raises ResourcesMissing for the first resource that idle nodes could not give.

    `bundles`: what each process needs on one node. `strategy`: as in `scaling.placement_strategy`.
    """
    names = sorted({name for bundle in bundles for name in bundle}, key=lambda name: (name != "GPU", name))
    for name in names:
        asked = sum(bundle.get(name, 0) for bundle in bundles)
        there = [node.get(name, 0) for node in nodes]
        if asked > sum(there) + _EPSILON:
            raise _missing(name, asked, sum(there), "in the Ray cluster")
        one = asked if strategy == "STRICT_PACK" else max(bundle.get(name, 0) for bundle in bundles)
        if one > max(there) + _EPSILON:
            raise _missing(name, one, max(there), "on its largest node, where they are needed together")
    if strategy == "STRICT_SPREAD" and len(bundles) > len(nodes):
        raise _missing("nodes", len(bundles), len(nodes), 'in the Ray cluster (scaling.placement_strategy = "STRICT_SPREAD")')
    for kind, count in Counter(tuple(sorted(bundle.items())) for bundle in bundles).items():
        _check_kind(dict(kind), count, nodes, strategy)


def placement(keys: Sequence[ProcessKey], strategy: str) -> list[tuple[list[ProcessKey], str]]:
    """Processes that are placed together, and how, in the order in which they take their places.

    Servers are spread, for their links add up, unless everything must be on one node; what is strict comes first.
    """
    if strategy == "STRICT_PACK":
        return [(list(keys), strategy)]
    workers = ([key for key in keys if key.role == "worker"], strategy)
    servers = ([key for key in keys if key.role == "server"], "SPREAD")
    return [workers, servers] if strategy == "STRICT_SPREAD" else [servers, workers]


def _check_kind(bundle: Resources, count: int, nodes: Sequence[Resources], strategy: str) -> None:
    """Processes cannot be split: leftovers of several nodes or GPUs make no place."""
    gpus = bundle.get("GPU", 0)
    if gpus > 1 and gpus != int(gpus):
        raise ResourcesMissing(f"GPU: {gpus:g} asked for each process: a fraction below 1, or a whole number")
    each = [min(places(bundle, node), 1 if strategy == "STRICT_SPREAD" else count) for node in nodes]
    room = max(each) if strategy == "STRICT_PACK" else sum(each)
    if count > room:
        needs = ", ".join(f"{amount:g} {name}" for name, amount in bundle.items() if amount)
        raise ResourcesMissing(f"the nodes of the Ray cluster have places for {room} of {count} processes that need {needs} each: {_REMEDY}")


def places(bundle: Resources, node: Resources) -> int:
    """How many such processes an idle node holds."""
    found = [_share(name, amount, node.get(name, 0)) for name, amount in bundle.items() if amount]
    return min(found, default=1 << 30)


def _share(name: str, amount: float, there: float) -> int:
    """A process that needs a part of a GPU gets it from one."""
    if name == "GPU" and amount < 1:
        return int(there) * math.floor(1 / amount + _EPSILON)
    return math.floor(there / amount + _EPSILON)


def _missing(name: str, asked: float, there: float, where: str) -> ResourcesMissing:
    return ResourcesMissing(f"{name}: {asked:g} asked, {there:g} there {where}: {REMEDY.get(name, _REMEDY)}")
