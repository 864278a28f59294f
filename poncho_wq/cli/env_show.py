"""``poncho-wq env show X``: what an environment holds."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poncho_wq.described import Described


def add(commands: Any) -> None:
    """Add the command to the parser of ``poncho-wq env``."""
    ap = commands.add_parser(
        "show",
        help="say what an environment holds",
        description="Say what a tarball, a lock or a description of an environment holds.",
    )
    ap.add_argument("source", metavar="X", help="a tarball, a lock, a specification, or whatever env import takes")
    ap.add_argument("--json", action="store_true", help="as JSON")
    ap.set_defaults(command=run)


def run(args: argparse.Namespace) -> int:
    """Exit status 0; what cannot be read is raised."""
    from poncho_wq.described import describe

    environment = describe(args.source)
    if args.json:
        sys.stdout.write(json.dumps(environment.to_dict(), indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in _lines(environment)))
    return 0


def _lines(environment: Described) -> Iterator[str]:
    for name, value in _facts(environment):
        yield f"{name:<10} {value}"
    for note in environment.notes:
        yield f"{'note':<10} {note}"


def _facts(environment: Described) -> Iterator[tuple[str, str]]:
    spec, lock, manifest = environment.spec, environment.lock, environment.manifest
    if manifest is not None:
        yield "identity", manifest.identity
        yield "platform", manifest.platform
        yield "size", f"{manifest.size / 1e6:.1f} MB in {len(manifest.layers)} layers"
        yield "unpacked", f"{manifest.unpacked / 1e6:.1f} MB in {manifest.files} files"
        yield "glibc", f"{manifest.glibc} or newer" if manifest.glibc else "any"
    if spec is None:
        return
    if lock is not None:
        yield "python", lock.python
        for each in lock.conda:
            yield "conda", f"{each.name} {each.version} {each.build}"
        for package in lock.packages:
            yield "pip", f"{package.name} {package.version or package.commit or ''}".rstrip()
    else:
        if spec.conda is None:
            yield "python", spec.python or "that of the machine it is built on"
        else:
            yield "channels", ", ".join(spec.conda.channels) or "(none named)"
            yield from (("conda", text) for text in spec.conda.packages)
        yield from (("pip", text) for text in spec.pip)
    for variable, repository in spec.git:
        yield "git", f"${variable}: {repository.remote} {repository.tag or ''}".rstrip()
    for variable, download in spec.http:
        yield "http", f"${variable}: {download.url}"
    yield from (("env", f"{name}={value}") for name, value in spec.env)
