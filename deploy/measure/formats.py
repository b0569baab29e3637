"""Whether a push format pays on this link, from what the ledger has measured. Pure."""

from collections.abc import Sequence

from deploy.measure.text import megabytes_per_s, seconds, size
from deploy.measure.window import Window


def format_advice(window: Window, push_format: str, exact_bytes: Sequence[int]) -> str | None:
    """A sentence if a rank spends more time on encoding than the bytes it saves would take; None if the format pays, or nothing is known.

    `exact_bytes`: what a rank would push to every shard in a step. What it would push to shards on its own host would stay in
    shared memory, so that nothing is saved there. The rate of a link that is not shaped is that at which frames were seen to arrive.
    """
    num_ranks = len(window.ranks)
    if push_format == "fp32" or not num_ranks:
        return None
    shards = list(window.shards.items())
    rate = window.rank_link or sum(means["push_bytes"] / num_ranks / means["push_s"] for _, means in shards if means["push_s"])
    cost_s = sum(means["encode_s"] for _, means in shards) / num_ranks
    saved = sum((1 - means["local"]) * max(0.0, exact_bytes[shard] - means["push_bytes"] / num_ranks) for shard, means in shards)
    if not rate or cost_s * rate <= saved:
        return None
    gain = (
        f"the {size(saved)} that it saves would take {seconds(saved / rate)} at {megabytes_per_s(rate)} MB/s"
        if saved
        else "on one host it saves nothing"
    )
    return f'comm.push_format = "{push_format}" does not pay on this link: a rank spends {seconds(cost_s)} per step on encoding, {gain}: use "fp32"'
