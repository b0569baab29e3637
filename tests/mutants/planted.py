"""A guard switched off inside this process, for searches that are too quick to be worth another one."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from tests.mutants.table import Mutant

ROOT = Path(__file__).parents[2]


def text_of(mutant: Mutant) -> str:
    """The mutant's file without the guard. Raises ValueError if the guard does not stand there exactly once."""
    text = (ROOT / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.guard}: {mutant.file} has its line {text.count(mutant.old)} times: name it anew in tests/mutants/table.py")
    return text.replace(mutant.old, mutant.new)


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """Every function of the file that is another one without the guard has that one's code meanwhile."""
    module = import_module(mutant.file.removesuffix(".py").replace("/", "."))
    changed = ModuleType(module.__name__)
    exec(compile(text_of(mutant), mutant.file, "exec"), changed.__dict__)
    former: list[tuple[FunctionType, CodeType]] = []
    try:
        for function, other in _functions(module, changed):
            if function.__code__.co_code != other.__code__.co_code or function.__code__.co_consts != other.__code__.co_consts:
                former.append((function, function.__code__))
                function.__code__ = other.__code__
        assert former, f"{mutant.guard}: nothing is different without it"
        yield
    finally:
        for function, code in former:
            function.__code__ = code


def _functions(own: Any, other: Any) -> Iterator[tuple[FunctionType, FunctionType]]:
    """Functions of a module and of its classes, and those of the other one with the same names."""
    for name, value in vars(own).items():
        twin = vars(other).get(name)
        value, twin = (getattr(one, "fget", None) or one for one in (value, twin))
        if isinstance(value, FunctionType) and isinstance(twin, FunctionType) and value.__module__ == other.__name__ == twin.__module__:
            yield value, twin
        elif isinstance(value, type) and isinstance(twin, type) and value.__module__ == twin.__module__ == getattr(own, "__name__", ""):
            yield from _methods(value, twin)


def _methods(own: type, other: type) -> Iterator[tuple[FunctionType, FunctionType]]:
    for name, value in vars(own).items():
        twin = vars(other).get(name)
        value, twin = (getattr(one, "fget", None) or one for one in (value, twin))
        if isinstance(value, FunctionType) and isinstance(twin, FunctionType):
            yield value, twin
