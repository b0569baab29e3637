"""Formats of two bytes per element from the worker's memory to the shard's and back."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from protos import pserver_pb2 as pb
from ps import frame
from ps.codecs import CASTS, format_of
from ps.config import CommConfig, OptimizerConfig
from ps.errors import MalformedFrame
from ps.layout import Layout, Rule, Run, TensorSpec
from tests.ps import training
from tests.ps.bench import Bench, settings, specs_of
from tests.ps.cluster import cluster, exchange, start
from tests.ps.raw import Raw, closing

SPECS = [
    TensorSpec(name="w", shape=(3, 8192), dtype="float32"),
    TensorSpec(name="b", shape=(5,), dtype="float32"),
    TensorSpec(name="n", shape=(), dtype="int64", rule=Rule.EQUAL),
]
SHARD = Layout(SPECS, 1).shards[0]
HALVES = sorted(set(CASTS) - {"fp32"})


def sent(run: Run, wire: str) -> tuple[frame.Bytes, bytes]:
    memory = np.random.default_rng(run.first).standard_normal(SHARD.size_bytes // 4).astype(np.float32).view(np.uint8)
    header = pb.FrameHeader(kind=pb.PUSH, first_chunk=run.first, num_chunks=len(run))
    return memory, frame.encode_run(header, memory, SHARD, run, flat=False, wire=wire)


@pytest.mark.parametrize("wire", sorted(CASTS))
def test_a_run_comes_back_as_the_cast_says_in_the_bytes_that_were_counted(wire: str) -> None:
    for run in (Run(0, 3), Run(1, 4), Run(4, 5)):
        memory, data = sent(run, wire)
        header, payload = frame.decode(data)
        assert frame.checked_run(header, payload, SHARD, with_payload=True, wire=wire) == run
        assert len(payload) == frame.payload_bytes(SHARD, run, wire)
        block = SHARD.block_of(run)
        exact = np.concatenate(frame.payload_parts(memory, SHARD, run, flat=False))
        found = frame.exact_payload(header, payload, SHARD, run)
        if format_of(wire, block) == "fp32":
            assert (found == exact).all()
        else:
            there = torch.from_numpy(exact.view(np.float32)).to(torch.bfloat16 if wire == "bf16" else torch.float16)
            assert (found.view(np.float32) == there.float().numpy()).all()


@pytest.mark.parametrize("wire", HALVES)
def test_frames_in_another_format_or_with_other_bytes_are_refused(wire: str) -> None:
    header, payload = frame.decode(sent(Run(0, 3), wire)[1])
    with pytest.raises(MalformedFrame, match=f"has format '{wire}', the run's is 'fp32'"):
        frame.checked_run(header, payload, SHARD, with_payload=True)
    exact, its_payload = frame.decode(sent(Run(0, 3), "fp32")[1])
    with pytest.raises(MalformedFrame, match=f"has format 'fp32', the run's is '{wire}'"):
        frame.checked_run(exact, its_payload, SHARD, with_payload=True, wire=wire)
    with pytest.raises(MalformedFrame, match="bytes"):
        frame.checked_run(header, payload[:-2], SHARD, with_payload=True, wire=wire)
    broken = payload.copy()
    broken[8192 * 2] ^= 1
    with pytest.raises(MalformedFrame, match="chunk 1 of shard 0: digest"):
        frame.checked_run(header, broken, SHARD, with_payload=True, wire=wire)


@pytest.mark.parametrize("wire", HALVES)
def test_the_bits_depend_on_nothing_but_the_seed(wire: str) -> None:
    comm = CommConfig(push_format=wire, pull_format=wire)  # type: ignore[arg-type]
    base = training.Job(num_workers=3, comm=comm).changed(dtype="float32", max_steps=7)
    same = [
        replace(base, num_servers=1),
        replace(base, num_servers=2),
        replace(base, num_servers=4),
        replace(base, num_servers=2, shuffle=1, comm=replace(comm, frame_bytes=4096, window_frames=1)),
        replace(base, num_servers=4, breaks=True, comm=replace(comm, frame_bytes=4096, window_frames=2)),
    ]
    found = [run_halved(job) for job in same]
    assert len(set(found)) == 1
    assert run_halved(replace(base, comm=CommConfig())) != found[0]


def run_halved(job: training.Job) -> tuple[str, str]:
    """What the servers hold in the end, and what a member computes with."""
    plan = training.Plan(job.batches().steps_per_epoch(), job.steps)
    with cluster(job.num_workers, job.num_servers, optimizer=job.optimizer, comm=job.comm, plan=plan) as servers:
        members = [servers.member(rank, job.model()) for rank in range(job.num_workers)]
        training.in_threads([lambda member=member: training.train(job, member, []) for member in members])
        reader = servers.reader()
        exact = reader.pull(job.steps)
        reader.close()
        layout = members[0].bound.layout
        landed = [hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in m.bound.model.parameters())).hexdigest() for m in members]
        assert len(set(landed)) == 1
        return training.sha256_of(layout, exact, buffers=False), landed[0]


@pytest.mark.parametrize("wire", HALVES)
def test_members_compute_with_casts_of_what_servers_keep_exactly_and_a_late_one_gets_the_same_bytes(wire: str) -> None:
    comm = CommConfig(push_format=wire, pull_format=wire)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 100), nn.BatchNorm1d(100))
    before = model[0].weight.detach().clone()
    with cluster(1, 2, optimizer=OptimizerConfig(name="sgd", lr=0.5), comm=comm) as servers:
        member = servers.member(0, model)
        start(member)
        gradient = torch.randn(100, 100) * 1e-3
        model[0].weight.grad = gradient
        member.bound.gather(1.0, divide=False, sums=(0.0, 1.0, 1.0, 1.0))
        timing = exchange(member, 0, 1.0, present=member.bound.is_present)
        member.bound.install(1)
        to = torch.bfloat16 if wire == "bf16" else torch.float16
        kept = servers.weights(1)["0.weight"]
        assert torch.equal(kept, before - 0.5 * gradient.to(to).float())
        assert torch.equal(model[0].weight, kept.to(to).float()) and not torch.equal(model[0].weight, kept)
        assert torch.equal(model[1].running_var, torch.ones(100))
        pushed = sum(shard.push_bytes for shard in timing.shards)
        assert 100 * 100 * 2 <= pushed < 100 * 100 * 2 + 3000

        late = servers.member(0, nn.Sequential(nn.Linear(100, 100), nn.BatchNorm1d(100)), incarnation=2)
        pulled = np.zeros_like(late.bound.landing[0])
        late.client.join(member.bound.initial_digests(), member.plan, pb.Environment())
        late.client.pull(1, pulled)
        at = int(late.bound.layout.tensor_flat[[spec.name for spec in late.bound.layout.specs].index("0.weight")])
        assert (pulled[at : at + 40_000] == member.bound.landing[1][at : at + 40_000]).all()


def test_a_shard_sums_what_was_sent_and_answers_in_the_format_of_pulls() -> None:
    made = Bench(
        specs_of(100, dtype="float32"),
        settings(1, comm=CommConfig(push_format="bf16", pull_format="fp16"), optimizer=OptimizerConfig(name="sgd", lr=1.0)),
    )
    made.init(made.flat(1.0))
    header = pb.FrameHeader(kind=pb.PUSH, first_chunk=0, num_chunks=1, weight=1.0)
    header, payload = frame.decode(frame.encode_run(header, made.flat(0.1), made.mine, Run(0, 1), flat=True, wire="bf16"))
    made.shard.push(made.member(0), header, Run(0, 1), payload, lambda verdict: None)
    [(answer, answered)] = made.lines[0].of_kind(pb.PARAMS)
    sent_value = np.float32(torch.tensor(0.1).to(torch.bfloat16).item())
    assert (made.values()[0] == np.float32(1) - sent_value).all()
    assert (answered.view(np.float16) == np.float16(np.float32(1) - sent_value)).all() and answer.format == "fp16"


def test_a_pull_in_an_unknown_format_is_refused() -> None:
    with cluster(1, 1) as servers:
        server = servers.servers[0]
        raw = Raw(server.data_address, server.control_address, servers.settings.run_id)
        values = [np.ones(3, np.float32)]
        with closing(raw):
            raw.join([("w", 3, "float32", pb.RULE_OPTIMIZER)], values)
            raw.init(values)
            with pytest.raises(Exception, match="'int3', which is not one of fp32, bf16, fp16"):
                raw.pull(0, format="int3")  # type: ignore[arg-type]
            assert raw.pull(0, format="bf16")[0].payload == b"\x80\x3f" * 3  # type: ignore[arg-type]


def test_a_small_frame_does_not_decode_to_a_whole_shard() -> None:
    shard = Layout([TensorSpec(name="w", shape=(257, 8192), dtype="float64")], 1).shards[0]
    for chunks in (256, 257):
        payload = np.zeros(2 * chunks, np.uint8)  # of each chunk no element
        header, sent = frame.decode(frame.encode_coded(pb.FrameHeader(num_chunks=chunks), payload, shard, Run(0, chunks), "topk"))
        if chunks == 256:
            assert frame.checked_run(header, sent, shard, with_payload=True, wire="topk") == Run(0, 256)
            continue
        with pytest.raises(MalformedFrame, match="decodes to 16842752 bytes, at most 16777216"):
            frame.checked_run(header, sent, shard, with_payload=True, wire="topk")
