"""What every forked process has from the beginning: imports take seconds, and the collector would copy the pages of all that it looks at."""

import gc
from importlib import import_module

for name in ("ps.server", "workers.worker", "tests.deploy.forked", "tests.deploy.broken", "tests.deploy.own_loops", "sklearn.datasets"):
    import_module(name)
gc.collect()
gc.freeze()
