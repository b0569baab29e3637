"""The one home of closed forms: seconds that no system of a kind can go below, and optima that a formula gives.

Bytes are those on the wire, rates bytes per second of one direction of a full-duplex link; M is the model, W workers, S servers,
B a link's rate. Pure.
"""

import math


def transfer_s(num_bytes: float, bytes_per_s: float) -> float:
    """num_bytes / B: a link in one direction."""
    return num_bytes / bytes_per_s


def one_way_s(model_bytes: float, num_workers: int, num_servers: int, worker_bytes_per_s: float, server_bytes_per_s: float) -> float:
    """max(M / B_w, W·M / (S·B_s)): every worker pushes the model, or pulls it; hosts of their own for all."""
    return max(model_bytes / worker_bytes_per_s, num_workers * model_bytes / (num_servers * server_bytes_per_s))


def phased_s(model_bytes: float, num_workers: int, num_servers: int, worker_bytes_per_s: float, server_bytes_per_s: float) -> float:
    """Push everything, then pull everything: twice `one_way_s`. A step with a global norm cannot do better."""
    return 2 * one_way_s(model_bytes, num_workers, num_servers, worker_bytes_per_s, server_bytes_per_s)


def pipelined_s(
    model_bytes: float, num_workers: int, num_servers: int, worker_bytes_per_s: float, server_bytes_per_s: float, *, frame_bytes: float = 0.0
) -> float:
    """`one_way_s` and one frame more: pulls travel while later pushes do, only the last frame's answer has nothing to hide behind.

    `frame_bytes`: of the last answers of all shards to one worker.
    """
    way = (num_workers, num_servers, worker_bytes_per_s, server_bytes_per_s)
    return one_way_s(model_bytes, *way) + one_way_s(frame_bytes, *way)


def racks_s(
    model_bytes: float,
    num_workers: int,
    num_servers: int,
    worker_bytes_per_s: float,
    server_bytes_per_s: float,
    *,
    rack_size: int,
    uplink_bytes_per_s: float,
    aggregator_bytes_per_s: float | None = None,
) -> float:
    """R workers in a rack whose uplink carries U; servers outside. max(`one_way_s`, R·M / U): everybody's bytes leave the rack.

    With an aggregator in each of K racks, on a link of rate A: max(M / B_w, R·M / A, M / U, K·M / (S·B_s)). So it pays where uplinks or servers'
    links are the limit, and R·M / A is less than they need.
    """
    size = min(rack_size, num_workers)
    if aggregator_bytes_per_s is None:
        ends_s = one_way_s(model_bytes, num_workers, num_servers, worker_bytes_per_s, server_bytes_per_s)
        return max(ends_s, size * model_bytes / uplink_bytes_per_s)
    racks = math.ceil(num_workers / rack_size)
    ends_s = one_way_s(model_bytes, racks, num_servers, min(worker_bytes_per_s, uplink_bytes_per_s), server_bytes_per_s)
    return max(ends_s, size * model_bytes / aggregator_bytes_per_s)


def colocated_s(model_bytes: float, num_workers: int, num_servers: int, bytes_per_s: float) -> float:
    """(S + W − 2)·M / (S·B): the servers live on the hosts of the first S <= W workers, and what stays on a host is free.

    Such a host sends (S − 1)/S of a push and W − 1 answers of M/S each; it receives as much. S = W gives the ring's time.
    """
    if num_servers > num_workers:
        raise ValueError(f"{num_servers} servers on the hosts of {num_workers} workers: at most one each")
    return (num_servers + num_workers - 2) * model_bytes / (num_servers * bytes_per_s)


def ring_s(model_bytes: float, num_workers: int, bytes_per_s: float) -> float:
    """2(W − 1)·M / (W·B): ring all-reduce (Patarasu and Yuan, JPDC 2009), the optimum without other machines."""
    return 2 * (num_workers - 1) * model_bytes / (num_workers * bytes_per_s)


def byteps_s(model_bytes: float, num_workers: int, num_helpers: int, bytes_per_s: float) -> float:
    """2n(n − 1)·M / ((n² + kn − 2k)·B): the optimum for n workers and k <= n machines without GPUs, with servers on both and loads
    chosen for it (Jiang et al., "BytePS", OSDI 2020). k = 0 is the ring, k = n the M/B of servers on hosts of their own."""
    n, k = num_workers, num_helpers
    if n < 2 or not 0 <= k <= n:
        raise ValueError(f"{n} workers and {k} helpers: the formula is for n >= 2 and 0 <= k <= n")
    return 2 * n * (n - 1) * model_bytes / ((n * n + k * n - 2 * k) * bytes_per_s)


def best_frame_bytes(model_bytes: float, frame_s: float, bytes_per_s: float, num_stages: float = 1.0) -> float:
    """sqrt(M·α·B / q): the c that makes M/B + q·c/B + α·M/c least.

    Frames of c bytes cost α seconds each; q stages behind the link's first (server, link down) must be filled by one.
    """
    return math.sqrt(model_bytes * frame_s * bytes_per_s / num_stages)


def bubble(num_stages: int, num_micro_batches: int) -> float:
    """(p − 1) / (m + p − 1): idle part of a pipeline of p equal stages and m micro-batches (Huang et al., "GPipe", NeurIPS 2019)."""
    return (num_stages - 1) / (num_micro_batches + num_stages - 1)
