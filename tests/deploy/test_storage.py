"""Whether nodes see the run directory, from what the processes there report."""

from pathlib import Path

import pytest

from deploy.launch.storage import SharedStorage
from ps.errors import ConfigError
from workers.ray_actor import Place


def place(host: str, *, sees_run: bool) -> Place:
    return Place(node_id=host, host=host, pid=1, start_s=0.0, actor_id="a", sees_run=sees_run)


SEES, BLIND, OTHER = place("one", sees_run=True), place("two", sees_run=False), place("three", sees_run=False)


def test_storage_that_all_see_is_nothing_to_talk_about() -> None:
    assert SharedStorage(Path("/runs"), shared=True).check([SEES, SEES]) is None


def test_hosts_that_do_not_see_it_are_all_named_once_all_are_known() -> None:
    storage = SharedStorage(Path("/runs"), shared=True)
    assert storage.check([SEES, BLIND, None]) is None
    assert storage.refuses(BLIND) and not storage.refuses(SEES) and not storage.refuses(None)
    with pytest.raises(ConfigError, match=r"^run.storage_path: three, two cannot see /runs of the driver's host: .* run.shared_storage = false"):
        storage.check([SEES, BLIND, OTHER])
    assert storage.check([SEES, BLIND, OTHER]) is None, "the error has been raised"
    assert not storage.refuses(BLIND), "an ending is an ending from now on"


def test_storage_that_need_not_be_shared_is_a_line_for_the_user() -> None:
    storage = SharedStorage(Path("/runs"), shared=False)
    assert not storage.refuses(BLIND)
    text = storage.check([SEES, BLIND])
    assert text is not None and text.startswith("logs of processes on two stay there")
    assert storage.check([SEES, BLIND]) is None


def test_the_file_that_is_looked_for_is_removed_in_the_end(tmp_path: Path) -> None:
    storage = SharedStorage(tmp_path, shared=True)
    path = storage.write_probe(tmp_path)
    assert path == storage.write_probe(tmp_path) and path.read_text() == storage.probe
    storage.close()
    storage.close()
    assert list(tmp_path.iterdir()) == []
    assert storage.check([BLIND]) is None
