"""Faults from outside: `python -m tests.chaos --help`."""
