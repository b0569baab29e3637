"""`make explore`: prints what went wrong by seed; the last line is JSON, the exit code 1 if anything did."""

import argparse
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial

import torch

from tests.explore.world import Outcome, run

_FEW = 200
"""Histories that are over before other processes have begun."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make explore", description="Random histories of the protocol's real classes, simulated.")
    parser.add_argument("--seeds", type=int, help="how many histories: 10,000, or with --seed 1")
    parser.add_argument("--seed", type=int, help="the first one")
    parser.add_argument("--stages", type=int, default=1, help="members of every rank")
    parser.add_argument("--trace", action="store_true", help="print what happens in the one history")
    given = parser.parse_args(arguments)
    if given.trace and given.seed is None:
        parser.error("--trace needs --seed")
    if given.trace:
        return _report([run(given.seed, print, given.stages)], given.stages)
    first = given.seed or 0
    return _report(_search(range(first, first + (given.seeds or (10_000 if given.seed is None else 1))), given.stages), given.stages)


def _search(seeds: range, stages: int) -> Iterator[Outcome]:
    if len(seeds) < _FEW:
        yield from (run(seed, None, stages) for seed in seeds)
        return
    with multiprocessing.get_context("forkserver").Pool(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.imap(partial(run, trace=None, num_stages=stages), seeds, chunksize=20)


def _report(outcomes: list[Outcome] | Iterator[Outcome], stages: int) -> int:
    how = f" --stages {stages}" if stages > 1 else ""
    counts: Counter[str] = Counter()
    problems: list[int] = []
    done = 0
    for outcome in outcomes:
        counts.update(outcome.counts)
        done += 1
        if outcome.problem:
            problems.append(outcome.seed)
            print(f'seed {outcome.seed}: {outcome.problem}\n    make explore ARGS="--seed {outcome.seed}{how} --trace"', flush=True)
        if done % 1000 == 0:
            print(f"{done} histories, {len(problems)} with a problem", flush=True)
    print(json.dumps({"histories": done, "problems": len(problems), "seeds": problems[:20], **dict(sorted(counts.items()))}))
    return 1 if problems or not done else 0


if __name__ == "__main__":
    sys.exit(main())
