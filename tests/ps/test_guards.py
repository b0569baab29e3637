"""What each guard of the step is for: without it the final bits are others. Real servers and clients, led step by step; `make mutants`
switches the guards off."""

import contextlib
import dataclasses
import threading

import numpy as np
import pytest

from protos import pserver_pb2 as pb
from ps.contribution import Contribution
from ps.errors import PserverError
from ps.layout import Run
from tests.ps.cluster import Cluster, await_taken, cluster, in_threads
from tests.ps.ranks import OPTIMIZER, OVER_GRPC, STEPS, Rank, finish, reference, started, successor
from tests.waiting import until


def begin_all(ranks: list[Rank]) -> None:
    for rank in ranks:
        rank.begin()


def whole_step(ranks: list[Rank]) -> None:
    begin_all(ranks)
    in_threads([rank.push for rank in ranks])
    in_threads([rank.settle for rank in ranks])


@pytest.mark.parametrize("shared", [False, True])
def test_ranks_of_different_weight_that_arrive_in_any_order(shared: bool) -> None:
    comm = dataclasses.replace(OVER_GRPC, shared_memory=shared)
    with cluster(3, 2, optimizer=OPTIMIZER, comm=comm) as servers:
        ranks = started(servers)
        for _ in range(STEPS - 1):
            begin_all(ranks)
            for rank in reversed(ranks):
                rank.push()
            in_threads([rank.settle for rank in ranks])
        begin_all(ranks)
        for rank in (ranks[1], ranks[0], ranks[2]):
            rank.push()
        np.testing.assert_array_equal(finish(servers, ranks), reference(3), strict=True)


def test_a_contribution_that_waits_for_its_turn_and_is_pushed_again_counts_once() -> None:
    with cluster(3, 1, optimizer=OPTIMIZER, comm=OVER_GRPC) as servers:
        ranks = started(servers)
        whole_step(ranks)
        begin_all(ranks)
        last, line = ranks[2], ranks[2].client._state.lines[0]
        last.push()
        waiting = threading.Thread(target=last.finish)
        waiting.start()
        line._stream.cancel()
        until(lambda: line.opened == 2 and line.ready, 20)  # on `_changed` only what `finish` waits for is news
        await_taken(last.client)
        for rank in ranks[:2]:
            rank.push()
        in_threads([rank.finish for rank in ranks[:2]])
        waiting.join()
        np.testing.assert_array_equal(finish(servers, []), reference(3), strict=True)


def test_a_contribution_whose_rank_dies_before_its_turn_is_brought_again() -> None:
    with cluster(2, 1, optimizer=OPTIMIZER, comm=OVER_GRPC) as servers:
        ranks = started(servers)
        whole_step(ranks)
        begin_all(ranks)
        ranks[1].push()
        ranks[1].client.close()
        ranks[1] = successor(servers, 1)
        ranks[1].push()
        ranks[0].push()
        np.testing.assert_array_equal(finish(servers, ranks), reference(2), strict=True)


@pytest.mark.parametrize("shared", [False, True])
def test_a_rank_that_dies_while_shards_stand_at_different_versions_goes_on_from_the_smaller_one(shared: bool) -> None:
    comm = dataclasses.replace(OVER_GRPC, shared_memory=shared)
    with cluster(2, 2, optimizer=OPTIMIZER, comm=comm) as servers:
        ranks = started(servers)
        whole_step(ranks)
        begin_all(ranks)
        ahead = ranks[1].on_shard(0)
        assert 0 < len(ahead) < len(ranks[1].tensors)
        ranks[0].push()
        ranks[1].push(ahead)
        ranks[1].client.wait(ahead)
        assert [server.host.version for server in servers.servers] == [2, 1]
        ranks[1].client.close()
        ranks[1] = successor(servers, 1)
        assert ranks[1].step == 1
        ranks[1].push()
        np.testing.assert_array_equal(finish(servers, ranks), reference(2), strict=True)


def test_a_former_incarnation_that_wakes_beside_its_successor_changes_nothing() -> None:
    with cluster(2, 1, optimizer=OPTIMIZER, comm=OVER_GRPC) as servers:
        ranks = started(servers)
        whole_step(ranks)
        begin_all(ranks)
        zombie, ranks[1] = ranks[1], successor(servers, 1)
        intrude(servers, zombie)
        ranks[1].push()
        ranks[0].push()
        np.testing.assert_array_equal(finish(servers, ranks), reference(2), strict=True)


def intrude(servers: Cluster, stranger: Rank) -> None:
    """Somebody whom the servers should refuse joins and pushes garbage."""
    with contextlib.suppress(PserverError):
        fresh = Rank(servers, stranger.rank, stranger.client.member.incarnation)
        fresh.start()
        fresh.begin()
        fresh.fill_with_garbage()
        fresh.push()


def test_a_member_of_another_timeline_changes_nothing() -> None:
    with cluster(2, 1, optimizer=OPTIMIZER, comm=OVER_GRPC) as servers:
        ranks = started(servers)
        whole_step(ranks)
        begin_all(ranks)
        before = dataclasses.replace(servers, settings=dataclasses.replace(servers.settings, generation=servers.settings.generation - 1))
        intrude(before, Rank(before, 1, incarnation=9))
        ranks[1].push()
        ranks[0].push()
        np.testing.assert_array_equal(finish(servers, ranks), reference(2), strict=True)


@pytest.mark.parametrize("fault", ["a byte changes on the way", "of the next step"])
def test_a_frame_that_is_refused_leaves_no_trace(fault: str) -> None:
    """Its sender's stream ends; here its process too."""
    with cluster(2, 1, optimizer=OPTIMIZER, comm=OVER_GRPC) as servers:
        ranks = started(servers)
        whole_step(ranks)
        begin_all(ranks)
        dying, line = ranks[0], ranks[0].client._state.lines[0]
        present = np.ones(len(line.layout.tensor), np.bool_)
        step = dying.step + (fault == "of the next step")
        values = dying.bound.gradients if step == dying.step else np.full_like(dying.bound.gradients, 7)
        data = line.encode(pb.PUSH, Run(0, 1), Contribution(step, 1.0, values, present), 1).data
        line.send(data if step > dying.step else data[:-1] + bytes([data[-1] ^ 1]))
        with contextlib.suppress(PserverError):  # what comes after it on the stream may or may not be looked at
            dying.push()
        dying.client.close()
        ranks[0] = successor(servers, 0)
        in_threads([rank.push for rank in ranks])
        np.testing.assert_array_equal(finish(servers, ranks), reference(2), strict=True)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_was_stopped_inside_its_copy_into_shared_memory_wakes_too_late_to_harm(victim: int) -> None:
    """Contributions of rank 0 are summed where they lie, those of rank 1 wait for their turn."""
    with cluster(2, 2, optimizer=OPTIMIZER) as servers:
        ranks = started(servers)
        whole_step(ranks)
        begin_all(ranks)
        former = ranks[victim]
        former.push(former.on_shard(0))
        ranks[victim] = successor(servers, victim)
        former.fill_with_garbage()
        for rank in reversed(ranks):
            rank.push()
        np.testing.assert_array_equal(finish(servers, ranks), reference(2), strict=True)
