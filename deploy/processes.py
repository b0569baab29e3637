"""The processes of a run: what each is told, and how it is started."""

from deploy.config import Config
from deploy.keys import RunKeys
from deploy.launch.base import Launcher, ProcessKey
from deploy.resume import Beginning
from ps.config import Saving, ServerSettings, Timeouts, to_json
from ps.roles import Role
from workers.config import RivalSettings, WorkerSettings
from workers.context import for_any_process
from workers.task import load_task, task_fields, task_path


class Processes:
    """Starts servers and workers, the first time and again: a successor is told the same."""

    def __init__(
        self,
        config: Config,
        launcher: Launcher,
        *,
        keys: RunKeys,
        control_address: str,
        timeouts: Timeouts,
        beginning: Beginning,
        rival: RivalSettings | None = None,
    ) -> None:
        self._config = config
        self._launcher = launcher
        self._keys = keys
        self._control_address = control_address
        self._timeouts = timeouts
        self._beginning = beginning
        self._rival = rival
        self._task = load_task(config.task.name, config.task.fields) if config.task else None
        self._train = for_any_process(config.train)

    def start(self, key: ProcessKey) -> None:
        """Returns at once."""
        settings = self._server(key) if key.role == "server" else self._worker(key)
        self._launcher.start(key, to_json(settings))

    def _server(self, key: ProcessKey) -> ServerSettings:
        config = self._config
        return ServerSettings(
            run_id=self._keys.run_id,
            generation=self._beginning.generation,
            secret=self._keys.secret,
            tls=self._keys.tls(Role("server", key.index)),
            shard=key.index,
            num_servers=config.scaling.num_servers,
            num_workers=config.scaling.num_workers,
            num_stages=config.scaling.num_stages,
            control_address=self._control_address,
            host=self._launcher.bind_host(key),
            optimizer=config.optimizer,
            schedule=config.schedule,
            comm=config.comm,
            exact=config.train.exact,
            security=config.security,
            saving=self._saving(key),
            metrics=config.metrics,
            timeouts=self._timeouts,
        )

    def _saving(self, key: ProcessKey) -> Saving | None:
        config, beginning = self._config, self._beginning
        if self._rival:
            return None
        before, after = beginning.rundir.checkpoints.part_paths(beginning.generation)
        file = (before, f"{after}/{beginning.rundir.checkpoints.part_name(key.role, key.index)}") if config.run.shared_storage else None
        return Saving(config=config.checkpoint, file=file, restored=beginning.checkpoint.version if beginning.checkpoint else None)

    def _worker(self, key: ProcessKey) -> WorkerSettings:
        config = self._config
        rank, stage = divmod(key.index, config.scaling.num_stages)
        mine = self._keys.credentials(Role("member", rank, stage))
        before = self._keys.credentials(Role("member", rank, stage - 1)).token if stage and mine.token else None
        return WorkerSettings(
            run_id=mine.run_id,
            generation=self._beginning.generation,
            token=mine.token,
            tls=mine.tls,
            rank=rank,
            num_workers=config.scaling.num_workers,
            stage=stage,
            num_stages=config.scaling.num_stages,
            pipeline=config.pipeline,
            host=self._launcher.bind_host(key),
            token_before=before,
            num_servers=config.scaling.num_servers,
            gpus=config.scaling.gpus_per_worker,
            control_address=self._control_address,
            task=task_path(self._task) if self._task else None,
            task_fields=task_fields(self._task) if self._task else {},
            train=self._train,
            slowdown=config.scaling.slowdown.get(rank, 1.0),
            rival=self._rival,
            optimizer=config.optimizer,
            comm=config.comm,
            security=config.security,
            saving=self._saving(key),
            metrics=config.metrics,
            timeouts=self._timeouts,
        )
