"""`make fuzz`: exit code 1 unless everything was answered, refused or named, and memory stayed flat."""

import argparse
import json
import logging
import sys

from tests.fuzz.calls import METHODS
from tests.fuzz.campaign import MOST_GROWTH_MB, Campaign, lasts
from tests.fuzz.formats import FORMATS


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description="Wrong messages to every method, wrong bytes to every reader of a format.")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the others count on from it")
    parser.add_argument("--only", default="", help="methods and formats with this in their name")
    parser.add_argument("--examples", type=int, default=25, help="of each method and format in a round")
    arguments = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())  # what servers say of each refusal is not shown
    campaign = Campaign(arguments.examples)
    campaign.run(arguments.seed, arguments.only, lasts(arguments.seconds))
    for failure in campaign.failures:
        print(failure)
    found = {
        "examples": campaign.tried,
        "rounds": campaign.rounds,
        "methods": len(METHODS),
        "formats": len(FORMATS),
        "failures": len(campaign.failures),
        "growth_mb": round(campaign.growth_mb, 1),
        "seed": arguments.seed,
    }
    print(json.dumps(found))
    return 1 if campaign.failures or campaign.growth_mb > MOST_GROWTH_MB else 0


if __name__ == "__main__":
    sys.exit(main())
