"""An image: the environment it is, or the container and the words that bring a command into it.

The shell text is ours alone: what the user gave comes to it as arguments, which it never looks into.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poncho_wq.errors import quoted

FILES = (".sif", ".simg", ".img", ".squashfs")
_SCHEMES = ("docker://", "library://", "oras://", "shub://", "http://", "https://")
# Endings that no container image has, so that a misspelt path is not looked for on Docker Hub.
_ENVIRONMENTS = (".json", ".yml", ".yaml", ".txt", ".toml", ".tar.gz", ".tgz", ".tar", ".tar.zst", ".tar.xz")


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """``environment``: what a step takes, None for the smallest.  ``container``: the name of an image, or (``file``)
    the path of one; None where it is an environment."""

    environment: str | Mapping[str, Any] | None = None
    container: str | None = None
    file: bool = False


def image_of(given: Any, directory: Path) -> Image:
    """What a task's ``image`` is.  Paths are relative to ``directory``.  Raises ``ValueError``."""
    if not given:
        return Image()
    if isinstance(given, Mapping):
        return Image(environment=given)
    text = str(given)
    if text.startswith("-") or not text.isprintable() or " " in text:
        # The programs that run containers would take it for one of their options.
        raise ValueError(f"{quoted(text)} cannot be an image: no leading dash, no blank")
    if text.startswith(_SCHEMES):
        return Image(container=text)
    path = directory / os.path.expanduser(text)
    if os.path.exists(path):
        path = path.absolute()
        return Image(container=str(path), file=True) if path.name.endswith(FILES) else Image(environment=str(path))
    if text.startswith(("/", "./", "../", "~")) or text.endswith((*_ENVIRONMENTS, *FILES)):
        raise ValueError(f"{text}: there is no such file")
    return Image(container=text)


_NO_SINGULARITY = "echo 'neither singularity nor apptainer is on this worker' >&2; exit 127"
_NO_UDOCKER = "echo 'udocker is not on this worker' >&2; exit 127"


def inside(
    image: Image, runtime: str, *, name: str | None, workdir: str | None, mounts: Sequence[tuple[str, str]], verb: str
) -> tuple[str, ...]:
    """The words before a command that is to run in a container.

    ``name``: an image file's name in the job's home.  ``workdir``: an absolute path in the container, None for the
    directory that the command is started in.  ``mounts``: (name of a directory in the home, absolute path).
    ``verb``: ``exec``, or ``run`` for the image's own command.
    """
    collected = "".join(
        f'm{n}="$PONCHO_JOB_HOME/$1:$2"; shift 2; ' for n in range(len(mounts))
    )  # each takes two of the arguments
    front = f'place="${{1:-$PWD}}"; shift; {collected}'
    given = [word for mount in mounts for word in mount]
    if runtime == "udocker":
        # It has one verb.
        volumes = "".join(f' --volume="$m{n}"' for n in range(len(mounts)))
        script = (
            f"command -v udocker >/dev/null || {{ {_NO_UDOCKER}; }}; {front}"
            f'exec udocker --quiet run --hostenv --volume="$PONCHO_JOB_HOME:$PONCHO_JOB_HOME"{volumes} '
            '--workdir="$place" "$@"'
        )
        reference = str(image.container).removeprefix("docker://")
    else:
        binds = "".join(f' --bind "$m{n}"' for n in range(len(mounts)))
        script = (
            f"tool=$(command -v singularity || command -v apptainer) || {{ {_NO_SINGULARITY}; }}; "
            + ('image="$PONCHO_JOB_HOME/$1"; shift; ' if image.file else 'image="$1"; shift; ')
            + f'{front}exec "$tool" --silent {verb} --bind "$PONCHO_JOB_HOME:$PONCHO_JOB_HOME"{binds} '
            '--pwd "$place" "$image" "$@"'
        )
        reference = str(image.container)
        if image.file:
            reference = str(name)
        elif not reference.startswith(_SCHEMES):
            reference = f"docker://{reference}"
        return ("/bin/sh", "-c", script, "sh", reference, workdir or "", *given)
    return ("/bin/sh", "-c", script, "sh", workdir or "", *given, reference)
