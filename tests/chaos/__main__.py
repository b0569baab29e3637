"""`make chaos`: exit code 1 unless every fault was survived without a trace."""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

from tests.chaos.campaign import Campaign

_FAULTS_PER_PART = 25


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description="Kills, ends and stops processes of real runs; compares the bits.")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1000, help="of each run")
    parser.add_argument("--launcher", choices=("process", "ray", "forked"), default="process")
    parser.add_argument("--keep", type=Path, help="folder in which the run directories stay")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pserver-chaos-runs-") as temporary:
        campaign = Campaign(arguments.keep or Path(temporary), arguments.launcher, arguments.steps)
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
