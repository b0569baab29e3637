"""Guards switched off one by one: `python -m tests.mutants --help`."""
