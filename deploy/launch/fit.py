"""Whether a cluster can ever hold a request. Pure."""

from collections.abc import Mapping, Sequence

from ps.errors import ResourcesMissing

Resources = Mapping[str, float]

REMEDY = {"GPU": "set scaling.use_gpu = false, lower scaling.num_workers or add nodes with GPUs"}
_REMEDY = "lower scaling.num_workers, scaling.num_servers or scaling.resources_per_worker, or add nodes"


def check_fit(bundles: Sequence[Resources], nodes: Sequence[Resources], strategy: str) -> None:
    """Raises ResourcesMissing for the first resource that idle nodes could not give.

    `bundles`: what each process needs on one node. `strategy`: as in `scaling.placement_strategy`.
    """
    names = sorted({name for bundle in bundles for name in bundle}, key=lambda name: (name != "GPU", name))
    for name in names:
        asked = sum(bundle.get(name, 0) for bundle in bundles)
        there = [node.get(name, 0) for node in nodes]
        if asked > sum(there):
            raise _missing(name, asked, sum(there), "in the Ray cluster")
        one = asked if strategy == "STRICT_PACK" else max(bundle.get(name, 0) for bundle in bundles)
        if one > max(there):
            raise _missing(name, one, max(there), "on its largest node, where they are needed together")
    if strategy == "STRICT_SPREAD" and len(bundles) > len(nodes):
        raise _missing("nodes", len(bundles), len(nodes), 'in the Ray cluster (scaling.placement_strategy = "STRICT_SPREAD")')


def _missing(name: str, asked: float, there: float, where: str) -> ResourcesMissing:
    return ResourcesMissing(f"{name}: {asked:g} asked, {there:g} there {where}: {REMEDY.get(name, _REMEDY)}")
