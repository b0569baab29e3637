"""A rank that is started again and computes another gradient than before: by default an error, else its first contribution stands."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from ps.errors import Diverged
from tests.ps.cluster import Cluster, cluster, in_threads
from tests.ps.ranks import OPTIMIZER, OVER_GRPC, Rank, finish, reference, started, successor


@contextmanager
def after_another_gradient(*, exact: bool, shared: bool) -> Iterator[tuple[Cluster, list[Rank]]]:
    """Rank 0 has pushed step 0 and died; its successor has other gradients, and has yet to push them."""
    with cluster(2, 2, optimizer=OPTIMIZER, exact=exact, comm=replace(OVER_GRPC, shared_memory=shared)) as servers:
        ranks = started(servers)
        for rank in ranks:
            rank.begin()
        ranks[0].push()
        ranks[0].client.close()
        ranks[0] = successor(servers, 0)
        ranks[0].fill_with_garbage()
        yield servers, ranks


@pytest.mark.parametrize("shared", [False, True])
def test_it_ends_the_run(shared: bool) -> None:
    with after_another_gradient(exact=True, shared=shared) as (_, ranks):
        ranks[0].push()
        with pytest.raises(Diverged, match=r"rank 0 pushed other bytes for step 0, .*train\.exact = false"):
            ranks[0].settle()


@pytest.mark.parametrize("shared", [False, True])
def test_the_first_contribution_stands_where_bits_are_not_promised(shared: bool) -> None:
    with after_another_gradient(exact=False, shared=shared) as (servers, ranks):
        in_threads([rank.push for rank in ranks])
        np.testing.assert_array_equal(finish(servers, ranks), reference(2), strict=True)
