"""Parsl executors whose apps run in prepared environments.

Parsl's own executors drive their manager from a second process, since its binding holds Python's lock while it waits;
the dispatcher lets go of it, so the manager is in this process, and tasks are ours from the start.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from parsl.executors.errors import ExecutorError
from parsl.executors.status_handling import BlockProviderExecutor
from parsl.executors.taskvine import TaskVineExecutor, TaskVineFactoryConfig, TaskVineManagerConfig
from parsl.executors.workqueue.executor import WorkQueueExecutor
from parsl.monitoring.radios.base import RadioConfig
from parsl.monitoring.radios.filesystem import FilesystemRadio
from parsl.providers import CondorProvider, LocalProvider
from parsl.providers.base import ExecutionProvider

from poncho_wq.engines import core
from poncho_wq.engines.dispatcher import Dispatcher, RemoteFuture, Work
from poncho_wq.engines.opened import Engine, open_engine
from poncho_wq.engines.parsl_apps import Call, app_call, checked_init, needs_of, parsl_requirement
from poncho_wq.errors import EngineError

if TYPE_CHECKING:
    from poncho_wq.prepare import EnvironmentLike

__all__ = ["PonchoTaskVineExecutor", "PonchoWorkQueueExecutor"]

# Of a factory's configuration: what would change where or how workers run, and cannot be had.
_NOT_OFFERED = ("python_env", "condor_requirements", "batch_options")


def _options_of(factory: TaskVineFactoryConfig) -> list[str]:
    """What the workers of a factory are told besides their cores."""
    given = [(name, getattr(factory, name)) for name in ("memory", "disk", "gpus")]
    return [f"--{name}={value}" for name, value in given if value] + shlex.split(factory.worker_options or "")


class _PonchoExecutor(BlockProviderExecutor):
    """What both have in common.  ``_open`` tells how the engine is opened, ``_worker_command`` how a block joins it."""

    _strict = False

    def __init__(
        self,
        *,
        label: str,
        provider: ExecutionProvider | None,
        environment: EnvironmentLike | None,
        extra_pkgs: Sequence[str],
        init_command: str,
        shared_fs: bool,
        cache_inputs: bool,
        autocategory: bool,
        max_retries: int | None,
        env: dict[str, str] | None,
        storage_access: list[Any] | None,
        remote_monitoring_radio: RadioConfig | None,
    ) -> None:
        # By name, as below: the classes of Parsl's own executors follow ours for `isinstance` alone.
        BlockProviderExecutor.__init__(self, provider=provider, block_error_handler=True)
        self.label = label
        self.storage_access = storage_access
        self.remote_monitoring_radio = remote_monitoring_radio or FilesystemRadio()
        self._environment = environment
        self._extra = tuple(extra_pkgs)
        self._before = checked_init(init_command)
        self._shared_fs = shared_fs
        self._cache_inputs = cache_inputs
        self._autocategory = autocategory
        self._retries = max_retries
        self._env = dict(env or {})
        self._lock = threading.Lock()
        self._count = 0
        self._dispatcher: Dispatcher | None = None
        self.worker_command = ""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label!r}>"

    @abstractmethod
    def _open(self) -> Any:
        """A context manager with the engine."""

    @abstractmethod
    def _join_command(self, port: int | None) -> str:
        """What a block runs."""

    # -- as Parsl calls it

    def start(self) -> None:
        """Open the manager.  Raises ``EngineNotInstalled``."""
        BlockProviderExecutor.start(self)  # type: ignore[no-untyped-call] # Parsl's
        self._dispatcher = Dispatcher(self._open, self._forget)
        self.worker_command = self._join_command(self._dispatcher.port)

    def submit(
        self, func: Callable[..., Any], resource_specification: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Future[Any]:
        """Run an app in its environment.

        Raises ``InvalidResourceSpecification``, and ``ExecutorError`` when the manager is gone.  Whatever goes wrong
        with environment or function is told by the future.
        """
        if self._dispatcher is None:
            raise ExecutorError(self, "the executor has not been started")
        if resource_specification.get("exec_mode", "regular") != "regular":
            raise EngineError(
                "exec_mode: only 'regular' is offered by this executor",
                advice="for functions in a library, use poncho_wq.taskvine.library_from_functions",
            )
        needs = needs_of(resource_specification, retries=self._retries, strict=self._strict)
        call = app_call(func, args, kwargs, shared_fs=self._shared_fs, cache_inputs=self._cache_inputs)
        future = RemoteFuture()
        category = resource_specification.get("category") or (call.name if self._autocategory else "parsl-default")

        def make(engine: Engine) -> Any:
            task = self._task(engine, call)
            engine.need(task, needs)
            engine.describe(task, category=category, variables=self._env)
            seconds = resource_specification.get("running_time_min")
            if seconds is not None:
                (task.set_time_min if engine.kind == "taskvine" else task.specify_running_time_min)(seconds)
            for file in call.files:
                engine.attach(task, file.name, file.name, output=file.output, cache=file.cache)
            return task

        with self._lock:
            self._count += 1
            future.parsl_executor_task_id = self._count  # type: ignore[attr-defined] # Parsl's log and monitoring read it
            future.resource_specification = resource_specification  # type: ignore[attr-defined]
            self.tasks[id(future)] = future
        try:
            self._dispatcher.put(Work(make, future))
        except (BrokenExecutor, RuntimeError) as error:
            with self._lock:
                self.tasks.pop(id(future), None)
            raise ExecutorError(self, str(error)) from error
        return future

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """End the manager and whatever still runs."""
        if self._dispatcher is not None:
            self._dispatcher.stop(cancel=True)
            self._dispatcher.join()
        BlockProviderExecutor.shutdown(self)

    def outstanding(self) -> int:
        """What the tasks want which are not done, in the units of ``workers_per_node``."""
        with self._lock:
            waiting = [future for future in self.tasks.values() if not future.done()]
        return sum(map(self._slots, waiting))

    def _slots(self, future: Any) -> int:
        return int(getattr(future, "resource_specification", {}).get("cores", self.workers_per_node))

    @property
    def workers_per_node(self) -> int:
        """Slots of a node, to Parsl's scaling: what it compares ``outstanding`` with."""
        return 1

    def _get_launch_command(self, block_id: str) -> str:
        return f"PARSL_WORKER_BLOCK_ID={block_id} {self.worker_command}"

    # -- in the dispatcher's thread

    def _task(self, engine: Engine, call: Call) -> Any:
        task = engine.PonchoTask(call.function, *call.args, **call.kwargs)
        environment = self._environment_for(call)
        if environment is not None:
            task.specify_environment(environment)
        task._job.before = self._before
        return task

    def _environment_for(self, call: Call) -> Any:
        """None: analyzed from the call, with Parsl among its packages if anything of it is reached."""
        if self._environment is not None:
            return core.prepared(self._environment, (parsl_requirement(), *self._extra))
        if not self._extra:
            return None
        from poncho_wq.analyze import analyze

        return analyze(partial(call.function, *call.args, **call.kwargs), extra_packages=self._extra)

    def _forget(self, work: Work) -> None:
        with self._lock:
            self.tasks.pop(id(work.future), None)

    def _stage_to_provider(self, program: str, password_file: str | None) -> None:
        """Condor brings the worker's program and its password along."""
        if not isinstance(self.provider, CondorProvider):
            return
        path = shutil.which(program)
        self.provider.transfer_input_files += [each for each in (path, password_file) if each is not None]
        self.worker_command = "./" + self.worker_command


