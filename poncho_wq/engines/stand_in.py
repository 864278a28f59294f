"""A task description with the methods of Work Queue's ``Task``, in plain Python.

Two uses: the embedded engine reads from it what a task wishes (files, variables, resources), and ``PonchoTask`` is
built on it where Work Queue is not installed.  The numbers are those of ``work_queue.h``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

INPUT, OUTPUT = 0, 1
NOCACHE, CACHE, FAILURE_ONLY, SUCCESS_ONLY = 0, 1, 32, 64

RESULTS = {
    0: "SUCCESS",
    1: "INPUT_MISS",
    2: "OUTPUT_MISS",
    4: "STDOUT_MISS",
    1 << 3: "SIGNAL",
    2 << 3: "RSRC_EXHAUST",
    3 << 3: "TASK_TIMEOUT",
    4 << 3: "UNKNOWN",
    5 << 3: "FORSAKEN",
    6 << 3: "MAX_RETRIES",
    7 << 3: "TASK_MAX_RUN_TIME",
    8 << 3: "DISK_FULL",
    9 << 3: "MONITOR_ERROR",
    10 << 3: "OUTPUT_TRANSFER_ERROR",
}
SUCCESS, INPUT_MISSING, OUTPUT_MISSING = 0, 1, 2
TASK_TIMEOUT, UNKNOWN, TASK_MAX_RUN_TIME = 3 << 3, 4 << 3, 7 << 3


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One file of a task.

    ``kind``: ``file``, ``directory``, ``piece``, ``buffer``, or what only Work Queue can do (``command``, ``url``).
    ``local`` is a path, or a buffer's text; ``start`` to ``end``, inclusive, a piece's bytes.  ``ours``: made by this
    program and never written to, so that a link to it will do.
    """

    kind: str
    local: str
    remote: str
    output: bool = False
    flags: int = NOCACHE
    start: int = 0
    end: int = 0
    ours: bool = False


class Struct:
    """The fields of ``struct work_queue_task`` that Python reads, with what a fresh one holds."""

    def __init__(self, command: str) -> None:
        self.command_line = command
        self.tag: str | None = None
        self.category = "default"
        self.priority = 0.0
        self.worker_selection_algorithm = 0
        self.taskid = 0
        self.return_status = -1
        self.result = UNKNOWN
        self.output: str | None = None
        self.host: str | None = None
        self.hostname: str | None = None
        self.max_retries = 0
        self.resources_measured: Any = None
        self.resources_requested: Any = None
        self.resources_allocated: Any = None

    def __getattr__(self, name: str) -> int:
        # Every other field is a counter or a time in microseconds.
        if name.startswith(("time_", "total_", "bytes_", "cmd_")) or name in ("exhausted_attempts", "try_count"):
            return 0
        raise AttributeError(name)


