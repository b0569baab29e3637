"""The real decision classes under a seeded scheduler that simulates clock, network and deaths: `python -m tests.explore --help`."""
