"""The user's pip configuration, for uv: which index packages come from, and how it is reached.

uv reads none of pip's settings.  Somebody whose pip works must not have to configure a second tool, so what pip would
use becomes environment variables of uv; never arguments, which every user of the machine can read.
The rules for pip's files are pip's own: https://pip.pypa.io/en/stable/topics/configuration/
"""

from __future__ import annotations

import configparser
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

MACHINE_WIDE = Path("/etc/pip.conf")
_ANY_INDEX = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL")


def _spaced(value: str) -> str:
    return " ".join(value.split())


def _commas(value: str) -> str:
    return ",".join(value.split())


def _as_it_is(value: str) -> str:
    return value.strip()


# pip's option → (uv's variable, how the value is written, the variables by which the user has decided already).
_OPTIONS: dict[str, tuple[str, Callable[[str], str], tuple[str, ...]]] = {
    "index-url": ("UV_DEFAULT_INDEX", _as_it_is, _ANY_INDEX),
    "extra-index-url": ("UV_INDEX", _spaced, _ANY_INDEX),
    "find-links": ("UV_FIND_LINKS", _commas, ("UV_FIND_LINKS", *_ANY_INDEX)),
    "trusted-host": ("UV_INSECURE_HOST", _spaced, ("UV_INSECURE_HOST",)),
    "constraint": ("UV_CONSTRAINT", _spaced, ("UV_CONSTRAINT",)),
    "keyring-provider": ("UV_KEYRING_PROVIDER", _as_it_is, ("UV_KEYRING_PROVIDER",)),
    "retries": ("UV_HTTP_RETRIES", _as_it_is, ("UV_HTTP_RETRIES",)),
    "timeout": ("UV_HTTP_TIMEOUT", _as_it_is, ("UV_HTTP_TIMEOUT", "UV_REQUEST_TIMEOUT", "HTTP_TIMEOUT")),
    "cert": ("SSL_CERT_FILE", _as_it_is, ("SSL_CERT_FILE", "SSL_CERT_DIR")),
    "client-cert": ("SSL_CLIENT_CERT", _as_it_is, ("SSL_CLIENT_CERT",)),
    "proxy": ("ALL_PROXY", _as_it_is, ("ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy")),
}
# The keys of uv.toml that name indexes, at the top or under [pip].
_UV_INDEX = re.compile(
    r"^\s*(?:\[\[\s*index\s*\]\]|(?:index|index-url|extra-index-url|find-links|no-index)\s*=)", re.MULTILINE
)
# Variables of pip that are spelled like no option, or like another one.
_ALIASES = {"default-timeout": "timeout"}


def uv_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to set for uv beside ``environment``, from pip's variables and files; what uv was told stays.

    pip takes the best version from any of its indexes, uv stops at the first index that knows the name; where pip's
    indexes are used, pip's rule is too (``UV_INDEX_STRATEGY``).
    """
    settings = pip_settings(environment)
    index_is_in_a_file = _uv_has_index(environment)
    new: dict[str, str] = {}
    for option, (variable, written, decided_by) in _OPTIONS.items():
        value = settings.get(option, "").strip()
        decided = any(environment.get(name) for name in decided_by) or (index_is_in_a_file and "UV_INDEX" in decided_by)
        if value and not decided:
            new[variable] = written(value)
    if "UV_INDEX" in new and not environment.get("UV_INDEX_STRATEGY"):
        new["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return new


def wants_no_index(environment: Mapping[str, str]) -> bool:
    """Whether pip is told to look into ``find-links`` alone.  uv has an option for that and no variable."""
    if any(environment.get(name) for name in _ANY_INDEX) or _uv_has_index(environment):
        return False
    return pip_settings(environment).get("no-index", "").strip().lower() in ("1", "yes", "true", "on", "y", "t")


def uv_arguments(environment: Mapping[str, str]) -> list[str]:
    """What pip is told about wheels and source, as arguments: uv has no variables for these, and they are no secret."""
    settings = pip_settings(environment)
    found = ["--no-index"] if wants_no_index(environment) else []
    for option in ("no-binary", "only-binary"):
        for name in settings.get(option, "").replace(",", " ").split():
            found += [f"--{option}", name]
    return found


def pip_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What pip is configured with for ``pip install``: option → value, later sources over earlier ones."""
    settings: dict[str, str] = {}
    for path in config_files(environment):
        settings.update(_read(path))
    for name, value in environment.items():
        # `PIP_CONFIG_FILE` is no option, and an empty variable sets nothing (pip's own rule).
        if name.startswith("PIP_") and name != "PIP_CONFIG_FILE" and value:
            settings[_option(name.removeprefix("PIP_"))] = value
    return settings


def config_files(environment: Mapping[str, str]) -> list[Path]:
    """pip's configuration files, the strongest last: machine, user, virtual environment, ``$PIP_CONFIG_FILE``."""
    given = environment.get("PIP_CONFIG_FILE")
    if given == os.devnull:
        return []
    home = Path(environment.get("HOME") or os.path.expanduser("~"))
    shared = environment.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    files = [Path(directory, "pip", "pip.conf") for directory in reversed(shared.split(":")) if directory]
    files.append(MACHINE_WIDE)
    if not (given and Path(given).exists()):
        files.append(home / ".pip" / "pip.conf")
        files.append(Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf")
    files.append(Path(sys.prefix) / "pip.conf")
    if given:
        files.append(Path(given))
    return files


def uv_files(environment: Mapping[str, str]) -> list[Path]:
    """uv's configuration files (https://docs.astral.sh/uv/configuration/files/), whether they exist or not."""
    home = Path(environment.get("HOME") or os.path.expanduser("~"))
    shared = [Path(each) for each in (environment.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":") if each]
    personal = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files = [directory / "uv" / "uv.toml" for directory in (personal, *shared, MACHINE_WIDE.parent)]
    if environment.get("UV_CONFIG_FILE"):
        files = [Path(environment["UV_CONFIG_FILE"])]
    return files


def _uv_has_index(environment: Mapping[str, str]) -> bool:
    """Whether a configuration file of uv's says where packages come from."""
    for path in uv_files(environment):
        try:
            if _UV_INDEX.search(path.read_text(encoding="utf-8")):
                return True
        except (OSError, UnicodeDecodeError):
            continue
    return False


def _read(path: Path) -> dict[str, str]:
    """The settings of one file.  One that cannot be read says nothing, as a tool that is not pip may not fail on it."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, configparser.Error):
        return {}
    found: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            found.update({_option(name): value for name, value in parser.items(section)})
    return found


def _option(name: str) -> str:
    name = name.lower().replace("_", "-").removeprefix("--")
    return _ALIASES.get(name, name)
