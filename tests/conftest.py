"""What holds for every test; warnings as errors and the time limit are set in pyproject.toml."""

import functools
import os
import shutil

import pytest
import torch
from hypothesis import settings

from deploy.virtual.cluster import check_machine
from ps.errors import ResourcesMissing

settings.register_profile("pserver", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("pserver")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Continuous integration sets PSERVER_NO_SKIP=1, so that nothing is left out unseen."""
    needs = {"root": _no_namespaces, "chromium": _no_chromium}
    if reason := next((reason for marker, missing in needs.items() if item.get_closest_marker(marker) and (reason := missing())), ""):
        if os.environ.get("PSERVER_NO_SKIP") == "1":
            pytest.fail(f"{reason} (PSERVER_NO_SKIP=1 forbids to skip)")
        pytest.skip(reason)


@functools.cache
def _no_namespaces() -> str:
    """Why this machine can make no virtual cluster; empty if it can."""
    try:
        check_machine()
    except ResourcesMissing as error:
        return str(error)
    return ""


def _no_chromium() -> str:
    """Why no page can be opened; empty if one can."""
    return "" if shutil.which("chromium") else "there is no chromium: install one (Debian: apt-get install chromium)"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Torch uses one thread inside an operation, as the processes of a run do by default."""
    torch.set_num_threads(1)
