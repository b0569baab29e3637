"""Compute and costs of a scenario from the ledger of one run. Pure."""

import os
import statistics
from collections.abc import Sequence
from dataclasses import replace

from deploy.measure.ledger_file import LedgerStep
from deploy.predict.classes import Frame, ServerClass, classes_of
from deploy.predict.costs import DECODE_BYTE_S, ENCODE_BYTE_S, Costs
from deploy.predict.scenario import Scenario, layers_of
from ps.errors import ConfigError

WARMUP = 3
"""First steps that are left out."""
FORWARD = 1 / 3
"""Part of the compute: backward makes two products where forward makes one; the ledger has both together."""


def fit(steps: Sequence[LedgerStep], run: Scenario) -> Scenario:
    """`run` with the compute of its typical rank, and costs that add up to what servers and workers spent. Raises ConfigError without steps.

    Sums and updates are taken as measured. What else a server's processor did is divided among frames and bytes as the default costs have it,
    and so is a worker's encoding; landing is taken to cost the same multiple.
    """
    used = [step for step in steps[WARMUP:] if len(step.workers) == run.num_workers and len(step.servers) == run.num_servers]
    if not used:
        raise ConfigError(f"the run has no whole step after the first {WARMUP}: nothing to plan from")
    compute_s = statistics.median(statistics.median(row.compute_s for row in step.workers) for step in used)
    samples = statistics.fmean(row.samples for step in used for row in step.workers)
    fitted = replace(
        run, forward_s=FORWARD * compute_s, backward_s=(1 - FORWARD) * compute_s, samples=samples, cores_per_host=float(os.cpu_count() or 1)
    )
    return replace(fitted, costs=_costs(used, fitted))


def _costs(steps: Sequence[LedgerStep], run: Scenario) -> Costs:
    usual, classes = run.costs, classes_of(run, layers_of(run.specs))
    exact = sum(cls.count * frame.exact_bytes for cls, frame in _frames(classes.servers))
    decode_s, cast_s = DECODE_BYTE_S[run.comm.push_format], ENCODE_BYTE_S[run.comm.pull_format]
    aggregate_s, apply_s, cpu_s = (
        _per_step([[getattr(row, name) for row in step.servers] for step in steps]) for name in ("aggregate_s", "apply_s", "cpu_s")
    )
    moves_s = sum(cls.count * run.num_workers * _moves_s(usual, frame, is_shared=run.is_shared) for cls, frame in _frames(classes.servers))
    encode_s = _per_step([[traffic.encode_s for row in step.workers for traffic in row.shards] for step in steps]) / run.num_workers
    encodes_s = sum(cls.count * _encodes_s(usual, run, frame) for cls, frame in _frames(classes.servers))
    of_server = max(0.0, cpu_s - aggregate_s - apply_s) / moves_s
    of_worker = encode_s / encodes_s if encode_s else 1.0
    names = {"take_frame_s": of_server, "take_byte_s": of_server, "answer_frame_s": of_server, "answer_byte_s": of_server}
    names |= dict.fromkeys(("push_frame_s", "push_byte_s", "land_frame_s", "land_byte_s", "shared_byte_s"), of_worker)
    copy_s = _per_step([[row.copy_s for row in step.workers] for step in steps]) / run.num_workers
    return replace(
        usual,
        sum_byte_s=max(0.0, aggregate_s / (exact * run.num_workers) - decode_s),
        apply_byte_s=max(0.0, apply_s / exact - cast_s),
        copy_byte_s=copy_s / run.model_bytes,
        step_s=_per_step([[row.other_s for row in step.workers] for step in steps]) / run.num_workers,
        **{name: getattr(usual, name) * factor for name, factor in names.items()},
    )


def _per_step(values: Sequence[Sequence[float]]) -> float:
    """The typical sum over all members."""
    return statistics.median(map(sum, values))


def _frames(servers: Sequence[ServerClass]) -> list[tuple[ServerClass, Frame]]:
    return [(cls, frame) for cls in servers for frame in cls.frames]


def _moves_s(costs: Costs, frame: Frame, *, is_shared: bool) -> float:
    """A server's event loop for one rank's frame and its answer."""
    of_bytes = 0.0 if is_shared else costs.take_byte_s * frame.push_bytes + costs.answer_byte_s * frame.pull_bytes
    return costs.take_frame_s + costs.answer_frame_s + of_bytes


def _encodes_s(costs: Costs, run: Scenario, frame: Frame) -> float:
    byte_s = costs.shared_byte_s if run.is_shared else costs.push_byte_s
    return costs.push_frame_s + byte_s * frame.push_bytes + ENCODE_BYTE_S[run.comm.push_format] * frame.exact_bytes
