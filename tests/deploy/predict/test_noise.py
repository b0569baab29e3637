"""The gradient noise scale against a direct estimate from the gradients of all single samples."""

import numpy as np
import pytest

from deploy.predict.noise import GradientNoise


def sample_gradients(weights: np.ndarray, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Of least squares, one row per sample."""
    return 2 * (inputs @ weights - targets)[:, None] * inputs


def test_scale_is_within_a_quarter_of_the_direct_estimate() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(4096, 20))
    targets = inputs @ rng.normal(size=20) + rng.normal(size=4096)
    gradients = sample_gradients(np.zeros(20), inputs, targets)
    mean = gradients.mean(0)
    direct = gradients.var(0, ddof=1).sum() / (mean @ mean)
    ranks, batch = 4, 8
    found = GradientNoise(memory=0.999)
    for _ in range(3000):
        means = gradients[rng.integers(4096, size=(ranks, batch))].mean(1)
        big = means.mean(0)
        found.add(batch, float((means**2).sum(1).mean()), ranks * batch, float(big @ big))
    assert found.scale == pytest.approx(direct, rel=0.25)
    assert found.signal == pytest.approx(mean @ mean, rel=0.25)
    assert found.noise == pytest.approx(gradients.var(0).sum(), rel=0.25)


def test_exact_norms_give_the_exact_scale_at_once() -> None:
    found = GradientNoise()
    found.add(8, 3 + 40 / 8, 32, 3 + 40 / 32)
    assert (found.signal, found.noise, found.scale) == pytest.approx((3, 40, 40 / 3))


def test_nothing_is_said_without_steps_or_sense() -> None:
    found = GradientNoise()
    assert found.scale is None and found.signal is None and found.noise is None
    found.add(8, 1.0, 32, 2.0)  # the mean of more samples has the larger norm: chance
    assert found.scale is None and found.noise is not None
    with pytest.raises(ValueError, match="two ranks"):
        found.add(8, 1.0, 8, 1.0)
    with pytest.raises(ValueError, match="memory"):
        GradientNoise(memory=1.0)
