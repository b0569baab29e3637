import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from torch import Tensor, nn

from ps.errors import ConfigError
from workers.task import Samples, Task, load_task, task_fields, task_path
from workers.tasks.digits import Digits

HERE = __name__


@dataclass(frozen=True)
class Base(Task):
    def model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def train_data(self) -> Samples:
        return []

    def validation_data(self) -> Samples:
        return []

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Sized(Base):
    data: Path
    width: int = 8
    rate: float = 0.5
    mode: Literal["fast", "small"] = "fast"
    sizes: tuple[int, ...] = ()
    names: dict[str, list[int]] = field(default_factory=dict)
    depth: Annotated[int, Field(gt=0)] = 1
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.width > 100:
            raise ValueError(f"task.width = {self.width} is out of range: <= 100")


class Undecorated(Base):
    pass


@dataclass(frozen=True)
class Unfinished(Task):
    pass


@dataclass(frozen=True)
class Named(Base):
    name: str = "x"


@dataclass(frozen=True)
class Odd(Base):
    thing: nn.Module | None = None


@pytest.fixture(autouse=True)
def imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forgets what a test has imported and put on the path."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("task_file_", "neighbour", "lonely")):
            del sys.modules[name]


SOURCE = """
from dataclasses import dataclass
from tests.workers.test_task import Base
{extra}

@dataclass(frozen=True)
class Mine(Base):
    width: int = 1
"""


def test_a_shipped_name_loads_with_defaults_and_fields() -> None:
    assert load_task("digits", {}) == Digits()
    assert load_task("digits", {"hidden": 7}) == Digits(hidden=7)


def test_a_task_travels_as_path_and_fields() -> None:
    task = Sized(Path("a"), width=3, rate=2, sizes=(1, 2), names={"a": [1]}, limit=4)
    assert task_path(task) == task_path(Sized) == f"{HERE}:Sized"
    assert load_task(task_path(task), task_fields(task)) == task
    assert task_fields(task)["data"] == "a"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widht": 3}, "task.widht is no field of Sized: did you mean width?"),
        ({"zzz": 3}, "task.zzz is no field of Sized: there is data, width, rate"),
        ({"width": "a"}, "task.width = 'a' is no int"),
        ({"width": "3"}, "task.width = '3' is no int"),
        ({"width": 3.0}, "task.width = 3.0 is no int"),
        ({"width": True}, "task.width = True is no int"),
        ({"rate": "a"}, "task.rate = 'a' is no float"),
        ({"mode": "slow"}, "task.mode = 'slow' is no Literal['fast', 'small']"),
        ({"sizes": [1, "a"]}, "task.sizes = [1, 'a'] is no tuple[int, ...]"),
        ({"limit": "a"}, "task.limit = 'a' is no int | None"),
        ({"depth": 0}, "task.depth = 0: input should be greater than 0"),
        ({"width": 101}, "task.width = 101 is out of range: <= 100"),
    ],
)
def test_a_wrong_field_is_named_with_its_remedy(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_task(f"{HERE}:Sized", {"data": "d", **fields})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"task\.data is missing: Sized has no default for it"):
        load_task(f"{HERE}:Sized", {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digts", "task.name = 'digts' is no shipped task: did you mean digits?"),
        ("no_such_module:X", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("no/such/file.py:X", "cannot be imported: FileNotFoundError: there is no file /"),
        ("no/such/file.py:", "names nothing: write package.module:NAME or path/file.py:NAME"),
        (":Mine", "names nothing: write package.module:NAME or path/file.py:NAME"),
        (f"{HERE}:Sizd", f"no Sizd in {HERE}: did you mean Sized?"),
        (f"{HERE}:HERE", "is no task: derive it from workers.task.Task"),
        (f"{HERE}:Path", "Path is no task: derive it from workers.task.Task"),
        (f"{HERE}:Undecorated", "Undecorated is no dataclass: decorate it with @dataclass(frozen=True)"),
        (f"{HERE}:Unfinished", "Unfinished lacks loss, model, train_data, validation_data"),
        (f"{HERE}:Named", "Named has a field `name`, but task.name names the task: rename the field"),
        (f"{HERE}:Odd", "Odd has a field that no config file can hold"),
        ("__main__:Mine", "move it to a module of its own file, e.g. mytask.py, and name it mytask:Mine"),
    ],
)
def test_a_wrong_name_is_refused_with_its_remedy(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_task(name, {})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_of_the_main_script_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Base, "__module__", "__main__")
    with pytest.raises(ConfigError, match=r"Base is defined in __main__, .* name it mytask:Base"):
        task_path(Base)


def test_a_class_inside_a_function_is_refused() -> None:
    @dataclass(frozen=True)
    class Local(Base):
        pass

    with pytest.raises(ConfigError, match="Local is defined inside a function"):
        task_path(Local())


def test_a_file_loads_once_with_its_neighbours_and_travels_by_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "neighbour.py").write_text("X = 1")
    (tmp_path / "random.py").write_text(SOURCE.format(extra="from neighbour import X"))  # a name that is taken
    monkeypatch.chdir(tmp_path)
    task = load_task("random.py:Mine", {"width": 2})
    assert task_path(task) == f"{tmp_path}/random.py:Mine"
    assert load_task(task_path(task), task_fields(task)) == task


def test_a_module_of_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lonely.py").write_text(SOURCE.format(extra=""))
    monkeypatch.chdir(tmp_path)
    assert task_path(load_task("lonely:Mine", {})) == "lonely:Mine"


def test_a_relative_import_of_a_file_is_told_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "relative.py").write_text("from .net import Net")
    with pytest.raises(ConfigError, match=r"relative import with no known parent package: name it as part of its package, package\.module:NAME"):
        load_task(f"{tmp_path}/relative.py:Mine", {})


def test_an_error_of_the_users_file_is_told_every_time(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    for _ in range(2):
        with pytest.raises(ConfigError, match="cannot be imported: ZeroDivisionError: division by zero"):
            load_task(f"{tmp_path}/broken.py:Mine", {})


def test_a_script_that_ends_the_program_when_it_is_imported_does_not_end_ours(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nsys.exit()")
    with pytest.raises(ConfigError, match=r'it ends the program \(sys.exit\(None\)\): .* below `if __name__ == "__main__":`'):
        load_task(f"{tmp_path}/script.py:Mine", {})
