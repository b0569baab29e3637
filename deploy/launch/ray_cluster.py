"""The Ray that a run's actors live in: the program's own, a given cluster, or a local one."""

import os
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from deploy.launch.base import ENVIRONMENT
from deploy.launch.code import stage
from deploy.launch.local_ray import close_token, quiet_init, start_local_ray
from deploy.launch.ray_errors import refused, require_listener
from deploy.launch.ray_head import RayHead
from deploy.launch.ray_nodes import alive_nodes
from deploy.scratch import scratch_folder
from ps.errors import ConfigError

_IN_SUBMITTED_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray for the entry point of `ray job submit`; not documented, but the only sign before `ray.init`."""


class RayCluster:
    """A Ray that the program has initialised already, else the cluster at `address` (or RAY_ADDRESS), else a local one, which `close` shuts
    down. Not thread-safe."""

    def __init__(self, address: str | None, code: Path | None, timeout_s: float) -> None:
        """`code`: folder of the user's code, which travels to the nodes of a given cluster. Raises ConfigError for an address of Ray's client."""
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        if "://" in self._address:
            raise ConfigError(
                f"{self._address}: the driver must run inside the cluster: use `ray job submit -- pserver run CONFIG.toml`, "
                "or give the address of a cluster node as HOST:PORT"
            )
        self._code = code
        self._timeout_s = timeout_s
        self._owns_ray = False
        self._head: RayHead | None = None
        self.is_alone = True
        """Whether it has one node."""
        self.code_root: Path | None = None
        """What the nodes have a copy of as their working directory."""

    def connect(self, num_cpus: int, not_code: Path) -> None:
        """`num_cpus`: logical ones of a local Ray. `not_code`: a folder that stays out of what travels. Raises Unreachable, Unauthenticated,
        ConfigError."""
        if not ray.is_initialized():
            self._init(num_cpus, not_code)
        self._head = self._head or RayHead(ray.get_runtime_context().gcs_address)
        self.is_alone = len(alive_nodes()) == 1

    def _init(self, num_cpus: int, not_code: Path) -> None:
        local = self._address == "local"
        if not local and self._address != "auto":
            require_listener(self._address, self._timeout_s)
        with quiet_init(), scratch_folder() as folder:
            runtime_env = None if local else self._staged(folder, not_code)
            try:
                if local:
                    start_local_ray(num_cpus)
                else:
                    ray.init(self._address, runtime_env=runtime_env, log_to_driver=False, configure_logging=False)
            except (ConnectionError, AuthenticationError) as error:
                raise refused(self._address, error) from error
        self._owns_ray = True
        if local:
            close_token()
        if _IN_SUBMITTED_JOB in os.environ and ray.get_runtime_context().runtime_env.get("working_dir"):
            self.code_root = Path.cwd()

    def _staged(self, folder: Path, not_code: Path) -> dict[str, Any] | None:
        """The runtime environment, which carries the user's code; a submitted job has brought its own."""
        if _IN_SUBMITTED_JOB in os.environ:
            return None
        if self._code is None:
            return {"env_vars": ENVIRONMENT}
        stage(self._code, folder, skip=not_code)
        self.code_root = self._code
        return {"working_dir": str(folder), "env_vars": ENVIRONMENT}

    def answers(self) -> bool:
        """Whether Ray may be asked anything: without the head its calls hang. Raises HeadLost when it is lost for good."""
        return self._head is None or self._head.answers()

    def leave_head(self) -> bool:
        """Looks at the head no more; whether it was there to the last."""
        if self._head:
            self._head.close()
            if not self._head.is_there:
                return False
            self._head = None
        return True

    def close(self) -> None:
        """Shuts down what `connect` has started, or connected to. Idempotent."""
        if self._owns_ray:
            ray.shutdown()
            self._owns_ray = False
