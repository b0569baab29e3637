"""Who may import whom, and that an import changes nothing but sys.modules."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "protos": {"protos"},
    "ps": {"ps", "protos"},
    "workers": {"workers", "ps"},
    "deploy": {"deploy", "workers", "ps"},
}
RAY_FILES = {"workers/ray_actor.py", *(f"deploy/launch/{name}.py" for name in ("local_ray", "ray", "ray_cluster", "ray_nodes"))}
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "multiprocessing"}
PICKLING = re.compile(r"(torch\.(load|save)|(np|numpy)\.(load|save|savez)|\w+\.\w+_object(_list)?|\w+\.(unsafe_load|full_load))")
"""Calls that pickle or unpickle by themselves: torch's and numpy's files, objects sent by torch.distributed, YAML with tags."""
FILES = sorted(path.relative_to(ROOT).as_posix() for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported(source: str) -> Iterator[str]:
    """Top-level names of all modules that the source imports, inside functions and by literal name too."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name.partition(".")[0] for name in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.partition(".")[0]
            case ast.Call(func=ast.Name(id="__import__" | "import_module"), args=[ast.Constant(value=str(module)), *_]):
                yield module.partition(".")[0]
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(module)), *_]):
                yield module.partition(".")[0]


def broken_rules(file: str, source: str) -> list[str]:
    package = file.partition("/")[0]
    broken = []
    for name in sorted(set(imported(source))):
        if name in MAY_IMPORT and name not in MAY_IMPORT[package]:
            broken.append(f"{file}: {package} may not import {name}")
        if name == "ray" and file not in RAY_FILES:
            broken.append(f"{file}: ray is imported in {' and '.join(sorted(RAY_FILES))} only")
        if name in PICKLES:
            broken.append(f"{file}: {name} runs code from the data it reads")
        if name in ("tests", "benchmarks", "examples"):
            broken.append(f"{file}: {name} is not installed")
    calls = (ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return broken + [f"{file}: {call} runs code from the data it reads" for call in calls if PICKLING.fullmatch(call)]


@pytest.mark.parametrize("file", FILES)
def test_file_keeps_the_import_rules(file: str) -> None:
    assert broken_rules(file, (ROOT / file).read_text()) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ps/x.py", "import workers.config"),
        ("ps/x.py", "from deploy import trainer"),
        ("ps/x.py", "import torch, ray"),
        ("workers/x.py", "from deploy.rundir import RunDir"),
        ("workers/x.py", "from protos import pserver_pb2"),
        ("workers/worker.py", "def work():\n    import ray"),
        ("deploy/trainer.py", "import importlib\nimportlib.import_module('ray.util')"),
        ("deploy/launch/ray.py", "import cloudpickle"),
        ("ps/weights.py", "from pickle import loads"),
        ("protos/x.py", "import ps"),
        ("workers/tasks/x.py", "from tests import conftest"),
        ("ps/x.py", "import torch\ntorch.load(path, weights_only=True)"),
        ("ps/x.py", "import torch\ntorch.save(model, path)"),
        ("workers/x.py", "import numpy as np\nnp.load(path, allow_pickle=True)"),
        ("workers/x.py", "dist.broadcast_object_list([1])"),
        ("deploy/x.py", "from multiprocessing import Queue"),
    ],
)
def test_broken_rule_is_named(file: str, source: str) -> None:
    (message,) = broken_rules(file, source)
    assert message.startswith(file)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("deploy/launch/ray.py", "import ray\nfrom workers.ray_actor import Actor"),
        ("workers/ray_actor.py", "import ray"),
        ("deploy/trainer.py", "from deploy.launch import ray\nfrom ps import config"),
        ("ps/x.py", "from . import config\nfrom protos import pserver_pb2"),
    ],
)
def test_allowed_import_passes(file: str, source: str) -> None:
    assert broken_rules(file, source) == []


IMPORT_ALL = """
import importlib, logging, os, signal, sys, threading

def state():
    return {
        "environment": dict(os.environ),
        "working directory": os.getcwd(),
        "sys.path": list(sys.path),
        "root logger": (logging.root.level, list(logging.root.handlers)),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "signal handlers": {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)},
    }

others, ours = (names.split() for names in sys.argv[1:])
for name in others:
    importlib.import_module(name)
for name in ours:
    before = state()
    importlib.import_module(name)
    after = state()
    for thing in before:
        if before[thing] != after[thing]:
            sys.exit(f"import {name} changes the {thing}: {before[thing]} -> {after[thing]}")
"""


def test_import_has_no_effect_on_the_process() -> None:
    """The libraries are imported first: what they do is theirs."""
    ours = [file.removesuffix(".py").replace("/", ".") for file in FILES]
    ours = [name.removesuffix(".__init__") for name in ours if not name.endswith("__main__")]
    sources = [(ROOT / file).read_text() for file in FILES]
    others = {name for source in sources for name in imports_of_others(source)}
    command = [sys.executable, "-c", IMPORT_ALL, " ".join(sorted(others)), " ".join(ours)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def imports_of_others(source: str) -> Iterator[str]:
    """Full names of the modules outside the project that the source imports at its top level."""
    for node in ast.parse(source).body:
        match node:
            case ast.Import(names=names):
                modules = [name.name for name in names]
            case ast.ImportFrom(module=str(module), level=0):
                modules = [module]
            case _:
                continue
        yield from (module for module in modules if module.partition(".")[0] not in MAY_IMPORT)