class Task:
    """What a task wishes.  Methods and properties are documented by Work Queue's ``Task``."""

    def __init__(self, command: str) -> None:
        self._task: Any = Struct(command)
        self.files: list[File] = []
        self.variables: list[tuple[str, str | None]] = []
        self.features: list[str] = []
        self.resources: dict[str, int] = {}
        # Seconds that it may run; microseconds since the Epoch when it must have ended.
        self.running_time_max: float | None = None
        self.end_time: int | None = None

    def clone(self) -> Task:
        """Raises ``TypeError``: only the ``PonchoTask`` around it knows all that is to be copied."""
        raise TypeError("only a PonchoTask can be cloned")

    def specify_command(self, command: str) -> None:
        """Replace the shell command line."""
        self._task.command_line = command

    def specify_algorithm(self, algorithm: int) -> None:
        """How a worker is chosen, a ``WORK_QUEUE_SCHEDULE_…``; here there is nothing to choose from."""
        self._task.worker_selection_algorithm = algorithm

    def specify_tag(self, tag: str) -> None:
        """Any text of the user's own; several tasks may have the same."""
        self._task.tag = tag

    def specify_category(self, name: str) -> None:
        """The name of a group of tasks that need about the same; ``default`` if never called."""
        self._task.category = name

    def specify_feature(self, name: str) -> None:
        """Ask for a worker that was started with ``--feature name``; the embedded engine does not look at it."""
        self.features.append(name)

    def specify_preferred_host(self, hostname: str) -> None:
        """Where there is one machine, it is the preferred one."""

    def specify_coprocess(self, coprocess: str) -> None:
        """Ask for a worker that has this coprocess; the embedded engine does not look at it."""
        self.features.append(coprocess)

    def specify_snapshot_file(self, filename: str) -> None:
        """For Work Queue's resource monitor, which is not here."""

    def specify_monitor_output(self, directory: str) -> None:
        """For Work Queue's resource monitor, which is not here."""

    def specify_max_retries(self, max_retries: int) -> None:
        """How often it may start anew after its worker was lost; below 1: without limit."""
        self._task.max_retries = max_retries

    def specify_cores(self, cores: int) -> None:
        """Cores that are the task's alone, told to it as ``$CORES``; the embedded engine's default is 1."""
        self.resources["cores"] = int(cores)

    def specify_memory(self, memory: int) -> None:
        """In MB, told to the task as ``$MEMORY``."""
        self.resources["memory"] = int(memory)

    def specify_disk(self, disk: int) -> None:
        """In MB, told to the task as ``$DISK``."""
        self.resources["disk"] = int(disk)

    def specify_gpus(self, gpus: int) -> None:
        """How many, told to the task as ``$GPUS``."""
        self.resources["gpus"] = int(gpus)

    def specify_priority(self, priority: float) -> None:
        """Higher first; 0 if never called."""
        self._task.priority = float(priority)

    def specify_end_time(self, useconds: int) -> None:
        """When it must have ended, in microseconds since the Epoch; below 1: no limit."""
        self.end_time = int(useconds) if int(useconds) >= 1 else None

    def specify_start_time_min(self, useconds: int) -> None:
        """A hint for schedulers of many machines."""

    def specify_running_time(self, useconds: int) -> None:
        """``specify_running_time_max`` in microseconds."""
        self.specify_running_time_max(int(useconds) / 1e6)

    def specify_running_time_max(self, seconds: float) -> None:
        """Seconds that it may run on a worker; 0 or less: no limit."""
        self.running_time_max = seconds if seconds > 0 else None

    def specify_running_time_min(self, seconds: int) -> None:
        """A hint for schedulers of many machines."""

    def specify_environment_variable(self, name: str, value: str | None = None) -> int:
        """Set a variable for the command; with None it is unset.  Returns 0 for an empty name."""
        if not name:
            return 0
        self.variables.append((name, value))
        return 1

    def specify_file(
        self,
        local_name: Any,
        remote_name: Any = None,
        type: int | None = None,
        flags: int | None = None,
        cache: bool | None = None,
        failure_only: bool | None = None,
    ) -> int:
        """Add a file: ``INPUT`` (as is None) or ``OUTPUT``; ``flags`` are Work Queue's, as at the head of the module.

        ``remote_name`` is its path in the sandbox, by default the last part of ``local_name``.  ``cache`` and
        ``failure_only`` set or clear their flag unless they are None.  Like the methods below it returns 1, or 0 when
        it contradicts what the task has; a ``PonchoTask`` raises ``EngineError`` then.
        """
        return self._add("file", local_name, remote_name, type, _flags(flags, cache, failure_only))

    def specify_input_file(
        self, local_name: Any, remote_name: Any = None, flags: int | None = None, cache: bool | None = None
    ) -> int:
        """Add a file that the task finds as ``remote_name``; with ``cache`` it is there for later tasks too."""
        return self.specify_file(local_name, remote_name, INPUT, flags, cache)

    def specify_output_file(
        self,
        local_name: Any,
        remote_name: Any = None,
        flags: int | None = None,
        cache: bool | None = None,
        failure_only: bool | None = None,
    ) -> int:
        """Add a file that the task leaves; with ``failure_only`` it comes back if the exit status is not 0."""
        return self.specify_file(local_name, remote_name, OUTPUT, flags, cache, failure_only)

    def specify_file_piece(
        self,
        local_name: Any,
        remote_name: Any = None,
        start_byte: int = 0,
        end_byte: int = 0,
        type: int | None = None,
        flags: int | None = None,
        cache: bool | None = None,
        failure_only: bool | None = None,
    ) -> int:
        """Add the bytes from ``start_byte`` to ``end_byte``, the last one included, of a file."""
        flags = _flags(flags, cache, failure_only)
        return self._add("piece", local_name, remote_name, type, flags, start=start_byte, end=end_byte)

    def specify_directory(
        self,
        local_name: Any,
        remote_name: Any = None,
        type: int | None = None,
        flags: int | None = None,
        recursive: bool = False,
        cache: bool | None = None,
        failure_only: bool | None = None,
    ) -> int:
        """Add a directory: as an input it is empty, unless ``recursive``; an output comes back with its content."""
        kind = "file" if recursive or type == OUTPUT else "directory"
        return self._add(kind, local_name, remote_name, type, _flags(flags, cache, failure_only))

    def specify_buffer(self, buffer: str, remote_name: Any, flags: int | None = None, cache: bool | None = None) -> int:
        """Add an input file that holds the text ``buffer``."""
        return self._add("buffer", buffer, remote_name, INPUT, _flags(flags, cache, None))

    def specify_url(
        self,
        url: str,
        remote_name: Any,
        type: int | None = None,
        flags: int | None = None,
        cache: bool | None = None,
        failure_only: bool | None = None,
    ) -> int:
        """Add an input that the worker fetches; the embedded engine refuses the task when it is submitted."""
        return self._add("url", url, remote_name, type, _flags(flags, cache, failure_only))

    def specify_file_command(self, remote_name: Any, cmd: str, *args: Any, **kwargs: Any) -> int:
        """Add an input that ``cmd`` makes on the worker, ``%%`` in it being the file; refused as a URL is."""
        return self._add("command", cmd, remote_name, INPUT, NOCACHE)

    def _add(
        self, kind: str, local: Any, remote: Any, type: int | None, flags: int, start: int = 0, end: int = 0
    ) -> int:
        local = "" if local is None else str(local)
        remote = str(remote) if remote else os.path.basename(local)
        new = File(kind=kind, local=local, remote=remote, output=type == OUTPUT, flags=flags, start=start, end=end)
        if not remote or any(_conflict(new, old) for old in self.files):
            return 0
        self.files.append(new)
        return 1

    @property
    def tag(self) -> str | None:
        """The text of ``specify_tag``; None if there is none."""
        tag: str | None = self._task.tag
        return tag

    @property
    def result_str(self) -> str:
        """Work Queue's word for ``result``: ``SUCCESS``, ``INPUT_MISS`` …; ``UNKNOWN`` before the task is done."""
        return RESULTS.get(self._task.result, "UNKNOWN")

    @property
    def limits_exceeded(self) -> None:
        """Only the resource monitor could tell."""

    # Typed here for the checker; the values are the struct's.
    category: Any
    command: Any
    priority: Any
    algorithm: Any
    std_output: Any
    output: Any
    id: Any
    return_status: Any
    result: Any
    host: Any
    hostname: Any


