"""Writes the stubs of pserver.proto, or with `--check` says whether the committed ones are those it would write.

Run with any Python from any directory: `python protos/generate.py [--check]`.
The compiler has a virtual environment of its own, because stubs must be as old as the oldest protobuf
that we support, and the compiler's dependencies are not ours.
"""

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

COMPILER = "grpcio-tools==1.76.0"
"""Its stubs run with protobuf 6.31.1 and newer."""
ROOT = Path(__file__).resolve().parent.parent
PROTO = "protos/pserver.proto"
STUBS = ("protos/pserver_pb2.py", "protos/pserver_pb2.pyi")


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the stubs of pserver.proto.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the committed stubs differ")
    check = parser.parse_args().check
    if not check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = [stub for stub in STUBS if read(ROOT / stub) != read(Path(folder) / stub)]
    for stub in stale:
        print(f"{stub} is not what {COMPILER} makes of {PROTO}: run `make stubs` and commit the result", file=sys.stderr)
    return 1 if stale else 0


def generate(out: Path) -> None:
    """Writes the stubs under the folder `out`."""
    options = ["-I.", f"--python_out={out}", f"--pyi_out={out}"]
    subprocess.run([str(compiler()), "-m", "grpc_tools.protoc", *options, PROTO], cwd=ROOT, check=True)


def compiler() -> Path:
    """Python with the compiler, installed at the first call under build/ and kept there."""
    home = ROOT / "build" / COMPILER.replace("==", "-")
    python = home / "bin" / "python"
    ready = home / "ready"
    if not (ready.exists() and python.exists()):
        print(f"installing {COMPILER} into {home.relative_to(ROOT)}", file=sys.stderr)
        venv.create(home, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-qq", COMPILER], check=True)
        ready.touch()
    return python


def read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
