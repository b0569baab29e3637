"""Names that a mistyped one may have meant."""

import difflib
from collections.abc import Iterable


def hint(name: str, valid: Iterable[str], *, prefix: str = "", kind: str) -> str:
    """Remedy for an unknown name: the nearest valid one with `prefix`, else all of them headed by `kind`."""
    names = list(valid)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {prefix}{near[0]}?" if near else f"{kind}: {', '.join(names)}"
