"""The manager's Python, the programs that come with us, pip's settings and the wrapper on PATH."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from poncho_wq.build.index import pip_settings as settings_of_pip
from poncho_wq.build.uv import find_uv
from poncho_wq.doctor.finding import Finding, note, of_error, ok, problem, warning
from poncho_wq.errors import PonchoError
from poncho_wq.packing.compression import COMPRESSIONS, form_of
from poncho_wq.platforms import host_platform
from poncho_wq.prepare import COMPRESSION_VARIABLE
from poncho_wq.version import VERSION
from poncho_wq.wrapper import NAME, wrapper_path

_TRUE = ("1", "yes", "true", "on", "y", "t")


def interpreter() -> Iterator[Finding]:
    """What a specification without conda copies: the interpreter that runs the manager."""
    try:
        platform = host_platform()
    except PonchoError as error:
        yield of_error("python", error, "use a Linux machine with x86_64 or aarch64")
        return
    version = ".".join(map(str, sys.version_info[:3]))
    where = "virtual environment" if sys.prefix != sys.base_prefix else "not a virtual environment"
    yield ok("python", f"Python {version} on {platform}, {sys.executable} ({where}), poncho_wq {VERSION}")
    stdlib = Path(sysconfig.get_path("stdlib"))
    missing = [name for name in ("os.py", "encodings/__init__.py", "json/__init__.py") if not (stdlib / name).exists()]
    if missing:
        yield problem(
            "python",
            f"{stdlib} lacks {', '.join(missing)}: this Python cannot be copied to workers",
            "install the whole standard library (Debian: apt-get install libpython3-stdlib), or name a conda section",
        )


def programs() -> Iterator[Finding]:
    """uv and py-rattler come as wheels; a hand-made installation may lack them."""
    try:
        yield ok("programs", f"uv: {find_uv()}")
    except PonchoError as error:
        yield of_error("programs", error, "python3 -m pip install --force-reinstall uv")
    for module, package, without in (
        ("rattler", "py-rattler", "environments with a conda section cannot be built"),
        ("isal", "isal", "packing does not work"),
    ):
        try:
            import_module(module)
        except ImportError as error:
            yield problem(
                "programs",
                f"{package}: {error}: {without}",
                f"{sys.executable} -m pip install --force-reinstall {package}",
            )


def pip_settings() -> Iterator[Finding]:
    """Settings of pip that stop people, or that we take over."""
    settings = settings_of_pip(os.environ)
    wants = settings.get("require-virtualenv", "").strip().lower() in _TRUE
    if wants and sys.prefix == sys.base_prefix:
        yield warning(
            "pip",
            "PIP_REQUIRE_VIRTUALENV is set and this Python is in no virtual environment: pip install refuses to work "
            "(building environments works: it does not use pip)",
            "python3 -m venv ~/venv && . ~/venv/bin/activate    (or, once: PIP_REQUIRE_VIRTUALENV=0 pip install …)",
        )
    elif wants:
        yield ok("pip", "PIP_REQUIRE_VIRTUALENV is set, and this is a virtual environment")
    for option in ("target", "prefix", "user"):
        if settings.get(option, "").strip().lower() not in ("", "0", "no", "false", "off"):
            yield note(
                "pip",
                f"pip is configured with {option} = {settings[option]}; environments are built without it",
                f"python3 -m pip config unset global.{option}",
            )
    if os.environ.get("PYTHONPATH"):
        yield note(
            "pip",
            f"PYTHONPATH is set here ({os.environ['PYTHONPATH']}): what is found there is local code to an analysis, "
            "not a package",
            "unset PYTHONPATH",
        )


def compression() -> Iterator[Finding]:
    """The form of tarballs that a site has chosen, which may need a library."""
    chosen = os.environ.get(COMPRESSION_VARIABLE)
    if not chosen:
        return
    if chosen not in COMPRESSIONS:
        text = (
            f"${COMPRESSION_VARIABLE} is {chosen!r}, which is none of {', '.join(COMPRESSIONS)}: nothing can be built"
        )
        yield problem("compression", text, f"unset {COMPRESSION_VARIABLE}")
        return
    try:
        form_of(chosen).require()
    except PonchoError as error:
        yield of_error("compression", error, f"unset {COMPRESSION_VARIABLE}")
        return
    needs = "; workers need the program zstd" if chosen == "zstd" else ""
    yield ok("compression", f"tarballs are {chosen} (${COMPRESSION_VARIABLE}){needs}")


def wrapper() -> Iterator[Finding]:
    """The engines' factories take the first ``poncho_package_run`` of PATH, whoever made it."""
    try:
        ours = wrapper_path()
    except PonchoError as error:
        yield of_error("wrapper", error, "python3 -m pip install --force-reinstall poncho_wq")
        return
    found = shutil.which(NAME)
    if found is None:
        yield note(
            "wrapper",
            f"{NAME} is not on PATH: tasks do not need it there, work_queue_factory --poncho-env does",
            f'export PATH="{Path(sys.executable).parent}:$PATH"',
        )
    elif Path(found).read_bytes() != ours.read_bytes():
        yield warning(
            "wrapper",
            f"{found} is another program than ours ({ours}); what looks on PATH (factories, Parsl) takes that one",
            f'export PATH="{Path(sys.executable).parent}:$PATH"',
        )
    else:
        yield ok("wrapper", found)