def _local_provider() -> ExecutionProvider:
    return LocalProvider(init_blocks=1)  # type: ignore[no-untyped-call] # Parsl's


class PonchoWorkQueueExecutor(_PonchoExecutor, WorkQueueExecutor):
    """Parsl's ``WorkQueueExecutor``, with every app in an environment made for it.

    ``environment``: anything that ``poncho_wq.environment`` takes, for all apps; Parsl itself is added to a description
    (an ``Environment`` or a tarball is taken as it is: bash apps and ``File`` arguments need Parsl in it).  Default:
    analyzed from each app.  A worker unpacks it once.  ``manual_workers``: no provider, workers of your own.  The other
    parameters are as in Parsl, and ``port=0``, the default, is any that is free.  ``pack``, ``source``,
    ``function_dir`` and ``full_debug`` have nothing left to do; ``coprocess`` and ``autolabel`` are not offered.

    Work Queue's binding is found wherever it is, Debian's too.  Raises ``EngineError`` for an ``init_command`` that
    would move apps out of their environments, for a password file that is not there, and for what is not offered.
    """

    _strict = True

    def __init__(
        self,
        label: str = "PonchoWorkQueueExecutor",
        provider: ExecutionProvider | None = None,
        *,
        environment: EnvironmentLike | None = None,
        working_dir: str = ".",
        project_name: str | None = None,
        project_password_file: str | None = None,
        address: str | None = None,
        port: int = 0,
        env: dict[str, str] | None = None,
        shared_fs: bool = False,
        storage_access: list[Any] | None = None,
        use_cache: bool = False,
        source: bool = False,
        pack: bool = False,
        extra_pkgs: Sequence[str] | None = None,
        autolabel: bool = False,
        autolabel_window: int = 1,
        autocategory: bool = True,
        max_retries: int | None = 1,
        init_command: str = "",
        worker_options: str = "",
        full_debug: bool = True,
        worker_executable: str = "work_queue_worker",
        function_dir: str | None = None,
        coprocess: bool = False,
        scaling_cores_per_worker: int = 1,
        remote_monitoring_radio: RadioConfig | None = None,
        manual_workers: bool = False,
    ) -> None:
        for name, given in (("coprocess", coprocess), ("autolabel", autolabel)):
            if given:
                raise EngineError(f"{name}=True is not offered by this executor", advice=f"leave {name} out")
        if project_password_file is not None and not os.path.exists(project_password_file):
            raise EngineError(f"{project_password_file}: there is no such password file")
        super().__init__(
            label=label, provider=None if manual_workers else provider or _local_provider(), environment=environment,
            extra_pkgs=extra_pkgs or (), init_command=init_command, shared_fs=shared_fs, cache_inputs=use_cache,
            autocategory=autocategory, max_retries=max_retries, env=env, storage_access=storage_access,
            remote_monitoring_radio=remote_monitoring_radio,
        )  # fmt: skip
        self.working_dir = working_dir
        self._port = port
        self._project_name = project_name
        self._password_file = project_password_file
        self._address = address or socket.gethostname()
        self._worker = worker_executable
        self._worker_options = worker_options
        self._cores_per_worker = scaling_cores_per_worker

    @property
    def workers_per_node(self) -> int:
        """``scaling_cores_per_worker``, as in Parsl's own: ``outstanding`` is counted in cores."""
        return self._cores_per_worker

    def start(self) -> None:
        super().start()
        self._stage_to_provider("work_queue_worker", self._password_file)

    def _open(self) -> Any:
        return open_engine(
            "work_queue", port=self._port, name=self._project_name, password_file=self._password_file,
            setup=self._set_up,
        )  # fmt: skip

    def _set_up(self, manager: Any) -> None:
        logs = os.path.join(self.run_dir, self.label)
        os.makedirs(logs, exist_ok=True)
        manager.specify_log(os.path.join(logs, "master_log"))
        manager.specify_transactions_log(os.path.join(logs, "transaction_log"))

    def _join_command(self, port: int | None) -> str:
        words = [self._worker]
        if self._password_file is not None:
            words += ["--password", self._password_file]
        if self._worker_options:
            words.append(self._worker_options)
        words += ["-M", self._project_name] if self._project_name else [self._address, str(port)]
        return " ".join(words)


