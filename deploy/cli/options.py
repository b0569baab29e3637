"""Options that several verbs have."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class LauncherName(StrEnum):
    """How processes are started."""

    RAY = "ray"
    PROCESS = "process"


class PushFormat(StrEnum):
    """As comm.push_format."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    TOPK = "topk"


class PullFormat(StrEnum):
    """As comm.pull_format."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


Run = Annotated[str | None, typer.Argument(metavar="[RUN]", help="A run directory or name; default: the newest.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The config file.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one key; may be repeated.")]
Workers = Annotated[int | None, typer.Option("--workers", metavar="N", help="Short for --set scaling.num_workers=N.")]
Servers = Annotated[int | None, typer.Option("--servers", metavar="N", help="Short for --set scaling.num_servers=N.")]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Short for --set run.name=NAME.")]
Launcher = Annotated[LauncherName, typer.Option("--launcher", help="Ray actors, or plain processes on this machine.")]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster to use. Default: RAY_ADDRESS, else a local one.")]
Straggler = Annotated[list[str] | None, typer.Option("--straggler", metavar="rank=R,factor=F", help="A slower rank; may be repeated.")]
Stack = Annotated[bool, typer.Option("--traceback", help="Show the stack of an error.")]


def changes(sets: Sequence[str] | None, flags: Mapping[str, object]) -> list[str]:
    """What is to be set in the config: `sets`, then the flags that were given, by the keys that they are short for."""
    from deploy.config.write import to_value

    return [*(sets or []), *(f"{key}={to_value(value)}" for key, value in flags.items() if value is not None)]