# Property of Task → field of the struct, where the names differ from Task's.
_FIELDS = {
    "category": "category",
    "command": "command_line",
    "priority": "priority",
    "algorithm": "worker_selection_algorithm",
    "std_output": "output",
    "output": "output",
    "id": "taskid",
    "return_status": "return_status",
    "result": "result",
    "total_submissions": "total_submissions",
    "exhausted_attempts": "exhausted_attempts",
    "host": "host",
    "hostname": "hostname",
    "submit_time": "time_task_submit",
    "finish_time": "time_task_finish",
    "total_cmd_exhausted_execute_time": "total_cmd_exhausted_execute_time",
    "app_delay": "time_app_delay",
    "send_input_start": "time_send_input_start",
    "send_input_finish": "time_send_input_finish",
    "execute_cmd_start": "time_execute_cmd_start",
    "execute_cmd_finish": "time_execute_cmd_finish",
    "receive_output_start": "time_receive_output_start",
    "receive_output_finish": "time_receive_output_finish",
    "total_bytes_received": "total_bytes_received",
    "total_bytes_sent": "total_bytes_sent",
    "total_bytes_transferred": "total_bytes_transferred",
    "total_transfer_time": "total_transfer_time",
    "cmd_execution_time": "cmd_execution_time",
    "total_cmd_execution_time": "total_cmd_execution_time",
    "resources_measured": "resources_measured",
    "resources_requested": "resources_requested",
    "resources_allocated": "resources_allocated",
}


def _conflict(new: File, old: File) -> bool:
    """What Work Queue refuses: two things under one name in the sandbox, two outputs to one local file."""
    if new.remote == old.remote:
        return (new.local, new.output) != (old.local, old.output) or new.kind == "buffer"
    return new.output and old.output and new.local == old.local


def _field(name: str) -> property:
    return property(lambda self: getattr(self._task, name))


for _name, _struct_name in _FIELDS.items():
    setattr(Task, _name, _field(_struct_name))


def _flags(flags: int | None, cache: bool | None, failure_only: bool | None) -> int:
    """The flags of Work Queue's ``_determine_file_flags``."""
    result = NOCACHE if flags is None else flags
    if cache is not None:
        result = result | CACHE if cache else result & ~CACHE
    if failure_only is not None:
        result = result | FAILURE_ONLY if failure_only else result & ~FAILURE_ONLY
    return result
