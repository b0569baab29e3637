"""What holds for every test; warnings as errors and the time limit are set in pyproject.toml."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("pserver", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("pserver")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Torch uses one thread inside an operation, as the processes of a run do by default."""
    torch.set_num_threads(1)
