"""distribute's YAML of Python jobs → a ``Batch``.

https://github.com/Fluid-Dynamics-Group/distribute, version 0.14: ``meta``, ``python.initialize``, ``python.jobs`` and
``slurm``.  What it does by hand on every node becomes jobs of ours: one that runs the build file, and whose tree every
other starts in a copy of.  Messages of distribute's own rules are distribute's.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from poncho_wq.batch.front_ends import Loaded, text_of
from poncho_wq.batch.model import Batch, Input, Job, Notification, Output, Resources, Step, check
from poncho_wq.batch.slurm import resources_of
from poncho_wq.errors import BatchError, SpecError
from poncho_wq.importing.yaml_text import load_yaml

BUILD = "_build"
TREE = "tree.tar.gz"
NO_JOBS = "There were no actual jobs specified in the configuration file"
DUPLICATE = "There was a duplicate job name in the config file: {}"

# `matrix: @user:server`: distribute's own documents leave out the quotes that YAML asks for.
_UNQUOTED = re.compile(r"^(\s*(?:-\s+)*[\w.-]+:\s+)(@[^\s#\"']+)(\s*(?:#.*)?)$", re.MULTILINE)
_MATRIX_ID = re.compile(r"@[^:\s]+:[^\s:/]+(:[0-9]+)?")


def load(path: Path) -> Loaded:
    """Read the file.  Raises ``SpecError`` when it cannot be read or is no YAML, ``BatchError`` with all else."""
    text = text_of(path)
    return parse(text, source=str(path), directory=path.parent)


def parse(text: str, *, source: str, directory: Path) -> Loaded:
    """As ``load``; the files that ``text`` names are relative to ``directory``, and are looked for."""
    reader = _Reader(source, directory)
    batch = reader.batch(load_yaml(_readable(text), source=source))
    if reader.found:
        raise BatchError(reader.found)
    assert batch is not None
    check(batch, source=source)
    return Loaded(batch=batch, front_end="distribute", source=text, notes=tuple(reader.notes))


def _readable(text: str) -> str:
    """The text as YAML would have it: tabs at the beginning of a line are four blanks, ``@`` is quoted."""
    lines = []
    for line in text.splitlines():
        rest = line.lstrip(" \t")
        lines.append(line[: len(line) - len(rest)].replace("\t", "    ") + rest)
    return _UNQUOTED.sub(r'\1"\2"\3', "\n".join(lines) + "\n")


class _Unknown(dict[str, Any]):
    """Stands for keys and values that are missing or something else, which has been told: so are those in it."""

    def get(self, key: str, default: Any = None) -> Any:
        return _UNKNOWN


_UNKNOWN = _Unknown()


class _Reader:
    """Walks the document once; whatever is wrong is noted with its place, and reading goes on."""

    def __init__(self, source: str, directory: Path) -> None:
        self._source = source
        self._directory = directory
        self.found: list[SpecError] = []
        self.notes: list[str] = []

    def batch(self, document: Any) -> Batch | None:
        top = self._mapping("", document, ("meta", "python", "slurm"))
        if "apptainer" in top:
            self._bad("apptainer", "Apptainer batches are not run here; python ones are")
        meta = self._mapping("meta", top.get("meta"), ("batch_name", "namespace", "matrix", "capabilities"))
        python = self._mapping("python", top.get("python"), ("initialize", "jobs"))
        initialize = self._mapping("python.initialize", python.get("initialize"), ("build_file", "required_files"))
        name = self._directory_name("meta.batch_name", meta.get("batch_name"))
        namespace = self._directory_name("meta.namespace", meta.get("namespace"))
        gpus, features = self._capabilities(meta.get("capabilities"))
        slurm = self._slurm("slurm", top.get("slurm"), {})
        base = replace(self._resources("slurm", slurm), gpus=gpus)
        build_file = self._file("python.initialize.build_file", initialize.get("build_file"))
        always = self._files("python.initialize.required_files", initialize.get("required_files"))
        common: dict[str, Any] = {"features": features, "directories": ("input", "distribute_save")}

        jobs = []
        for place, item in self._items("python.jobs", python.get("jobs")):
            given = self._mapping(place, item, ("name", "file", "required_files", "slurm"))
            job_name = self._directory_name(f"{place}.name", given.get("name"))
            own_slurm = self._slurm(f"{place}.slurm", given.get("slurm"), slurm)
            resources = replace(self._resources(f"{place}.slurm", own_slurm), gpus=gpus)
            script = self._file(f"{place}.file", given.get("file"))
            files = self._files(f"{place}.required_files", given.get("required_files"))
            tree = Input(name=".", job=BUILD, output=TREE, unpack=True)
            jobs.append(
                Job(
                    name=job_name, steps=(_python(script, resources),), after=(BUILD,), resources=resources,
                    inputs=(tree, *_in_home(script), *always, *files),
                    outputs=(Output(pattern="distribute_save", contents=True, required=False),), **common,
                )
            )  # fmt: skip
        self._check_names(jobs, python)
        if self.found:
            return None
        tree_of_build = Output(pattern=".", archive=True, as_name=TREE, exclude=("input", "distribute_save"))
        build = Job(
            name=BUILD, steps=(_python(build_file, base),), resources=base, inputs=(*_in_home(build_file), *always),
            outputs=(tree_of_build,), **common,
        )  # fmt: skip
        return Batch(
            name=name, namespace=namespace, jobs=(build, *jobs), notifications=self._matrix(meta.get("matrix"))
        )

    # -- parts

    def _check_names(self, jobs: Sequence[Job], python: Mapping[str, Any]) -> None:
        if not jobs and isinstance(python.get("jobs"), (list, type(None))):
            self._bad("", NO_JOBS)
        seen: set[str] = set()
        for position, job in enumerate(jobs):
            if job.name == BUILD:
                self._bad(f"python.jobs[{position}].name", f"{BUILD!r} is the name of the build itself")
            elif job.name and job.name in seen:
                self._bad("", DUPLICATE.format(job.name))
            seen.add(job.name)

    def _capabilities(self, value: Any) -> tuple[int, tuple[str, ...]]:
        """GPUs, and features of the worker; ``python3`` is what the environment brings."""
        words = [self._text(place, item) for place, item in self._items("meta.capabilities", value)]
        features = tuple(word for word in dict.fromkeys(words) if word and word not in ("python3", "gpu"))
        return int("gpu" in words), features

    def _matrix(self, value: Any) -> tuple[Notification, ...]:
        if value is None or value is _UNKNOWN:
            return ()
        if not isinstance(value, str) or not _MATRIX_ID.fullmatch(value):
            self._bad("meta.matrix", f"expected a name such as @your-user:matrix.org, got {value!r}")
            return ()
        return (Notification(kind="matrix", to=value),)

    def _slurm(self, place: str, value: Any, base: Mapping[str, str]) -> dict[str, str]:
        from poncho_wq.batch.slurm import IGNORED, KNOWN

        given = {
            key: item for key, item in self._mapping(place, value, KNOWN, optional=True).items() if item is not None
        }
        ignored = [key for key in given if key in IGNORED]
        if ignored:
            self.notes.append(f"{self._source}: {place}: {', '.join(ignored)}: not used here")
        return {**base, **{key: self._text(f"{place}.{key}", item) for key, item in given.items()}}

    def _resources(self, place: str, slurm: Mapping[str, str]) -> Resources:
        resources, wrong = resources_of(slurm)
        for key, message in wrong:
            # Once, where it was said: jobs inherit the batch's.
            if not any(error.message == message for error in self.found):
                self._bad(f"{place}.{key}", message)
        return resources

    def _files(self, place: str, value: Any) -> tuple[Input, ...]:
        files = (self._file(where, item) for where, item in self._items(place, value))
        return tuple(replace(file, name=f"input/{file.name}") for file in files if file is not None)

    def _file(self, place: str, value: Any) -> Input | None:
        """``{path, alias}`` or the path alone, as an input called by its alias or by its own name."""
        if isinstance(value, str):
            value = {"path": value}
        before = len(self.found)
        given = self._mapping(place, value, ("path", "alias"))
        if given is _UNKNOWN or len(self.found) > before:
            return None
        written, alias = given.get("path"), given.get("alias")
        if not isinstance(written, str):
            self._bad(place, "lacks 'path'")
            return None
        path = self._directory / written
        if not os.path.exists(path):
            self._bad(place, f"no such file: {path}")
        elif not os.path.isfile(path):
            self._bad(place, f"not a file: {path}")
        elif not os.access(path, os.R_OK):
            self._bad(place, f"cannot be read: {path}")
        name = path.name if alias is None else self._text(f"{place}.alias", alias)
        if name.startswith("/") or ".." in name.split("/"):
            self._bad(f"{place}.alias", f"{name!r} must be a name in the input directory")
        return Input(name=name, path=str(path.absolute()))

    # -- kinds of values

    def _mapping(self, place: str, value: Any, known: Sequence[str], *, optional: bool = False) -> dict[str, Any]:
        if value is None and optional:
            return {}
        if value is _UNKNOWN:
            return {} if optional else _UNKNOWN
        if not isinstance(value, dict):
            what = "is missing" if value is None else f"expected keys and values, got {_kind(value)}"
            self._bad(place, what)
            return {} if optional else _UNKNOWN
        for key in getattr(value, "repeated", ()):
            self._bad(place, f"the key {key!r} is given twice")
        for key in value:
            if key not in known and not (place == "" and key == "apptainer"):
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"expected {', '.join(known)}"
                self._bad(place, f"unknown key {key!r} ({hint})")
        return dict(value)

    def _items(self, place: str, value: Any) -> list[tuple[str, Any]]:
        if value is None or value is _UNKNOWN:
            return []
        if not isinstance(value, list):
            self._bad(place, f"expected a list, got {_kind(value)}")
            return []
        return [(f"{place}[{position}]", item) for position, item in enumerate(value)]

    def _text(self, place: str, value: Any) -> str:
        if value is _UNKNOWN:
            return ""
        if not isinstance(value, str) or not value.strip():
            self._bad(place, "is missing" if value is None else f"expected text, got {_kind(value)}")
            return ""
        return value

    def _directory_name(self, place: str, value: Any) -> str:
        """It becomes a directory of the results."""
        text = self._text(place, value)
        if text and ("/" in text or text.startswith(".") or not text.isprintable() or len(text) > 200):
            self._bad(place, f"{text!r} cannot be the name of a directory: no slash, no leading dot")
        return text

    def _bad(self, place: str, message: str) -> None:
        self.found.append(SpecError(message, path=place or None, source=self._source))


def _python(script: Input | None, resources: Resources) -> Step:
    return Step(argv=("python3", script.name if script else "", str(resources.cores)))


def _in_home(script: Input | None) -> tuple[Input, ...]:
    return () if script is None else (script,)


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "keys and values" if isinstance(value, dict) else repr(value)
