"""What the shards of a model are made of, and what may happen in them one by one."""

from collections.abc import Callable
from dataclasses import dataclass

from ps.barrier import Barrier
from ps.norms import NormDelivery
from ps.store import Store


@dataclass(frozen=True)
class Rules:
    """Controls replace one of the classes, or one of the orders."""

    barrier: type[Barrier] = Barrier
    store: type[Store] = Store
    delivery: type[NormDelivery] = NormDelivery
    absent: Callable[[int, int, int], bool] = lambda rank, step, chunk: False
    bound: int = 1 << 30
    two_phase: bool = False
    separate_writes: bool = True
    """The writes of an apply are separate events."""
    receipts: bool = False
    """Frames are answered by a receipt; else credits are not looked at."""
    slow_receipts: bool = False
    """The thread that took a frame may be overtaken before it sends the receipt."""
    slow_holding: bool = False
    """So may it be before it holds a receipt for the answer."""
    slow_sums: bool = False
    """Sums are separate events."""
