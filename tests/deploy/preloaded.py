"""What every forked process has from the beginning: imports take seconds, and the collector would copy the pages of all that it looks at."""

import gc
from contextlib import suppress
from importlib import import_module

from pydantic import ValidationError

from ps.config import ServerSettings, from_json
from workers.config import WorkerSettings

OURS = ("ps.server", "workers.worker", "tests.deploy.forked", "tests.deploy.broken", "tests.deploy.own_loops")
AT_THE_FIRST_CALL = ("grpc._channel", "grpc._server", "grpc._interceptor", "grpc.experimental", "encodings.idna")
for name in OURS + AT_THE_FIRST_CALL:
    import_module(name)
for settings in (ServerSettings, WorkerSettings):
    with suppress(ValidationError):
        from_json(settings, "{}")
gc.collect()
gc.freeze()
