"""What a command prints, both ways."""

import json
from typing import Any

import pytest

from deploy.cli.main import main


def json_and_text(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str]:
    """Of a command that ends well, with --json and without."""
    told = []
    for extra in (["--json"], []):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *extra])
        assert not ended.value.code
        told.append(capsys.readouterr().out)
    return json.loads(told[0]), told[1]
