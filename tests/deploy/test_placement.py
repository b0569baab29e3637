"""How processes are placed on Ray's nodes, and what never fits."""

from pathlib import Path
from typing import Any

import pytest

from deploy.launch.base import ProcessKey
from deploy.launch.fit import check_fit, placement
from deploy.launch.ray import RayLauncher
from ps.errors import ConfigError, ResourcesMissing

WORKERS = [ProcessKey("worker", 0), ProcessKey("worker", 1)]
SERVERS = [ProcessKey("server", 0)]
GPUS = {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("strategy", "groups"),
    [
        ("PACK", [(SERVERS, "SPREAD"), (WORKERS, "PACK")]),
        ("SPREAD", [(SERVERS, "SPREAD"), (WORKERS, "SPREAD")]),
        ("STRICT_SPREAD", [(WORKERS, "STRICT_SPREAD"), (SERVERS, "SPREAD")]),  # what is strict chooses first
        ("STRICT_PACK", [([*WORKERS, *SERVERS], "STRICT_PACK")]),
    ],
)
def test_servers_are_spread_and_workers_placed_as_asked(strategy: str, groups: list[Any]) -> None:
    assert placement([*WORKERS, *SERVERS], strategy) == groups


@pytest.mark.parametrize(
    ("bundles", "nodes", "strategy", "message"),
    [
        ([{"CPU": 1, "GPU": 0.5}] * 4, [GPUS], "PACK", None),
        ([{"CPU": 1, "GPU": 1 / 3}] * 6, [GPUS], "PACK", None),
        ([{"CPU": 1, "GPU": 0.6}] * 3, [GPUS], "PACK", "places for 2 of 3 processes that need 1 CPU, 0.6 GPU each"),  # one per GPU
        ([{"CPU": 1, "GPU": 0.5}] * 5, [GPUS], "PACK", "GPU: 2.5 asked, 2 there"),
        ([{"CPU": 1, "GPU": 1.5}], [GPUS], "PACK", "GPU: 1.5 asked for each process: a fraction below 1, or a whole number"),
        ([{"CPU": 3}] * 3, [{"CPU": 4}, {"CPU": 4}, {"CPU": 2}], "PACK", "places for 2 of 3"),  # 9 of 10, but in pieces
        ([{"CPU": 1}] * 2, [{"CPU": 4}, {"CPU": 0}], "STRICT_SPREAD", "places for 1 of 2"),
        ([{"CPU": 2, "GPU": 1}] * 2, [{"CPU": 2, "GPU": 2}, {"CPU": 2}], "STRICT_PACK", "CPU: 4 asked, 2 there on its largest node"),
    ],
)
def test_what_never_fits_because_it_cannot_be_split_is_refused(
    bundles: list[dict[str, float]], nodes: list[dict[str, float]], strategy: str, message: str | None
) -> None:
    if message is None:
        check_fit(bundles, nodes, strategy)
    else:
        with pytest.raises(ResourcesMissing, match=message):
            check_fit(bundles, nodes, strategy)


@pytest.mark.parametrize("address", ["ray://head:10001", "http://127.0.0.1:8265"])
def test_addresses_of_rays_other_doors_are_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ray job submit"):
        RayLauncher(lambda key: tmp_path / "log", num_workers=1, num_servers=1, address=address)
