"""`make chaos`: exit code 1 unless every fault was survived without a trace."""

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path

from tests.chaos.campaign import Campaign
from tests.chaos.network import enter_own_network

_FAULTS_PER_PART = 25


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description="Kills, ends, stops and cuts off processes of real runs; compares the bits.")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000, help="of each run")
    parser.add_argument("--launcher", choices=("process", "ray", "forked"), default="process")
    parser.add_argument("--keep", type=Path, help="folder in which the run directories stay")
    arguments = parser.parse_args()
    if is_root := os.geteuid() == 0:
        enter_own_network()
    else:
        print("without partitions: they need root")
    with tempfile.TemporaryDirectory(prefix="pserver-chaos-runs-") as temporary:
        storage: Path = arguments.keep or Path(temporary)
        storage.mkdir(parents=True, exist_ok=True)
        campaign = Campaign(storage, arguments.launcher, arguments.steps, partitions=is_root)
        parts = math.ceil(arguments.faults / _FAULTS_PER_PART)
        for index in range(parts):
            left = arguments.faults - campaign.faults
            if left > 0:
                campaign.part(index, arguments.seed, math.ceil(left / (parts - index)))
    print(campaign.table())
    print(json.dumps(campaign.totals()))
    clean = not (campaign.differences or campaign.hangs or campaign.orphans)
    return 0 if clean and campaign.faults >= arguments.faults else 1


if __name__ == "__main__":
    sys.exit(main())
