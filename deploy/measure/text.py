"""Numbers for people."""


def seconds(value: float) -> str:
    """For example 0.41 s, 3.2 ms."""
    if value == 0:
        return "0"
    return f"{value:.2f} s" if value >= 0.05 else f"{value * 1e3:.1f} ms"


def counted(number: int, what: str) -> str:
    """For example 1 worker, 2 workers."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def size(num_bytes: float) -> str:
    """Decimal units, as links are rated."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def megabytes_per_s(rate: float) -> str:
    """Without the unit, so that two can share it; at least two digits that count."""
    value = rate / 1e6
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
