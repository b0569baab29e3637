"""How much batches' gradients differ, and what that says about larger ones. Pure.

McCandlish et al., "An empirical model of large-batch training" (2018), appendix A: a gradient over B samples has E|g_B|² = |G|² + tr(Σ)/B.
Norms over two batch sizes give both unknowns without bias:

    |G|² = (B_big·q_big − B_small·q_small) / (B_big − B_small)
    S    = (q_small − q_big) / (1/B_small − 1/B_big)

and B_simple = S / |G|² is the batch at which noise and gradient are equal. Both are noisy, so each is averaged over steps before the division.
"""


class GradientNoise:
    """Averages over steps. A rank's gradient over its own batch is the small one, the step's mean gradient the big one."""

    def __init__(self, memory: float = 0.99) -> None:
        """`memory`: weight of what is known already when a step is added, 0 <= memory < 1."""
        if not 0 <= memory < 1:
            raise ValueError(f"memory = {memory} is out of range: 0 <= value < 1")
        self._memory = memory
        self.num_steps = 0
        """Steps that have been added."""
        self._weight = 0.0
        self._signal = 0.0
        self._noise = 0.0

    def add(self, small_batch: float, small_square: float, big_batch: float, big_square: float) -> None:
        """One step: samples of each batch, and the squared norm of the mean gradient over them (mean over ranks for the small ones)."""
        if not 0 < small_batch < big_batch:
            raise ValueError(f"batches of {small_batch} and {big_batch} samples: 0 < small < big, which takes two ranks")
        self.num_steps += 1
        signal = (big_batch * big_square - small_batch * small_square) / (big_batch - small_batch)
        noise = (small_square - big_square) / (1 / small_batch - 1 / big_batch)
        self._weight = self._memory * self._weight + 1 - self._memory
        self._signal = self._memory * self._signal + (1 - self._memory) * signal
        self._noise = self._memory * self._noise + (1 - self._memory) * noise

    @property
    def signal(self) -> float | None:
        """|G|², the squared norm of the gradient over all data; None before the first step. May be negative while little is known."""
        return self._signal / self._weight if self._weight else None

    @property
    def noise(self) -> float | None:
        """S, the trace of the covariance of single samples' gradients; None before the first step."""
        return self._noise / self._weight if self._weight else None

    @property
    def scale(self) -> float | None:
        """B_simple in samples; None while it is not known (no step, or estimates that cannot be: not above 0)."""
        if not self._weight or self._signal <= 0 or self._noise <= 0:
            return None
        return self._noise / self._signal