class PonchoTaskVineExecutor(_PonchoExecutor, TaskVineExecutor):
    """Parsl's ``TaskVineExecutor``, with every app in an environment made for it.

    ``environment`` as for ``PonchoWorkQueueExecutor``; it takes the place of ``env_pack`` and ``app_pack`` of the
    ``manager_config``.  Functions run as tasks of their own; ``function_exec_mode="serverless"`` is not offered.

    ``worker_launch_method``: ``"provider"``, ``"factory"`` or ``"manual"``.  A factory keeps ``max_workers`` of
    ``cores`` (None: as many as this process may use), ``memory``, ``disk`` and ``gpus``, with ``worker_options``, as
    jobs of its ``batch_type``, or as processes here for ``"local"``; a provider's blocks run the ``worker_executable``
    with ``worker_options``.  The ``scratch_dir``, and other numbers and times, of the
    ``factory_config`` are not used.

    Raises ``EngineError`` for what is not offered, and for an ``init_command`` that would move apps out of their
    environments.
    """

    def __init__(
        self,
        label: str = "PonchoTaskVineExecutor",
        worker_launch_method: Literal["provider", "factory", "manual"] = "factory",
        *,
        environment: EnvironmentLike | None = None,
        function_exec_mode: str = "regular",
        manager_config: TaskVineManagerConfig | None = None,
        factory_config: TaskVineFactoryConfig | None = None,
        provider: ExecutionProvider | None = None,
        storage_access: list[Any] | None = None,
        remote_monitoring_radio: RadioConfig | None = None,
    ) -> None:
        config = manager_config if manager_config is not None else TaskVineManagerConfig(port=0)
        if worker_launch_method not in ("provider", "factory", "manual"):
            raise EngineError(f"worker_launch_method: {worker_launch_method!r} is none of provider, factory, manual")
        if function_exec_mode != "regular":
            raise EngineError(f"function_exec_mode={function_exec_mode!r} is not offered by this executor")
        for name in ("env_pack", "app_pack", "autolabel"):
            if getattr(config, name):
                raise EngineError(f"{name} is not offered by this executor", advice="use environment=…")
        for name in _NOT_OFFERED:
            if factory_config is not None and getattr(factory_config, name, None):
                raise EngineError(
                    f"{name} of the factory_config is not offered by this executor",
                    advice="start the workers yourself with worker_launch_method='manual', or use a provider",
                )
        if worker_launch_method == "provider":
            provider = provider or _local_provider()
        super().__init__(
            label=label, provider=provider if worker_launch_method == "provider" else None, environment=environment,
            extra_pkgs=config.extra_pkgs or (), init_command=config.init_command, shared_fs=config.shared_fs,
            cache_inputs=True, autocategory=config.autocategory, max_retries=config.max_retries, env=config.env_vars,
            storage_access=storage_access, remote_monitoring_radio=remote_monitoring_radio,
        )  # fmt: skip
        self.worker_launch_method = worker_launch_method
        self.manager_config = config
        self.factory_config = factory_config if factory_config is not None else TaskVineFactoryConfig()

    def _open(self) -> Any:
        config, factory = self.manager_config, self.factory_config
        launched = self.worker_launch_method == "factory"
        return open_engine(
            "taskvine",
            port=config.port,
            name=config.project_name,
            workers=factory.max_workers if launched else 0,
            cores=factory.cores or len(os.sched_getaffinity(0)),
            # Workers of this machine need no factory.
            factory=factory.batch_type if launched and factory.batch_type != "local" else None,
            directory=config.vine_log_dir or os.path.join(self.run_dir, self.label),
            password_file=config.project_password_file or None,
            worker_options=_options_of(factory) if launched else (),
            setup=self._set_up,
        )

    def _set_up(self, manager: Any) -> None:
        config = self.manager_config
        if config.wait_for_workers:
            manager.tune("wait-for-workers", config.wait_for_workers)
        if not config.enable_peer_transfers:
            manager.disable_peer_transfers()
        for name, value in (config.tune_parameters or {}).items():
            manager.tune(name, value)

    def _slots(self, future: Any) -> int:
        return 1  # as in Parsl's own

    def start(self) -> None:
        super().start()
        self._stage_to_provider("vine_worker", self.manager_config.project_password_file)

    def _join_command(self, port: int | None) -> str:
        config, factory = self.manager_config, self.factory_config
        words = [factory.worker_executable]
        if config.project_password_file:
            words += ["--password", config.project_password_file]
        if factory.worker_options:
            words.append(factory.worker_options)
        words += ["-M", config.project_name] if config.project_name else [
            config.address or socket.gethostname(), str(port)
        ]  # fmt: skip
        return " ".join(words)
