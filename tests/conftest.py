"""What holds for every test; warnings as errors and the time limit are set in pyproject.toml."""

import functools
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from deploy.virtual.cluster import check_machine
from ps.errors import ResourcesMissing

settings.register_profile("pserver", deadline=None, derandomize=True, max_examples=50, print_blob=True)
settings.load_profile("pserver")


_RAY, _HOSTS = "ray", "hosts"
_LONG = (
    "chaos/test_chaos.py",
    *(f"deploy/test_{what}.py" for what in ("faults", "interrupts", "stages", "resume", "server_deaths")),
)
_FIRST = (_RAY, _HOSTS, *_LONG)
_NO_HOSTS = ("chaos/test_chaos.py", "ps/test_shared.py")
"""Files whose tests need root for something else than virtual hosts."""


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("dist", "no") == "loadgroup" and pytest.version_tuple >= (9, 2):
        raise pytest.UsageError("this pytest does not see the groups of pytest-xdist: take the versions of constraints.txt (`make setup`)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """How processes share the tests (`--dist loadgroup`): one has all that need Ray, for the only one; one makes all virtual hosts, since
    tests look whether any is left; these begin with those. The tests of any other file stay together, for what they share; the longest of
    them come next, that all processes end at about the same time."""
    groups = {item: _group(item) for item in items}
    items.sort(key=lambda item: _FIRST.index(groups[item]) if groups[item] in _FIRST else len(_FIRST))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(groups[item]))


def _group(item: pytest.Item) -> str:
    if "local_ray" in getattr(item, "fixturenames", ()):
        return _RAY
    file = item.path.relative_to(Path(__file__).parent).as_posix()
    return _HOSTS if item.get_closest_marker("root") and file not in _NO_HOSTS else file


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
