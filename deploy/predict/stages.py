"""Which is quicker with as many workers: whole ranks, or fewer that are split over stages? `pserver plan`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deploy.config import Config
from deploy.measure.table import Table
from deploy.measure.text import counted, seconds, size
from deploy.predict.blocks import Blocks, Profile
from deploy.predict.floors import bubble
from deploy.predict.scenario import Pipeline, Scenario
from deploy.predict.simulate import Prediction, simulate
from ps.codecs import wire_bytes
from ps.errors import ConfigError
from workers.sampler import BatchPlan
from workers.stages.schedule import most_held

OF_WHOLE, OF_STAGE = 5.3, 3.5
"""Memory of a worker for a byte of its parameters, gradients and landing versions included: the most that `make bench-stages` has shown."""
SMALL = 1 / 8
"""Part of a step that equal stages wait for each other with as many micro-batches as are tried at most."""


@dataclass(frozen=True)
class Division:
    """As many workers, divided into ranks of stages."""

    scenario: Scenario
    step: Prediction
    memory_bytes: float
    """Of the worker that needs most, beside an empty one: parameters, gradients, what lands, and activations."""

    @property
    def micro_batches(self) -> int:
        return self.scenario.pipeline.micro_batches if self.scenario.pipeline else 1

    @property
    def pushed_bytes(self) -> float:
        """In a step by all workers, as they travel; about as many are pulled."""
        of = self.scenario
        return of.num_workers * wire_bytes(of.model_bytes, "float32", of.comm.push_format, of.comm)

    @property
    def passed_bytes(self) -> float:
        """In a step between stages of all ranks, both ways."""
        return 2 * self.scenario.num_workers * sum(self.scenario.pipeline.passed_bytes) if self.scenario.pipeline else 0.0

    def __str__(self) -> str:
        of = self.scenario
        split = f" x {counted(of.num_stages, 'stage')} with {counted(self.micro_batches, 'micro-batch').replace('chs', 'ches')}"
        return f"{counted(of.num_workers, 'rank')}{split if of.pipeline else ' of one worker'}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "workers": self.scenario.num_workers,
            "stages": self.scenario.num_stages,
            "micro_batches": self.micro_batches,
            "step_s": self.step.step_s,
            "samples_per_s": self.step.samples_per_s,
            "pushed_bytes": self.pushed_bytes,
            "passed_bytes": self.passed_bytes,
            "bubble": self.step.bubble_s / self.step.step_s,
            "memory_bytes": self.memory_bytes,
        }


class Divisions:
    """Of a config's task, with its samples per step, on the hosts of a scenario."""

    def __init__(self, config: Config, hosts: Scenario, blocks: Blocks, slowness: float = 1.0, measured: Scenario | None = None) -> None:
        """`hosts`: its model and compute do not count. `slowness`: how many times as long blocks take as on this machine. `measured`: has the
        compute of one division as it was, which is then not timed."""
        self._config, self._hosts, self._blocks, self._slowness, self._measured = config, hosts, blocks, slowness, measured
        self._batch = BatchPlan.from_config(config.train, config.scaling.num_workers, num_samples=1).global_batch

    def scenario(self, ranks: int, stages: int, micro_batches: int) -> Scenario:
        """Raises ConfigError where the model cannot be split so."""
        return self._made(ranks, stages, micro_batches)[0]

    def division(self, ranks: int, stages: int, micro_batches: int) -> Division:
        """Raises ConfigError where the model cannot be split so."""
        made, memory_bytes = self._made(ranks, stages, micro_batches)
        return Division(made, simulate(made), memory_bytes)

    def _made(self, ranks: int, stages: int, micro_batches: int) -> tuple[Scenario, float]:
        """With the bytes of the worker that needs most."""
        samples = self._batch / ranks
        parts = self._parts(ranks, micro_batches if stages > 1 else 1)
        members = ranks * stages
        base = replace(
            self._hosts,
            num_workers=ranks,
            pipeline=None,
            samples=samples,
            micro_batches=self._parts(ranks, 1),
            stragglers={rank: by for rank, by in self._hosts.stragglers.items() if rank < ranks},
            worker_links={number: rate for number, rate in self._hosts.worker_links.items() if number < members},
        )
        each = math.ceil(samples / parts)
        made, memory_bytes = self._whole(base, each) if stages == 1 else self._split(base, each, stages, parts)
        measured = self._measured
        if measured and measured.num_workers == ranks and _parts_of(measured) == _parts_of(made):
            made = replace(made, forward_s=measured.forward_s, backward_s=measured.backward_s, pipeline=measured.pipeline, samples=measured.samples)
        return made, memory_bytes

    def all(self, num_members: int) -> list[Division]:
        """For every number of stages that so many workers can have, with the micro-batches of the config, and with the best number of more;
        those are left out that the model has too few blocks for, or the step too few samples."""
        found = []
        for stages in (count for count in range(1, num_members + 1) if num_members % count == 0):
            ranks = num_members // stages
            if ranks > self._batch or (stages > 1 and stages > self._blocks.num_blocks):
                continue
            try:
                asked, *more = [self.division(ranks, stages, micro) for micro in self._tried(ranks, stages)]
            except ConfigError:  # blocks that must stay together leave too few parts
                continue
            found += [asked, *([best(more)] if more else [])]
        return found

    def _parts(self, ranks: int, micro_batches: int) -> int:
        return min(self._config.train.accumulate * micro_batches, max(self._batch // ranks, 1))

    def _tried(self, ranks: int, stages: int) -> Iterator[int]:
        """Four times as many again and again, until the bubble is small or there are no samples for them."""
        micro = self._config.pipeline.micro_batches
        yield micro
        while stages > 1 and bubble(stages, self._parts(ranks, micro)) > SMALL and self._parts(ranks, 4 * micro) > self._parts(ranks, micro):
            micro *= 4
            yield micro

    def _whole(self, base: Scenario, samples: int) -> tuple[Scenario, float]:
        one = self._blocks.whole(samples)
        times = self._slowness * base.samples / samples
        loads_s = 0.0 if self._config.train.data_workers else one.load_s
        made = replace(base, specs=self._blocks.specs, forward_s=times * (loads_s + one.forward_s), backward_s=times * one.backward_s)
        return made, OF_WHOLE * made.model_bytes + one.kept_bytes

    def _split(self, base: Scenario, samples: int, stages: int, parts: int) -> tuple[Scenario, float]:
        place, specs = self._blocks.placed(stages)
        held, profile = place.split.stages, self._blocks.profile(samples)
        schedule, recompute = self._config.pipeline.schedule, self._config.pipeline.recompute
        forward, backward = _by_stage(profile, held, recompute=recompute, loads=not self._config.train.data_workers)
        times = self._slowness * base.samples / samples
        pipeline = Pipeline(
            forward_shares=tuple(s / sum(forward) for s in forward),
            backward_shares=tuple(s / sum(backward) for s in backward),
            passed_bytes=tuple(profile.passed_bytes[blocks.stop - 1] * base.samples / samples for blocks in held[:-1]),
            micro_batches=parts,
            schedule=schedule,
        )
        made = replace(base, specs=specs, forward_s=times * sum(forward), backward_s=times * sum(backward), pipeline=pipeline)
        own = [sum(spec.num_bytes for spec in specs if spec.stage == stage) for stage in range(stages)]
        kept = [_kept_bytes(profile, blocks, most_held(schedule, stage, stages, parts), recompute=recompute) for stage, blocks in enumerate(held)]
        return made, max(OF_STAGE * size + more for size, more in zip(own, kept, strict=True))


def _parts_of(scenario: Scenario) -> tuple[int, int]:
    return scenario.num_stages, scenario.pipeline.micro_batches if scenario.pipeline else 1


def _by_stage(profile: Profile, held: Sequence[range], *, recompute: bool, loads: bool) -> tuple[list[float], list[float]]:
    """Seconds of every stage for a micro-batch, forward and backward; what it passes on is put into frames in them."""
    forward, backward = [], []
    for blocks in held:
        is_first, is_last = blocks.start == 0, blocks is held[-1]
        forward_s, backward_s = (sum(of[i] for i in blocks) for of in (profile.forward_s, profile.backward_s))
        if recompute and not is_last:
            backward_s += forward_s
        load_s = profile.load_s if loads and (is_first or is_last) else 0.0
        forward.append(load_s + forward_s + profile.put_s[blocks.stop - 1])
        backward.append(backward_s + (0.0 if is_first else profile.put_s[blocks.start - 1]))
    return forward, backward


def _kept_bytes(profile: Profile, blocks: range, num_held: int, *, recompute: bool) -> float:
    """Of a stage's micro-batches whose backward is still to come; with `recompute` only what came in, but for one."""
    all_bytes = profile.kept_bytes(blocks)
    is_last = blocks.stop == len(profile.forward_s)
    if not recompute or is_last:
        return num_held * all_bytes
    return all_bytes + num_held * (profile.passed_bytes[blocks.start - 1] if blocks.start else 0)


def best(divisions: Sequence[Division]) -> Division:
    """The quickest, by samples per second."""
    return max(divisions, key=lambda division: division.step.samples_per_s)


def table(divisions: Sequence[Division]) -> str:
    """For people."""
    of = divisions[0].scenario
    columns = ["ranks x stages", "micro-batches", "step", "samples/s", "pushed", "passed", "bubble", "memory of a worker"]
    rows = [
        [
            f"{d.scenario.num_workers} x {d.scenario.num_stages}",
            str(d.micro_batches),
            seconds(d.step.step_s),
            f"{d.step.samples_per_s:.4g}",
            size(d.pushed_bytes),
            size(d.passed_bytes),
            f"{d.step.bubble_s / d.step.step_s:.0%}",
            size(d.memory_bytes),
        ]
        for d in divisions
    ]
    title = f"{counted(of.num_members, 'worker')} as ranks or stages, {of.num_workers * of.samples:.0f} samples per step"
    return f"{Table(title, columns, rows).plain()}\n  best: {best(divisions)}"
